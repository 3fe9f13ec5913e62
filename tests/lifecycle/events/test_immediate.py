"""Immediate events occur at most once, after the commit that makes their condition true."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from django.db.models import F

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording import recorder
from tests.apps.reservations.models import Document, Guest, Reservation, Suite
from tests.support.immediate_events import occurred
from tests.support.rows import definition_of, effects, event_of, leave, status_of, use_up_attempts

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"


@pytest.fixture(autouse=True)
def heard():
    """Write an effect for each occurrence of these events."""
    for name in (CONFIRMED, "guest_docs_uploaded", "ticket_closed", "room_cleaned", "suite_opened", "vip_arrived"):

        @on_event(name, name=f"hear {name}")
        def hear(event):
            leave(f"{event.event_name} {event.entity_id}")


# -- one occurrence when the condition is true -------------------------------------------------------------------------


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


# -- atomicity ---------------------------------------------------------------------------------------------------------


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


# -- failing conditions and payloads -----------------------------------------------------------------------------------


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
    assert status_of(stay, "guest_docs_uploaded") == "processed"  # other events are not affected
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
    """After ``F("stars") + 1`` is saved, the condition is evaluated with the number from the database."""
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


def test_a_long_transaction_is_not_searched_for_events_that_it_has_not_made_due():
    """The commit hooks are searched only for events that this transaction has made due."""
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
        connection.run_on_commit = Hooks(connection.run_on_commit)  # Django assigns a new list at the commit
        assert batch.has(mine)
        assert Hooks.looked == 1
        assert not batch.has(Event(pk=mine.pk + 1000))
        assert Hooks.looked == 1
