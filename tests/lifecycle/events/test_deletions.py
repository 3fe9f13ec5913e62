"""``trigger=DELETE``: an event occurs after the commit that deletes its entity, with a snapshot of the entity."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event, on_event_cancelled
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import (
    complete,
    engine,
    event_workflow,
    get_wake,
    step,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Guest, Reservation, Room, Suite
from tests.support.event_options import confirmed, gone, hear, occurred, own_waiter, rows, starts
from tests.support.rows import change, effects, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


@pytest.mark.exact_times
def test_a_deletion_occurs_after_its_commit_with_the_snapshot(clock, declare, work):
    declare(Reservation, gone(payload=lambda stay: {"guest": stay.guest.name}))

    @on_event("gone")
    def heard(event):
        entity = event.entity
        leave(f"{entity.pk} {entity.note} {event.payload['guest']} {Reservation.objects.filter(pk=entity.pk).exists()}")

    stay = Reservation.objects.create(guest=Guest.objects.create(name="Ann"), note="bye")
    pk = stay.pk
    change(stay, note="farewell")
    with transaction.atomic():
        Reservation.objects.get(pk=pk).delete()
        assert [row.status for row in rows("gone")] == ["pending"]
    (row,) = rows("gone")
    assert (row.status, row.trigger, row.occurred_at, row.is_valid) == ("processed", "delete", clock(), True)
    assert row.payload == {
        "event_id": row.pk,
        "event_name": "gone",
        "entity_id": str(pk),
        "event_at": clock().isoformat(),
        "guest": "Ann",
    }
    work()
    assert effects() == [f"{pk} farewell Ann False"]


def test_the_condition_is_evaluated_at_the_deletion(declare):
    declare(Reservation, gone(condition=confirmed))
    Reservation.objects.create(status="confirmed").delete()
    Reservation.objects.create(status="pending").delete()
    assert occurred("gone") == 1
    assert len(rows("gone")) == 1


def test_a_condition_that_asks_the_database_is_not_asked_again(declare):
    declare(Reservation, gone(condition=lambda stay: stay.guest is not None and stay.guest.name == "Ann"))
    guest = Guest.objects.create(name="Ann")
    with transaction.atomic():
        Reservation.objects.create(guest=guest).delete()
        guest.delete()
    assert occurred("gone") == 1


@pytest.mark.parametrize("inner", [True, False])
def test_a_deletion_that_is_rolled_back(declare, inner):
    declare(Reservation, gone())
    stay = Reservation.objects.create()
    with transaction.atomic() if inner else pytest.raises(ZeroDivisionError):
        try:
            with transaction.atomic():
                Reservation.objects.get(pk=stay.pk).delete()
                raise ZeroDivisionError
        except ZeroDivisionError:
            if not inner:
                raise
    assert rows("gone") == []
    assert Reservation.objects.filter(pk=stay.pk).exists()


@pytest.mark.parametrize("partly", [lambda rows: rows.only("pk"), lambda rows: rows.defer("note", "status")])
def test_a_deletion_of_what_was_loaded_in_part(declare, partly):
    declare(Reservation, gone(condition=confirmed))
    stay = Reservation.objects.create(status="confirmed", note="whole")
    partly(Reservation.objects).get(pk=stay.pk).delete()
    (row,) = rows("gone")
    assert (row.status, row.entity.note, row.entity.status) == ("processed", "whole", "confirmed")


def test_queryset_delete_and_cascades(declare):
    declare(Reservation, gone())
    declare(Document, EventDefinition("document_gone", trigger=DELETE, payload=lambda d: {"of": d.reservation.note}))
    guest = Guest.objects.create(name="Ann")
    for note in ("a", "b"):
        Document.objects.create(reservation=Reservation.objects.create(guest=guest, note=note))
    Reservation.objects.create(note="of nobody")
    guest.delete()
    assert sorted(row.entity.note for row in rows("gone", status="processed")) == ["a", "b"]
    assert sorted(row.payload["of"] for row in rows("document_gone", status="processed")) == ["a", "b"]
    Reservation.objects.filter(note="of nobody").delete()
    assert occurred("gone") == 3


def test_a_payload_that_raises_parks_the_event_and_not_the_deletion(declare):
    declare(Reservation, gone(payload=lambda stay: {"name": stay.guest.name}))
    Reservation.objects.create().delete()
    (row,) = rows("gone")
    assert (row.status, "AttributeError" in row.error) == ("parked", True)
    assert not Reservation.objects.exists()


def test_a_condition_that_raises_parks_the_event_and_not_the_deletion(declare):
    declare(Reservation, gone(condition=lambda stay: stay.guest.name))
    Reservation.objects.create().delete()
    (row,) = rows("gone")
    assert (row.status, "AttributeError" in row.error) == ("parked", True)


@pytest.mark.parametrize("through", [Suite, Room])
def test_each_part_of_a_child_with_a_table_of_its_own_is_deleted_once(declare, through):
    shared = EventDefinition("room_gone", trigger=DELETE)
    declare(Room, shared)
    declare(Suite, shared, EventDefinition("suite_gone", trigger=DELETE, payload=lambda suite: {"stars": suite.stars}))
    Suite.objects.create(number="1", stars=3)
    through.objects.get(pk="1").delete()
    assert [(row.entity_type, row.status) for row in rows("room_gone")] == [("app.room", "processed")]
    assert [(row.entity_type, row.status, row.payload["stars"]) for row in rows("suite_gone")] == [
        ("app.suite", "processed", 3)
    ]


def test_the_snapshot_of_a_child_has_the_key_of_its_parent(declare):
    declare(Suite, EventDefinition("suite_gone", trigger=DELETE))
    suite = Suite.objects.create(number="1", stars=3)
    number = suite.number
    suite.delete()
    entity = rows("suite_gone")[0].entity
    assert (entity.pk, entity.number, entity.stars, entity.is_clean) == (number, number, 3, False)


def test_a_deletion_cancels_what_was_pending_and_occurs(declare, work):
    declare(Reservation, EventDefinition("confirmed", confirmed), gone())
    hear("gone")

    @on_event_cancelled("confirmed")
    def never(event):
        leave("never confirmed")

    Reservation.objects.create().delete()
    work()
    assert {(row.event_name, row.status) for row in Event.objects.all()} == {
        ("confirmed", "cancelled"),
        ("gone", "processed"),
    }
    assert sorted(effects())[-1] == "never confirmed"
    assert len(effects()) == 2


def test_the_same_key_may_come_and_go_again(declare):
    declare(Room, gone())
    for _ in range(2):
        Room.objects.create(number="7").delete()
    assert occurred("gone") == 2
    assert [row.active_key for row in rows("gone")] == [None, None]


def test_an_entity_that_is_created_and_deleted_in_one_transaction(declare):
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone())
    with transaction.atomic():
        Reservation.objects.create().delete()
    assert [row.status for row in rows("made")] == ["cancelled"]
    assert occurred("gone") == 1


def test_a_stale_instance_that_is_deleted_once_more_is_no_deletion(declare):
    declare(Reservation, gone())
    stay = Reservation.objects.create()
    stale = Reservation.objects.get(pk=stay.pk)
    stay.delete()
    assert stale.delete()[0] == 0
    assert occurred("gone") == 1


def test_offsets_after_a_deletion(clock, declare, work):
    declare(Reservation, gone(payload=lambda stay: {"note": stay.note}))
    starts("gone", "flow", offset=2 * HOUR)

    @on_event("gone", offset=HOUR)
    def later(event):
        leave(f"{event.entity.note} {event.payload['note']}")

    Reservation.objects.create(note="x").delete()
    work()
    assert effects() == []
    clock.tick(HOUR)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["x x", "flow"]


def test_a_workflow_starts_with_a_deletion(declare, work):
    declare(Reservation, gone())

    @event_workflow("gone", name="farewell")
    class Farewell:
        class Context(BaseModel):
            note: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(note=event.entity.note)

        @step(start=True)
        def first(self):
            leave(self.context.note)
            return complete()

    Reservation.objects.create(note="farewell").delete()
    work()
    assert effects() == ["farewell"]


def test_a_run_waits_for_the_deletion_of_its_own_entity(declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone())
    own_waiter("gone")
    mine, other = Reservation.objects.create(), Reservation.objects.create()
    work()
    run, others = WorkflowRun.objects.order_by("pk")
    mine.delete()
    work()
    run.refresh_from_db()
    others.refresh_from_db()
    assert (run.status, run.error, others.status) == ("completed", "", "suspended")
    other.delete()
    work()
    assert effects() == ["gone", "gone"]


def test_a_deletion_that_came_before_the_wait_registered(clock, declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone())

    @event_workflow("made", name="own waiter")
    class OwnWaiter:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave("heard")
                return complete()
            Reservation.objects.get().delete()
            return wait_for_event("gone")

    Reservation.objects.create()
    work()
    work()
    assert (the_run().status, effects()) == ("completed", ["heard"])


def test_a_deletion_whose_condition_was_false_ends_no_wait_for_ever(declare, work):
    """The event can no longer occur, so the waiting run is cancelled."""
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone(condition=confirmed))
    own_waiter("gone")
    stay = Reservation.objects.create()
    work()
    stay.delete()
    work()
    assert the_run().status == "cancelled"
    assert "deleted" in the_run().error


def test_a_run_that_waits_for_another_event_of_a_deleted_entity_ends(declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), EventDefinition("updated", trigger=UPDATE), gone())
    own_waiter("updated")
    stay = Reservation.objects.create()
    work()
    stay.delete()
    work()
    assert the_run().status == "cancelled"


def test_each_occurrence_before_a_deletion_is_found_by_a_wait_that_comes_later(declare, work):
    """Only the latest row of the event is current; the earlier ones are history and need the snapshot, too."""
    declare(Reservation, EventDefinition("changed", trigger=UPDATE, payload=lambda stay: {"note": stay.note}))

    @workflow("late waiter")
    class LateWaiter:
        class Context(BaseModel):
            note: str = ""

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["note"])
            return wait_for_event("changed", match={"status": "confirmed"})

    run = engine.start("late waiter")
    stay, other = Reservation.objects.create(status="confirmed"), Reservation.objects.create(status="pending")
    for note in ("one", "two", "three"):
        change(stay, note=note)
        change(other, note=f"not {note}")
    stay.delete()
    other.delete()
    work()
    run.refresh_from_db()
    assert (effects(), run.status) == (["one", "two", "three"], "suspended")
