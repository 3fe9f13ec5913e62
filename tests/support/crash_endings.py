"""More programs whose crash points are tested: attempts that are repeated later, and runs that end before their time.

``ENDINGS`` has them all.
"""

from __future__ import annotations

from datetime import timedelta

from django_ai.automation import (
    GiveUp,
    Retry,
    RetryAfter,
    agent,
    complete,
    engine,
    get_wake,
    goto,
    handler,
    on_event,
    on_fail,
    run_subflow,
    step,
    wait,
    workflow,
)
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import Word, booking, started
from tests.support.rows import leave

HALF_AN_HOUR = timedelta(minutes=30)


def deferrals() -> None:
    """A step, a callback and a handler ask to be repeated later; another step gives up."""

    @workflow("polite")
    class Polite:
        Context = Word

        @step(start=True, retry=Retry(max_attempts=1))
        def ask(self):
            self.context.tries += 1
            leave(f"asked {self.context.tries}")
            if self.context.tries < 3:
                raise RetryAfter(HALF_AN_HOUR, "HTTP 429")
            return goto(self.give_up)

        @step()
        def give_up(self):
            raise GiveUp("no retry can help")

        @on_fail
        def failed(self, error):
            leave("gave up")

    @on_event("booking_created", name="polite", retry=Retry(max_attempts=1))
    def polite(event):
        leave("called")
        if CallbackExecution.objects.get(callback="polite").deferrals == 0:
            raise RetryAfter(HALF_AN_HOUR)

    @agent("polite", spawn_on="booking_created")
    class PoliteAgent:
        Context = Word

        @handler("booking_created", retry=Retry(max_attempts=1))
        def created(self, ctx):
            ctx.tries += 1
            leave("handled")
            if ctx.tries == 1:
                raise RetryAfter(HALF_AN_HOUR)


DEFERRALS = Program(
    "deferrals",
    deferrals,
    [
        web(lambda: started("polite")),
        web(lambda: booking(9003)),
        work(),
        work(1),
        work(2),
        prune_in_batches(3),
    ],
    ["asked 3", "called", "gave up", "handled"],
)


def deadlines() -> None:
    @workflow("limited", deadline=timedelta(hours=1))
    class Limited:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("begin")
            return run_subflow("long child", then=self.end)

        @step()
        def end(self):
            leave(f"the child was {get_wake().payload['status']}")
            return complete()

        @on_fail
        def failed(self, error):
            leave("too late")
            return goto(self.undo)

        @step()
        def undo(self):
            leave("undone")
            return complete()

    @workflow("long child")
    class LongChild:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("child")
            return wait("never")


def resumed() -> None:
    run = WorkflowRun.objects.get(name="limited")
    if run.status == "failed":
        engine.resume(run)


DEADLINES = Program(
    "deadlines",
    deadlines,
    [
        web(lambda: started("limited")),
        work(),
        work(1.5),
        work(2),
        web(resumed, 2.5),
        work(2.6),
        work(3),
        prune_in_batches(4),
    ],
    ["begin", "child", "the child was cancelled", "too late", "undone"],
)


ENDINGS = [DEFERRALS, DEADLINES]
