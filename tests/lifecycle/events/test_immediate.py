"""Immediate events: they occur after the commit that makes their condition true, once, or not at all."""

from __future__ import annotations

import uuid

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording import recorder
from tests.apps.reservations.models import (
    Chore,
    Document,
    Errand,
    Guest,
    LongStay,
    Reservation,
    Room,
    Suite,
    Ticket,
    VipStay,
)
from tests.support.rows import definition_of, effects, event_of, leave, status_of, use_up_attempts

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"


@pytest.fixture(autouse=True)
def heard():
    """Leave an effect for each occurrence of the events of this file."""
    for name in (CONFIRMED, "guest_docs_uploaded", "ticket_closed", "room_cleaned", "suite_opened", "vip_arrived"):

        @on_event(name, name=f"hear {name}")
        def hear(event):
            leave(f"{event.event_name} {event.entity_id}")


def occurred(name: str = CONFIRMED) -> int:
    return Event.objects.occurred().filter(event_name=name).count()


# -- once, when the condition is true ----------------------------------------------------------------------------------


def test_a_false_condition_leaves_a_pending_row_that_wants_nobody(work):
    stay = Reservation.objects.create()
    event = event_of(stay, CONFIRMED)
    assert (event.status, event.wake_at, event.at, event.is_valid) == ("pending", None, None, False)
    assert work() == 0


@pytest.mark.exact_times
def test_the_save_that_makes_it_true_makes_it_occur(clock, work):
    stay = Reservation.objects.create()
    stay.status = "confirmed"
    stay.save()
    event = event_of(stay, CONFIRMED)
    assert (event.status, event.occurred_at, event.at) == ("processed", clock(), clock())
    work()
    assert effects() == [f"{CONFIRMED} {stay.pk}"]


def test_it_occurs_once_for_an_entity_however_often_it_turns_true(work):
    stay = Reservation.objects.create(status="confirmed")
    for status in ("pending", "confirmed", "confirmed", "pending", "confirmed"):
        stay.status = status
        stay.save()
    work()
    assert effects() == [f"{CONFIRMED} {stay.pk}"]
    assert Event.objects.of(stay).filter(event_name=CONFIRMED).count() == 1


def test_a_condition_that_flips_back_in_the_transaction_was_never_true(work):
    stay = Reservation.objects.create()
    with transaction.atomic():
        stay.status = "confirmed"
        stay.save()
        stay.status = "pending"
        stay.save()
    assert status_of(stay, CONFIRMED) == "pending"
    work()
    assert effects() == []
    stay.status = "confirmed"
    stay.save()
    assert status_of(stay, CONFIRMED) == "processed"


def test_what_the_database_says_after_the_commit_counts(work):
    with transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
        Reservation.objects.filter(pk=stay.pk).update(status="pending")
    assert status_of(stay, CONFIRMED) == "pending"
    assert work() == 0


def test_an_event_without_condition_occurs_with_the_first_save(work):
    document = Document.objects.create(reservation=Reservation.objects.create())
    assert status_of(document, "document_uploaded") == "processed"
    assert event_of(document, "document_uploaded").payload["kind"] == "passport"


def test_nothing_occurs_before_the_commit():
    with transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
        assert status_of(stay, CONFIRMED) == "pending"
    assert status_of(stay, CONFIRMED) == "processed"


# -- both or neither ---------------------------------------------------------------------------------------------------


def test_a_rollback_leaves_nothing(work):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Reservation.objects.create(status="confirmed")
        raise ZeroDivisionError
    assert not Event.objects.exists()
    work()
    assert effects() == []


def test_a_rollback_of_an_update_leaves_the_event_as_it_was(work):
    stay = Reservation.objects.create()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        stay.status = "confirmed"
        stay.save()
        raise ZeroDivisionError
    event = event_of(stay, CONFIRMED)
    assert (event.status, event.armed, event.wake_at) == ("pending", False, None)
    stay.save()  # still "confirmed" in memory
    work()
    assert effects() == [f"{CONFIRMED} {stay.pk}"]


def test_a_savepoint_that_is_rolled_back_takes_its_events_with_it(work):
    with transaction.atomic():
        first = Reservation.objects.create(status="confirmed")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            lost = Reservation.objects.create(status="confirmed")
            raise ZeroDivisionError
        second = Reservation.objects.create(status="confirmed")
    work()
    assert lost.pk is not None
    assert effects() == [f"{CONFIRMED} {first.pk}", f"{CONFIRMED} {second.pk}"]


def test_only_the_savepoint_made_it_true(work):
    stay = Reservation.objects.create()
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            stay.status = "confirmed"
            stay.save()
            raise ZeroDivisionError
        other = Reservation.objects.create(status="confirmed")
    work()
    assert effects() == [f"{CONFIRMED} {other.pk}"]
    assert status_of(stay, CONFIRMED) == "pending"


def test_a_savepoint_that_is_kept_keeps_its_events(work):
    with transaction.atomic(), transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
    work()
    assert effects() == [f"{CONFIRMED} {stay.pk}"]


@pytest.mark.parametrize("model", [Reservation, Suite])
def test_in_autocommit_entity_and_events_commit_together(model, monkeypatch):
    def out_of_order(*args, **kwargs):
        raise RuntimeError("the recorder broke")

    monkeypatch.setattr(recorder, "record", out_of_order)
    with pytest.raises(RuntimeError, match="the recorder broke"):
        model().save()
    assert not model.objects.exists()
    assert not Event.objects.exists()


def test_all_events_of_a_commit_occur_in_the_order_of_their_saves_and_definitions(work):
    with transaction.atomic():
        one = Reservation.objects.create(status="confirmed", docs=True)
        document = Document.objects.create(reservation=one)
        two = Reservation.objects.create(status="confirmed", docs=True)
    rows = Event.objects.occurred().order_by("seq", "pk")
    assert [(row.event_name, row.entity_id) for row in rows] == [
        (CONFIRMED, str(one.pk)),
        ("guest_docs_uploaded", str(one.pk)),
        ("document_uploaded", str(document.pk)),
        (CONFIRMED, str(two.pk)),
        ("guest_docs_uploaded", str(two.pk)),
    ]
    work()
    assert effects() == [
        f"{CONFIRMED} {one.pk}",
        f"guest_docs_uploaded {one.pk}",
        f"{CONFIRMED} {two.pk}",
        f"guest_docs_uploaded {two.pk}",
    ]


def test_many_events_in_one_commit(work):
    with transaction.atomic():
        for _ in range(60):
            Reservation.objects.create(status="confirmed")
    assert occurred() == 60
    work()
    assert len(set(effects())) == 60


def test_a_process_that_dies_after_the_commit_leaves_it_to_a_worker(clock, work, monkeypatch):
    from django_ai.automation.events.commit_batch import CommitBatch

    monkeypatch.setattr(CommitBatch, "__call__", lambda self: None)
    stay = Reservation.objects.create(status="confirmed")
    work()
    assert effects() == [f"{CONFIRMED} {stay.pk}"]


# -- conditions that misbehave -----------------------------------------------------------------------------------------


def test_a_condition_that_raises_delays_its_event_and_not_the_save(monkeypatch, work):
    def broken(stay):
        raise KeyError("no such room")

    definition = definition_of(Reservation, CONFIRMED)
    right = definition.condition
    monkeypatch.setattr(definition, "condition", broken)
    stay = Reservation.objects.create(status="confirmed", docs=True)
    event = event_of(stay, CONFIRMED)
    assert (event.status, event.attempt) == ("pending", 1)
    assert "no such room" in event.error
    assert "Traceback" in event.error
    assert status_of(stay, "guest_docs_uploaded") == "processed"  # its neighbours don't pay
    monkeypatch.setattr(definition, "condition", right)
    work(event.wake_at)
    assert status_of(stay, CONFIRMED) == "processed"
    assert sorted(effects()) == [f"guest_docs_uploaded {stay.pk}", f"{CONFIRMED} {stay.pk}"]


def test_a_condition_whose_sql_fails_does_not_spoil_the_users_transaction(monkeypatch):
    def broken(stay):
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM a_table_that_is_not_there")
        return True

    monkeypatch.setattr(definition_of(Reservation, CONFIRMED), "condition", broken)
    with transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
        guest = Guest.objects.create(name="goes on")
        stay.guest = guest
        stay.save()
    stay.refresh_from_db()
    assert stay.guest == guest
    event = event_of(stay, CONFIRMED)
    assert (event.status, event.attempt) == ("pending", 1)
    assert "a_table_that_is_not_there" in event.error


def test_a_condition_whose_sql_fails_in_autocommit(monkeypatch):
    def broken(stay):
        return Reservation.objects.extra(where=["no_such_column = 1"]).exists()

    monkeypatch.setattr(definition_of(Reservation, CONFIRMED), "condition", broken)
    stay = Reservation.objects.create(status="confirmed")
    assert Reservation.objects.filter(pk=stay.pk).exists()
    assert event_of(stay, CONFIRMED).attempt == 1


def test_a_condition_may_query(monkeypatch, work):
    monkeypatch.setattr(definition_of(Reservation, CONFIRMED), "condition", lambda stay: stay.documents.exists())
    stay = Reservation.objects.create()
    assert status_of(stay, CONFIRMED) == "pending"
    with transaction.atomic():
        Document.objects.create(reservation=stay)
        stay.save()
    assert status_of(stay, CONFIRMED) == "processed"


def test_a_payload_that_raises_again_and_again_parks_the_event(monkeypatch, work):
    monkeypatch.setattr(definition_of(Reservation, CONFIRMED), "payload", lambda stay: 1 / 0)
    stay = Reservation.objects.create(status="confirmed")
    assert Reservation.objects.filter(pk=stay.pk).exists()
    use_up_attempts(event_of(stay, CONFIRMED), work)
    event = event_of(stay, CONFIRMED)
    assert event.status == "parked"
    assert "ZeroDivisionError" in event.error


@pytest.mark.parametrize("payload", [lambda stay: "text", lambda stay: {"n": float("nan")}, lambda stay: {"n": "\x00"}])
def test_a_payload_that_cannot_be_stored_parks_the_event(monkeypatch, payload):
    monkeypatch.setattr(definition_of(Reservation, CONFIRMED), "payload", payload)
    stay = Reservation.objects.create(status="confirmed", docs=True)
    assert status_of(stay, CONFIRMED) == "parked"
    assert CONFIRMED in event_of(stay, CONFIRMED).error
    assert status_of(stay, "guest_docs_uploaded") == "processed"


def test_a_payload_may_take_the_event(monkeypatch):
    monkeypatch.setattr(
        definition_of(Reservation, CONFIRMED),
        "payload",
        lambda event: {"seen": event.event_name, "of": event.entity.pk},
    )
    stay = Reservation.objects.create(status="confirmed")
    payload = event_of(stay, CONFIRMED).payload
    assert (payload["seen"], payload["of"], payload["entity_id"]) == (CONFIRMED, stay.pk, str(stay.pk))


# -- fixtures ----------------------------------------------------------------------------------------------------------


def dump(file, *labels):
    call_command("dumpdata", *labels, output=str(file), verbosity=0)


def load(file):
    call_command("loaddata", str(file), verbosity=0)


def test_a_fixture_fires_nothing_but_later_saves_do(tmp_path, work):
    Reservation.objects.create(status="confirmed")
    Reservation.objects.create()
    dump(tmp_path / "stays.json", "app.reservation")
    Reservation.objects.all().delete()
    Event.objects.all().delete()
    load(tmp_path / "stays.json")
    work()
    assert effects() == []
    assert occurred() == 0
    known, open_ = Reservation.objects.order_by("pk")
    known.save()
    work()
    assert effects() == []  # it was confirmed when it was loaded: that is the baseline
    known.docs = open_.docs = True
    known.save()
    open_.status = "confirmed"
    open_.save()
    work()
    assert sorted(effects()) == sorted(
        [f"guest_docs_uploaded {known.pk}", f"{CONFIRMED} {open_.pk}", f"guest_docs_uploaded {open_.pk}"]
    )


def test_a_fixture_over_living_rows_fires_nothing(tmp_path, work):
    stay = Reservation.objects.create(status="confirmed")
    work()
    dump(tmp_path / "stays.json", "app.reservation")
    before = list(Event.objects.values_list("pk", "status"))
    load(tmp_path / "stays.json")
    work()
    assert list(Event.objects.values_list("pk", "status")) == before
    assert effects() == [f"{CONFIRMED} {stay.pk}"]


@pytest.mark.exact_times
@pytest.mark.parametrize(
    "labels",
    [("app", "automation_events", "automation_workflows"), ("automation_workflows", "automation_events", "app")],
)
def test_everything_can_be_dumped_and_loaded(labels, tmp_path, clock, work):
    from datetime import timedelta

    @on_event("checkin_due")
    def arrive(event):
        leave(f"arrived {event.entity_id}")

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=1))
    Suite.objects.create(number="7", is_clean=True)
    work()
    before, left = list(Event.objects.order_by("pk").values()), effects()
    dump(tmp_path / "all.json", *labels)
    call_command("flush", interactive=False, verbosity=0)
    assert not Event.objects.exists()
    load(tmp_path / "all.json")
    assert list(Event.objects.order_by("pk").values()) == before
    work()
    assert effects() == left
    clock.tick(timedelta(hours=1))
    work()
    work()
    assert effects() == [*left, f"arrived {stay.pk}"]


# -- ways to save ------------------------------------------------------------------------------------------------------


def test_update_fields(work):
    stay = Reservation.objects.create()
    stay.status = "confirmed"
    stay.save(update_fields=["status"])
    assert status_of(stay, CONFIRMED) == "processed"


def test_what_update_fields_left_out_was_not_saved(work):
    stay = Reservation.objects.create()
    stay.status, stay.note = "confirmed", "late"
    stay.save(update_fields=["note"])
    assert status_of(stay, CONFIRMED) == "pending"
    work()
    assert effects() == []
    stay.save()
    work()
    assert effects() == [f"{CONFIRMED} {stay.pk}"]


def test_deferred_fields_are_no_obstacle(work):
    stay = Reservation.objects.create()
    lean = Reservation.objects.only("pk", "docs").get(pk=stay.pk)
    lean.docs = True
    lean.save()
    assert status_of(stay, "guest_docs_uploaded") == "processed"
    lean = Reservation.objects.defer("status").get(pk=stay.pk)
    lean.status = "confirmed"
    lean.save()
    assert status_of(stay, CONFIRMED) == "processed"


def test_a_condition_on_a_value_that_only_the_database_knows(declare, work):
    """``F("stars") + 1`` is how counters are written; the condition means the number."""
    suite = Suite.objects.create(number="1", stars=4)
    assert status_of(suite, "suite_opened") == "pending"
    suite.stars = F("stars") + 1
    suite.save()
    assert status_of(suite, "suite_opened") == "processed"


def test_a_value_that_only_the_database_knows_may_make_it_false(work):
    suite = Suite.objects.create(number="1", stars=4)
    suite.stars = F("stars") - 1
    suite.save()
    assert status_of(suite, "suite_opened") == "pending"
    work()
    assert effects() == []


def test_queries_that_save(work):
    Reservation.objects.update_or_create(note="x", defaults={"status": "pending"})
    assert occurred() == 0
    Reservation.objects.update_or_create(note="x", defaults={"status": "confirmed"})
    Reservation.objects.get_or_create(note="x")
    guest = Guest.objects.create(name="g")
    guest.reservation_set.create(status="confirmed")
    assert occurred() == 2


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


@pytest.mark.skipif("connection.vendor == 'mysql'", reason="MariaDB's own collation calls them one")
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


# -- keys that come again ----------------------------------------------------------------------------------------------


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
    assert "gone" in event.error
    assert stay.pk


def test_a_long_transaction_is_not_searched_for_events_that_it_has_not_made_due():
    """Each save asks whether its event is one of this transaction; the hooks are gone through for those alone."""
    from django.db import connection, transaction

    from django_ai.automation.events.commit_batch import CommitBatch
    from django_ai.automation.events.models import Event

    class Hooks(list):
        looked = 0

        def __reversed__(self):
            Hooks.looked += 1
            return super().__reversed__()

    batch = CommitBatch.of("default")
    with transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
        mine = event_of(stay, CONFIRMED)
        connection.run_on_commit = Hooks(connection.run_on_commit)  # Django takes a new list with the commit
        assert batch.has(mine)
        assert Hooks.looked == 1
        assert not batch.has(Event(pk=mine.pk + 1000))
        assert Hooks.looked == 1
