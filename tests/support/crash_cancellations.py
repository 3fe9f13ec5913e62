"""A program whose crash points are tested: runs that an event cancels."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from pydantic import BaseModel

from django_ai.automation import On, complete, event_workflow, run_subflow, step, wait, workflow
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import STAY, booked, document, noon, started
from tests.support.rows import leave


class OfStay(BaseModel):
    stay: int = STAY


def cancellations() -> None:
    """Runs that a document cancels: while they wait, before they start, and before they were to start."""
    uploaded = On("document_uploaded", match={"reservation_id": "{{ ctx.stay }}"})

    for name in ("watched", "too early", "later"):

        @workflow(name, cancel_on=[uploaded])
        class Watched:
            Context = OfStay

            @step(start=True)
            def begin(self, name=name):
                leave(f"begin {name}")
                return wait("never", timeout=timedelta(hours=2), on_timeout=self.end)

            @step()
            def end(self, name=name):
                leave(f"end {name}")
                return complete()

    @workflow("parent", cancel_on=[uploaded])
    class Parent:
        Context = OfStay

        @step(start=True)
        def begin(self):
            leave("begin parent")
            return run_subflow("child")

    @workflow("child")
    class Child:
        Context = OfStay

        @step(start=True)
        def begin(self):
            leave("begin child")
            return wait("never")

    @event_workflow("checkin_due", offset=timedelta(hours=-1), name="prepare", cancel_on=[uploaded])
    class Prepare:
        Context = OfStay

        @classmethod
        def create_context(cls, event):
            return cls.Context(stay=event.entity.pk)

        @step(start=True)
        def begin(self):
            leave("never")
            return complete()


def too_early() -> None:
    """Start a run and commit the document that cancels it together: no worker comes in between."""
    with transaction.atomic():
        started("too early")
        document()


CANCELLATIONS = Program(
    "cancellations",
    cancellations,
    [
        web(lambda: booked(checkin_at=noon(3))),
        web(lambda: started("watched")),
        web(lambda: started("parent")),
        work(),
        web(too_early, 0.6),
        work(0.7),
        web(lambda: started("later"), 0.8),
        work(1),
        work(2.5),
        work(4),
        prune_in_batches(5),
    ],
    ["begin child", "begin later", "begin parent", "begin watched", "end later"],
)
