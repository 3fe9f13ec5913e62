"""Programs whose crash points are tested: named queues, priorities, pauses, and bulk actions."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    acting_as,
    agent,
    complete,
    engine,
    event_workflow,
    handler,
    on_event,
    run_subflow,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues.bulk import performing
from django_ai.automation.queues.models import BulkAction
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import QUICK, Word, booked, noon, started
from tests.support.rows import leave

# -- queues and priorities ---------------------------------------------------------------------------------------------


def laned() -> None:
    @workflow("report", queue="reports", priority=lambda context: len(context.word))
    class Report:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("collected")
            return sleep(timedelta(minutes=20), then=self.end)

        @step()
        def end(self):
            leave("reported")
            return run_subflow("mailing", then=self.sent)

        @step()
        def sent(self):
            return complete()

    @workflow("mailing", queue="mail")
    class Mailing:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("mailed")
            return complete()

    @event_workflow("checkin_due", offset=timedelta(hours=-1), name="ready", queue="rooms", priority=-20)
    class Ready:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def begin(self):
            leave("ready")
            return complete()

    @on_event("reservation_confirmed", name="urgent", queue="mail", priority=lambda event: 50, retry=QUICK)
    def urgent(event):
        leave("urgent")
        if CallbackExecution.objects.get(callback="urgent").attempt == 0:
            raise RuntimeError("the first try stumbles")

    @agent("butler", spawn_on="reservation_confirmed", queue="rooms", priority=lambda event: 3)
    class Butler:
        class Context(BaseModel):
            entity_id: str

        @handler("checkin_due")
        def welcome(self, run):
            leave("welcomed")
            AgentManager.complete(run)


LANES = Program(
    "lanes",
    laned,
    [
        web(lambda: started("report", word="january")),
        web(lambda: booked(checkin_at=noon(3))),
        work(),
        work(1),
        work(2.5),
        work(3.5),
        prune_in_batches(4),
    ],
    ["collected", "mailed", "ready", "reported", "urgent", "welcomed"],
)


# -- pauses ------------------------------------------------------------------------------------------------------------


def stoppable() -> None:
    @workflow("nap", queue="naps")
    class Nap:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("begin")
            return sleep(timedelta(minutes=20), then=self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

    @on_event("reservation_confirmed", name="call")
    def call(event):
        leave("called")

    @agent("host", spawn_on="reservation_confirmed")
    class Host:
        class Context(BaseModel):
            entity_id: str

        @handler("reservation_confirmed")
        def welcome(self, run):
            leave("welcomed")
            AgentManager.complete(run)


def paused(**target: str) -> None:
    engine.pause(**target)


def unpaused(**target: str) -> None:
    engine.unpause(**target)


def run_paused() -> None:
    engine.pause(WorkflowRun.objects.get(name="nap"))


def run_unpaused() -> None:
    engine.unpause(WorkflowRun.objects.get(name="nap"))


PAUSES = Program(
    "pauses",
    stoppable,
    [
        web(lambda: paused(queue="naps")),
        web(lambda: started("nap")),
        work(),
        web(lambda: unpaused(queue="naps"), 0.1),
        work(0.2),
        web(lambda: paused(workflow="nap"), 0.3),
        web(run_paused, 0.3),
        web(lambda: paused(callback="call"), 0.3),
        web(lambda: paused(agent="host"), 0.3),
        web(booked, 0.4),
        work(1),
        web(lambda: unpaused(workflow="nap"), 1.5),
        web(lambda: unpaused(agent="host"), 1.5),
        work(2),
        web(run_unpaused, 2.5),
        web(lambda: unpaused(callback="call"), 2.5),
        work(3),
        prune_in_batches(4),
    ],
    ["begin", "called", "end", "welcomed"],
)


# -- bulk actions ------------------------------------------------------------------------------------------------------


def listening() -> None:
    performing.ROWS_PER_BITE = 2  # in this process and its children; each bite has its own crash points

    @workflow("listening")
    class Listening:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("begun")
            return wait("answer", then=self.end)

        @step()
        def end(self):
            return complete()


def cancelled_in_bulk() -> None:
    if not BulkAction.objects.exists():
        with acting_as("system:test"):
            engine.bulk("cancel", name="listening", reason="Enough.")


def three_started() -> None:
    for number in range(3):
        engine.start("listening", word="x", key=str(number))


BULK = Program(
    "bulk",
    listening,
    [
        web(three_started),
        work(),
        web(cancelled_in_bulk, 0.5),
        work(1),
        work(2),
    ],
    ["begun"] * 3,
)
