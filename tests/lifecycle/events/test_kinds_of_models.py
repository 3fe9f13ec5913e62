"""Events of models with other primary key types, of proxies and of multi-table children; reused primary keys."""

from __future__ import annotations

import uuid

import pytest
from django.db import connection, transaction

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording.model_signals import connect_model
from tests.apps.reservations.models import Chore, Errand, LongStay, Reservation, Room, Suite, Ticket, VipStay
from tests.support.immediate_events import occurred
from tests.support.marks import not_on
from tests.support.rows import effects, event_of, leave, status_of

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"


@pytest.fixture(autouse=True)
def heard():
    """Write an effect for each occurrence of these events."""
    for name in (CONFIRMED, "guest_docs_uploaded", "ticket_closed", "room_cleaned", "suite_opened", "vip_arrived"):

        @on_event(name, name=f"hear {name}")
        def hear(event):
            leave(f"{event.event_name} {event.entity_id}")


# -- kinds of models ---------------------------------------------------------------------------------------------------


def test_a_uuid_is_a_key(work):
    ticket = Ticket.objects.create(open=False)
    work()
    assert effects() == [f"ticket_closed {ticket.pk}"]
    event = event_of(ticket, "ticket_closed")
    assert event.entity == ticket
    assert uuid.UUID(event.entity_id) == ticket.pk


@pytest.mark.parametrize("number", ["7", "O'Brien's", "7/b?&x", "zimmer ü", " 7 "])
def test_a_text_is_a_key(number, work):
    room = Room.objects.create(number=number, is_clean=True)
    work()
    assert effects() == [f"room_cleaned {number}"]
    assert event_of(room, "room_cleaned").entity == room


@not_on("mysql", reason="MariaDB's default collation treats them as equal")
def test_keys_that_differ_in_case_are_two():
    for number in ("a1", "A1"):
        Room.objects.create(number=number, is_clean=True)
    assert occurred("room_cleaned") == 2


def test_a_proxy_saves_the_same_entity(work):
    stay = Reservation.objects.create()
    proxy = LongStay.objects.get(pk=stay.pk)
    proxy.status = "confirmed"
    proxy.save()
    stay.refresh_from_db()
    stay.save()
    work()
    assert effects() == [f"{CONFIRMED} {stay.pk}"]
    assert Event.objects.filter(entity_id=str(stay.pk), event_name=CONFIRMED).count() == 1


def test_a_proxy_may_declare_more(work):
    vip = VipStay.objects.create(status="confirmed", note="here")
    Reservation.objects.get(pk=vip.pk).save()
    work()
    assert sorted(effects()) == [f"{CONFIRMED} {vip.pk}", f"vip_arrived {vip.pk}"]
    assert isinstance(Event.objects.get(event_name="vip_arrived").entity, VipStay)
    plain = Reservation.objects.create(note="here")
    assert not Event.objects.filter(event_name="vip_arrived", entity_id=str(plain.pk)).exists()


def test_a_child_with_a_table_of_its_own_is_its_parent_too(work):
    suite = Suite.objects.create(number="1", stars=5)
    assert status_of(suite, "suite_opened") == "processed"
    room = Room.objects.get(pk="1")
    room.is_clean = True
    room.save()
    suite.refresh_from_db()
    suite.save()
    work()
    assert sorted(effects()) == ["room_cleaned 1", "suite_opened 1"]
    assert Event.objects.filter(event_name="room_cleaned").count() == 1


def test_deleting_the_parent_cancels_what_the_child_declared():
    suite = Suite.objects.create(number="1", stars=1)
    Room.objects.get(pk="1").delete()
    assert set(Event.objects.values_list("event_name", "status")) == {
        ("room_cleaned", "cancelled"),
        ("inspection_due", "cancelled"),
        ("suite_opened", "cancelled"),
    }
    assert suite.pk == "1"


def test_abstract_models_hand_their_events_down(work):
    seen = []

    @on_event("task_done")
    def finish(event):
        seen.append(type(event.entity))

    chore, errand = Chore.objects.create(pk=1, done=True), Errand.objects.create(pk=1)
    assert status_of(chore, "task_done") == "processed"
    assert status_of(errand, "task_done") == "pending"
    errand.done = True
    errand.save()
    work()
    assert seen == [Chore, Errand]


def test_a_definition_that_is_added_later_is_recorded_by_the_next_save(declare):
    stay = Reservation.objects.create(note="old")
    declare(Reservation, *Reservation.events, EventDefinition("noted", condition=lambda r: r.note == "new"))
    assert not Event.objects.of(stay).filter(event_name="noted").exists()
    stay.note = "new"
    stay.save()
    assert status_of(stay, "noted") == "processed"


# -- reused primary keys -----------------------------------------------------------------------------------------------


def test_a_key_that_is_used_again_after_deletion_starts_afresh(work):
    first = Reservation.objects.create(status="confirmed")
    pk = first.pk
    first.delete()
    again = Reservation.objects.create(pk=pk)
    assert status_of_latest(again) == "pending"
    again.status = "confirmed"
    again.save()
    work()
    assert effects() == [f"{CONFIRMED} {pk}"] * 2


def test_a_key_that_is_used_again_in_the_same_transaction(work):
    with transaction.atomic():
        first = Reservation.objects.create(status="confirmed")
        pk = first.pk
        first.delete()
        Reservation.objects.create(pk=pk, status="confirmed")
    work()
    assert effects() == [f"{CONFIRMED} {pk}"]


@pytest.mark.parametrize("was", ["confirmed", "pending"])
def test_a_key_that_is_used_again_after_raw_sql(was, work):
    pk = Reservation.objects.create(status=was).pk
    work()
    before = effects()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM app_reservation")
    again = Reservation.objects.create(pk=pk)
    assert status_of_latest(again) == "pending"
    again.status = "confirmed"
    again.save()
    work()
    assert effects() == [*before, f"{CONFIRMED} {pk}"]


def status_of_latest(stay: Reservation) -> str:
    return str(Event.objects.of(stay).filter(event_name=CONFIRMED).order_by("-pk")[0].status)


def test_an_entity_that_is_gone_by_raw_sql_before_its_event_occurs(work, monkeypatch, clock):
    from datetime import timedelta

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=1))
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM app_reservation")
    clock.tick(timedelta(hours=2))
    work()
    event = Event.objects.get(event_name="checkin_due")
    assert (event.status, event.entity) == ("cancelled", None)
    assert "deleted" in event.error
    assert stay.pk


def test_a_model_at_the_address_of_one_that_is_gone_records_its_events_once(monkeypatch):
    """Django's signals tell senders apart by their addresses, and keep receivers of classes that were deleted."""
    with monkeypatch.context() as patch:
        patch.setattr(Reservation._meta, "object_name", "Gone")
        connect_model(Reservation)
    entity = Reservation.objects.create(status="confirmed")
    recorded = Event.objects.of(entity).filter(event_name="reservation_confirmed")
    assert [event.active_key is not None for event in recorded] == [True]
