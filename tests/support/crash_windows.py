"""A program whose crash points are tested: events are collected for a callback and for a workflow."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import Batch, Debounce, complete, event_workflow, on_event, step
from tests.apps.reservations.models import Document
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import QUICK, STAY, booked
from tests.support.rows import leave

HOUR = timedelta(hours=1)


def collectors() -> None:
    @on_event("document_uploaded", name="collected", debounce=Debounce(HOUR), retry=QUICK)
    def collected(events):
        leave("+".join(event.entity_id for event in events))

    @event_workflow("document_uploaded", name="pair", batch=Batch(2, timeout=2 * HOUR))
    class Pair:
        class Context(BaseModel):
            pks: list[str]

        @classmethod
        def create_context(cls, events):
            return cls.Context(pks=[event.entity_id for event in events])

        @step(start=True)
        def first(self):
            leave(f"pair {'+'.join(self.context.pks)}")
            return complete()


def uploaded(pk: int) -> None:
    if not Document.objects.filter(pk=pk).exists():
        Document.objects.create(pk=pk, reservation_id=STAY)


WINDOWS = Program(
    "windows",
    collectors,
    [
        web(booked),
        web(lambda: uploaded(7101)),
        work(0.2),
        web(lambda: uploaded(7102), 0.5),
        work(0.6),
        web(lambda: uploaded(7103), 0.7),
        work(0.8),
        work(3),
        web(lambda: uploaded(7104), 6),
        work(6.1),
        work(9),
        prune_in_batches(10),
    ],
    ["7101+7102+7103", "7104", "pair 7101+7102", "pair 7103", "pair 7104"],
)
