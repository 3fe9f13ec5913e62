"""The program of crash points that uses limits: of runs, calls and executions of handlers."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from pydantic import BaseModel

from django_ai.automation import (
    Concurrency,
    RateLimit,
    Singleton,
    Throttle,
    agent,
    complete,
    engine,
    event_workflow,
    handler,
    on_event,
    step,
    wait,
    workflow,
)
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import QUICK, booked, signalled
from tests.support.rows import leave


class Numbered(BaseModel):
    entity_id: int = 0


def limited() -> None:
    @workflow("one by one", singleton=Singleton(on_conflict="queue"), concurrency=[Concurrency(1), BY_ENTITY])
    class OneByOne:
        Context = Numbered

        @step(start=True)
        def first(self):
            leave("one by one")
            return wait("limits:go", then=self.second)

        @step()
        def second(self):
            leave("and ends")
            return complete()

    @event_workflow(
        "reservation_confirmed",
        name="paced",
        concurrency=BY_ENTITY,
        throttle=Throttle(1, per=timedelta(minutes=1), key="{{ ctx.entity_id }}"),
    )
    class Paced:
        Context = Numbered

        @step(start=True)
        def only(self):
            leave("paced")
            return complete()

    @workflow("paced by hand", throttle=Throttle(1, per=timedelta(seconds=10)))
    class PacedByHand:
        Context = Numbered

        @step(start=True, retry=QUICK)
        def only(self):
            self.context.entity_id += 1
            if self.context.entity_id == 1:
                raise RuntimeError("the first try stumbles")
            leave("paced by hand")
            return complete()

    @workflow("rated", rate_limit=RateLimit(1, per=timedelta(days=1)))
    class Rated:
        Context = Numbered

        @step(start=True)
        def only(self):
            leave("rated")
            return complete()

    @on_event(
        "reservation_confirmed",
        name="limited call",
        concurrency=Concurrency(1, key="{{ instance.pk }}"),
        singleton=Singleton(on_conflict="queue"),
        retry=QUICK,
    )
    def call(event):
        leave("called")
        if CallbackExecution.objects.get(callback="limited call").attempt == 0:
            raise RuntimeError("the first try stumbles")

    @agent("limited agent", spawn_on="reservation_confirmed")
    class LimitedAgent:
        Context = Numbered

        @handler("reservation_confirmed", throttle=Throttle(1, per=timedelta(seconds=10)), concurrency=BY_ENTITY)
        def one(self):
            leave("handled one")

        @handler("reservation_confirmed", rate_limit=RateLimit(1, per=timedelta(days=1)))
        def other(self):
            leave("handled other")


BY_ENTITY = Concurrency(1, key="{{ ctx.entity_id }}")


def started_several(name: str, number: int) -> None:
    if not WorkflowRun.objects.filter(name=name).exists():
        with transaction.atomic():
            for _ in range(number):
                engine.start(name)


def cancelled_in_the_queue() -> None:
    """Cancel the last run, which waits for its turn."""
    run = WorkflowRun.objects.filter(name="one by one").latest("pk")
    engine.cancel(run)


LIMITS = Program(
    "limits",
    limited,
    [
        web(lambda: started_several("one by one", 3)),
        work(),
        web(cancelled_in_the_queue, 0.01),
        work(0.02),
        web(lambda: signalled("limits:go"), 0.1),
        work(0.1),
        web(lambda: started_several("paced by hand", 3), 0.2),
        web(lambda: started_several("rated", 2), 0.2),
        work(0.2),
        work(0.3),
        web(booked, 1),
        work(1),
        work(1.5),
        prune_in_batches(2),
    ],
    [
        *["and ends"] * 2,
        "called",
        "handled one",
        "handled other",
        *["one by one"] * 2,
        "paced",
        *["paced by hand"] * 3,
        "rated",
    ],
)
