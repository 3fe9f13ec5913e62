"""What tests of named queues and priorities share."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import complete, engine, step, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.rows import leave


class Word(BaseModel):
    word: str = ""
    urgent: bool = False


def leaving(name: str = "lanes:leaves", **lane):
    """Declare a workflow of one step, which leaves the word of its Context."""

    @workflow(name, **lane)
    class Leaves:
        Context = Word

        @step(start=True)
        def begin(self):
            leave(self.context.word)
            return complete()

    return Leaves


def start(queue: str = "", priority: int = 0, ago: timedelta = timedelta(0)) -> WorkflowRun:
    """Start a run in a lane that its workflow does not declare."""
    run = engine.start("lanes:leaves", word=f"{queue} {priority}")
    WorkflowRun.objects.filter(pk=run.pk).update(queue=queue, priority=priority, wake_at=run.wake_at - ago)
    return run


def is_look(sql: str) -> bool:
    """Return whether a statement is the look for what is due (``DueQuery``), by its branch for what is paused."""
    return "UNION ALL SELECT -1, target" in sql
