"""The program of captured writes whose crash points are tested (``crash_programs``)."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from django_ai.automation import on_event
from tests.apps.captured.models import Note, Parcel
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.rows import leave


def noon(hours: float) -> object:
    return timezone.now.noon + timedelta(hours=hours)  # type: ignore[attr-defined]


def captured() -> None:
    for name in ("created", "updated", "weighed", "sent", "shipped", "deleted", "due"):

        @on_event(f"parcel_{name}", name=f"captured {name}")
        def heard(event):
            leave(f"{event.event_name.removeprefix('parcel_')} {event.entity_id}")
            if event.event_name == "parcel_sent":
                # What a callback writes in bulk causes more.
                Note.objects.bulk_create([Note(pk=1, text=event.entity_id)])

    @on_event("note_written", name="captured note")
    def noted(event):
        leave("note")


def imported() -> None:
    if not Parcel.objects.exists():
        Parcel.objects.bulk_create([Parcel(pk=1, due_at=noon(9)), Parcel(pk=2)])


def weighed_and_sent() -> None:
    if Parcel.objects.filter(weight=0).exists():
        with transaction.atomic():
            Parcel.objects.update(weight=5)
            parcel = Parcel.objects.get(pk=1)
            parcel.state = "sent"
            parcel.save()
            Parcel.objects.filter(pk=1).update(code="both")


def moved() -> None:
    Parcel.objects.filter(pk=2, due_at=None).update(due_at=noon(3))


def saved_after() -> None:
    parcel = Parcel.objects.get(pk=2)
    if parcel.code != "saved":
        parcel.code = "saved"
        parcel.save()


def dropped() -> None:
    Parcel.objects.filter(pk=1)._raw_delete("default")


CAPTURED = Program(
    "captured",
    captured,
    [
        web(imported),
        work(),
        web(weighed_and_sent, 1),
        work(1.5),
        web(moved, 2),
        web(saved_after, 2.1),  # before a worker has looked
        work(2.5),
        work(3.5),
        web(dropped, 4),
        prune_in_batches(5),
        work(5.5),
    ],
    [
        "created 1",
        "created 2",
        "deleted 1",
        "due 2",
        "note",
        "sent 1",
        "shipped 1",
        *["updated 1"],
        *["updated 2"] * 3,
        "weighed 1",
        "weighed 2",
    ],
)
