"""The story of four stays, written once and run twice: in the time machine, and on a real cluster.

Its result does not depend on speed: it continues when the expected rows are in the tables, and the next timer is still
hours away at that time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.utils import timezone

from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.values.clock import offset_key
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.story.models import Mark, Paper, Stay

Until = Callable[[Callable[[], Any], str], Any]


def live(hour: timedelta, until: Until) -> dict[str, list[Any]]:
    """Run the story, and return the rows that it leaves. ``until(condition, what)`` lets time pass."""
    names = ("Ada", "Bob", "Cyd", "Dan")
    stays = {name: Stay.objects.create(name=name, arrives_at=timezone.now() + 20 * hour) for name in names}
    who = {str(stay.pk): name for name, stay in stays.items()}
    until(lambda: marks("expected") == 4, "The record of all dates")
    for stay in stays.values():
        stay.status = "confirmed"
        stay.save()
    until(lambda: greeted() == 4, "The first try of each welcome")
    until(lambda: marks("thanks") == 4, "All thanks")

    for name in ("Ada", "Dan"):
        stays[name].arrives_at = timezone.now() + 8 * hour
        stays[name].save()
    stays["Bob"].status = "cancelled"
    stays["Bob"].save()
    stays["Cyd"].delete()
    until(lambda: WorkflowRun.objects.filter(name="stay:reminder", status="suspended").count() == 2, "Both reminders")
    Paper.objects.create(stay=stays["Ada"], kind="passport")

    until(lambda: not WorkflowRun.objects.unfinished().exists(), "The end of all runs")
    until(lambda: marks("room") == marks("settled") == 2, "The end of both arrivals")
    until(lambda: not CallbackExecution.objects.filter(status="pending").exists(), "The end of all callbacks")
    return rows(hour, who)


def greeted() -> int:
    return StepExecution.objects.filter(step="greet").values("run").distinct().count()


def marks(name: str) -> int:
    return Mark.objects.filter(name__startswith=f"{name} ").count()


def rows(hour: timedelta, who: dict[str, str]) -> dict[str, list[Any]]:
    """Return values that depend neither on the length of an hour nor on the order of simultaneous actions."""
    milestones = {offset_key(number * hour): f"{number} h" for number in range(-20, 21) if number}
    runs = list(WorkflowRun.objects.all())

    def of(row: Any) -> str:
        return who[row.entity_id] if row.entity_type == "story.stay" else row.entity_type

    return {
        "events": sorted((each.event_name, of(each), each.status) for each in Event.objects.all()),
        "runs": sorted((run.name, of(run), run.status, run.current_step, str(run.data)) for run in runs),
        "steps": sorted(
            (run.name, of(run), [(each.step, each.attempt, each.outcome, each.wake_reason) for each in run.steps.all()])
            for run in runs
        ),
        "callbacks": sorted(
            (each.callback, of(each.event), milestones.get(each.milestone, each.milestone), each.status, each.attempt)
            for each in CallbackExecution.objects.select_related("event")
        ),
        "marks": sorted(Mark.objects.values_list("name", flat=True)),
    }
