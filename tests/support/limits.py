"""Limited workflows of a test, and what is known of their slots."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from django_ai.automation import complete, engine, goto, sleep, step, wait, workflow
from django_ai.automation.queues.claim import claim_rows
from django_ai.automation.queues.models import Slot
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.rows import leave

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


class Job(BaseModel):
    group: str = ""
    name: str = ""
    do: str = ""


def limited(name: str = "limited", **options: object) -> None:
    """Declare a workflow with limits whose steps leave effects."""

    @workflow(name, **options)
    class Limited:
        Context = Job

        @step(start=True)
        def begin(self):
            leave(f"begin {self.context.name}")
            match self.context.do:
                case "sleep":
                    return sleep(MINUTE, then=self.end)
                case "wait":
                    return wait("go", then=self.end)
                case "fail":
                    raise RuntimeError("no")
            return goto(self.end)

        @step()
        def end(self):
            leave(f"end {self.context.name}")
            return complete()


def start(*names: str, name: str = "limited", group: str = "", do: str = "") -> list[WorkflowRun]:
    return [engine.start(name, name=each, group=group, do=do) for each in names]


def slots() -> Counter[str]:
    """Return how many slots there are in each state."""
    return Counter(Slot.objects.values_list("state", flat=True))


def statuses() -> list[str]:
    return list(WorkflowRun.objects.order_by("pk").values_list("status", flat=True))


def perform(run: WorkflowRun, clock: Any) -> None:
    """Let a worker claim this run and perform it, once."""
    (row,) = claim_rows(WorkflowRun, [run.pk], clock.now)
    row.perform(lambda: clock.now)
