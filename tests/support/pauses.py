"""Workflows that tests pause, and the ways to pause them."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import complete, engine, sleep, step, workflow
from tests.support.rows import leave

HOUR = timedelta(hours=1)


class Word(BaseModel):
    word: str = ""


def naps() -> type:
    """Declare a workflow that leaves its word, sleeps for an hour, and leaves it again."""

    @workflow("pauses:naps", queue="reports")
    class Naps:
        Context = Word

        @step(start=True)
        def begin(self):
            leave(f"begin {self.context.word}")
            return sleep(HOUR, then=self.end)

        @step()
        def end(self):
            leave(f"end {self.context.word}")
            return complete()

    return Naps


def other() -> type:
    """Declare a workflow of one step, in the default queue."""

    @workflow("pauses:other")
    class Other:
        Context = Word

        @step(start=True)
        def begin(self):
            leave(f"other {self.context.word}")
            return complete()

    return Other


def pause_and_unpause(target: str, run, cls):
    """Return the calls that pause and unpause ``run``, in one of the ways of ``TARGETS``."""
    given = {
        "run": ([run], {}),
        "pk": ([run.pk], {}),
        "workflow": ([], {"workflow": "pauses:naps"}),
        "class": ([], {"workflow": cls}),
        "queue": ([], {"queue": "reports"}),
        "everything": ([], {"everything": True}),
    }[target]
    return (
        lambda: engine.pause(*given[0], **given[1]),
        lambda: engine.unpause(*given[0], **given[1]),
    )


TARGETS = ["run", "pk", "workflow", "class", "queue", "everything"]
