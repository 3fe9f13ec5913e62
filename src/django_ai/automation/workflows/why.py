"""The explainer of event workflows: what their runs say, and without one what is asked before a run is planned or
starts. The decisions are those of ``planning``, of claims and of ``when=``."""

from __future__ import annotations

from collections.abc import Iterator

from ..db.writer import alias_of
from ..events.entities import awaited_about
from ..events.models import Event
from ..events.subscriptions import subscriptions
from ..events.why.answers import Answer, Condition
from ..events.why.asking import Inquiry
from ..events.why.callbacks import answer, answer_without_code, collected_in, in_window
from ..events.why.event_conditions import EventConditions, evaluated, unclaimed
from ..queues.causation import Owner
from ..queues.wakeable import at_text
from ..values.clock import later
from .current_run import KIND
from .definitions import Start, WorkflowDefinition
from .models import WorkflowRun
from .planning import PlanningCheck, planning_checks
from .statuses import WorkflowStatus
from .upcoming import reason_of


def explain_workflows(inquiry: Inquiry) -> Iterator[Answer]:
    """Yield an answer for each event and workflow."""
    events = inquiry.recorded
    runs = _runs(inquiry)
    windows = collected_in(KIND, inquiry)
    targets = {pk for pk in windows.values() if pk is not None}
    handed = {run.pk: run for run in WorkflowRun.objects.filter(pk__in=targets)} if targets else {}
    conditions = EventConditions(inquiry.now)
    seen: set[tuple[int, str]] = set()
    for event in inquiry.events:
        for start in subscriptions.all(Start):
            if not inquiry.wants(start, event):
                continue
            definition, key = start.workflow, (event.pk or 0, start.workflow.name)
            seen.add(key)
            run, asked = runs.get(key), conditions.of(event, start)
            if (event.pk, definition.name) in windows:
                target = windows[event.pk, definition.name]
                run = handed.get(target or 0, run)
                asked.append(in_window(target is not None))
            asked += _of_planning(event, definition, inquiry)
            if inquiry.is_detailed and event.pk is not None:
                asked += _of_start(event, definition, run, inquiry)
            waits_for = "" if run is None or run.is_finished else reason_of(run, inquiry.now)
            yield answer(event, start, run, asked, inquiry, waits_for)
    for key, run in runs.items():
        if key not in seen and inquiry.subscriber in ("", run.name):
            waits_for = "" if run.is_finished else reason_of(run, inquiry.now)
            yield answer_without_code(KIND, run.name, events[key[0]], run, inquiry, waits_for=waits_for)


def _runs(inquiry: Inquiry) -> dict[tuple[int, str], WorkflowRun]:
    found = WorkflowRun.objects.filter(event__in=inquiry.recorded).order_by("-pk").prefetch_related("waits")
    if inquiry.subscriber:
        found = found.filter(name=inquiry.subscriber)
    rows = list(found[: inquiry.limit * 4])
    WorkflowRun.load_reasons([run for run in rows if not run.is_finished])
    return {(run.event_id or 0, run.name): run for run in rows}


def _of_planning(event: Event, definition: WorkflowDefinition, inquiry: Inquiry) -> Iterator[Condition]:
    """Yield what is asked before a run with an offset is planned, unless the conditions of the event say it already."""
    if definition.offset is None or event.pk is None:
        return
    for check, holds in planning_checks(event, definition, inquiry.now):
        if check is PlanningCheck.GRACE:
            declaration = event.definition
            assert declaration is not None
            assert event.at is not None
            last = later(max(event.at, event.moment_of(definition.offset)), declaration.grace)
            yield Condition(check, f"planned before {at_text(last)}", f"now {at_text(inquiry.now)}", holds)
        elif check is PlanningCheck.CONDITION:
            yield Condition(check, "the latest save has found it true", "true" if holds else "false", holds, True)
        if not holds:
            return


def _of_start(
    event: Event, definition: WorkflowDefinition, run: WorkflowRun | None, inquiry: Inquiry
) -> Iterator[Condition]:
    """Yield what a worker asks when the run starts: the claim, and ``when=``. They are asked as of now, so not of a run
    that has started."""
    if run is not None and (run.started_at is not None or run.status == WorkflowStatus.COMPLETED):
        return
    if not definition.ignores_claims:
        yield unclaimed(event, Owner(KIND, 0 if run is None else run.pk), inquiry.now)
    if definition.when is not None and definition.window is None:
        when = definition.when
        holds, found = evaluated(lambda: awaited_about(event, when(event)), alias_of(WorkflowRun))
        yield Condition("when", f"when= of {definition.name} is true", found, holds, may_change=True)
