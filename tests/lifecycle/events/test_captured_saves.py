"""Saves and captured writes of one entity, mixed: in one transaction they are one write, in several each counts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models.signals import post_save
from django.test.utils import CaptureQueriesContext

from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CapturedWrite, Event
from django_ai.automation.events.operations import uncaptured
from django_ai.automation.events.recording.captured import hearing, replay, states
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.queues.causation import CurrentRun, running
from tests.apps.captured.models import UPDATE, Parcel
from tests.support.captured_writes import occurrences, outbox
from tests.support.fault_injection import database_failure
from tests.support.marks import not_on
from tests.support.rows import event_of

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def rows(parcel: Parcel):
    return Parcel.objects.filter(pk=parcel.pk)


# -- one transaction ---------------------------------------------------------------------------------------------------


def test_a_save_leaves_nothing_in_the_outbox(work):
    parcel = Parcel.objects.create()
    parcel.weight = 1
    parcel.save()
    parcel.delete()
    assert outbox() == []
    for name in ("parcel_created", "parcel_updated", "parcel_weighed", "parcel_deleted"):
        assert len(occurrences(name)) == 1, name


def test_a_save_and_then_an_update_are_one_write(work):
    parcel = Parcel.objects.create()
    with transaction.atomic():
        parcel.weight = 1
        parcel.save()
        rows(parcel).update(weight=2)
        rows(parcel).update(state="sent")
    assert outbox() == []
    work()
    assert len(occurrences("parcel_updated")) == 1
    assert len(occurrences("parcel_weighed")) == 1
    assert len(occurrences("parcel_sent")) == len(occurrences("parcel_shipped")) == 1
    parcel.refresh_from_db()
    parcel.save()
    assert len(occurrences("parcel_weighed")) == 1  # the last weight is known


def test_an_update_and_then_a_save_are_one_write(work):
    parcel = Parcel.objects.create()
    with transaction.atomic():
        rows(parcel).update(weight=2)
        parcel.weight = 1
        parcel.save()
    assert outbox() == []
    work()
    assert len(occurrences("parcel_updated")) == 1
    assert len(occurrences("parcel_weighed")) == 1


def test_what_is_bulk_created_and_then_saved_is_a_creation(work):
    with transaction.atomic():
        (parcel,) = Parcel.objects.bulk_create([Parcel(pk=1, state="sent")])
        parcel.save()
    work()
    assert occurrences("parcel_created") == ["1"]
    assert occurrences("parcel_updated") == ["1"]  # as with two saves
    assert occurrences("parcel_sent") == ["1"]


def test_a_creation_and_then_an_update_are_one_write(work):
    with transaction.atomic():
        parcel = Parcel.objects.create()
        rows(parcel).update(state="sent", due_at=None)
    work()
    assert len(occurrences("parcel_created")) == 1
    assert len(occurrences("parcel_sent")) == 1


def test_a_receiver_may_update_the_row_that_is_saved(work):
    def number(sender, instance, **kwargs):
        rows(instance).update(code=f"no. {instance.pk}")

    post_save.connect(number, sender=Parcel)
    try:
        parcel = Parcel.objects.create()
        Parcel.objects.get(pk=parcel.pk).save()
    finally:
        post_save.disconnect(number, sender=Parcel)
    assert outbox() == []
    work()
    assert len(occurrences("parcel_created")) == 1
    assert len(occurrences("parcel_updated")) == 2  # of the creation, and of the save


def test_a_save_and_then_a_raw_deletion(work):
    with transaction.atomic():
        parcel = Parcel.objects.create(code="gone", state="sent")
        rows(parcel)._raw_delete(connection.alias)
    assert outbox() == []
    work()
    assert occurrences("parcel_deleted") == [str(parcel.pk)]
    assert Event.objects.get(declared_as="parcel_sent").status == "cancelled"


def test_others_of_the_same_statement_wait_for_a_worker(work):
    with transaction.atomic():
        mine = Parcel.objects.create()
        Parcel.objects.bulk_create([Parcel(), Parcel()])
        Parcel.objects.update(weight=1)
        assert {entity_id for _, entity_id, _ in outbox()}.isdisjoint({str(mine.pk)})
        assert len(outbox()) == 4
    work()
    assert len(occurrences("parcel_created")) == 3


def test_a_rolled_back_savepoint_takes_its_save_with_it(work):
    parcel = Parcel.objects.create()
    with transaction.atomic():
        rows(parcel).update(code="first")
        with pytest.raises(RuntimeError), transaction.atomic():
            parcel.weight = 1
            parcel.save()
            raise RuntimeError
        rows(parcel).update(weight=2)
    work()
    assert len(occurrences("parcel_updated")) == 1
    assert len(occurrences("parcel_weighed")) == 1


@transaction.atomic
def twice(parcel: Parcel, weight: int) -> None:
    rows(parcel).update(weight=weight)


def test_a_decorated_function_opens_a_transaction_each_time(work):
    parcel = Parcel.objects.create()
    twice(parcel, 1)
    twice(parcel, 2)
    work()
    assert len(occurrences("parcel_weighed")) == 2


@not_on("mysql", reason="MariaDB returns no rows of an UPDATE")
def test_a_statement_may_return_rows(declare, work):
    """On SQLite no savepoint can be opened while rows are to be fetched; a condition that queries needs one."""
    declare(Parcel, EventDefinition("only", lambda parcel: Parcel.objects.count() == 2, trigger=UPDATE, capture=True))
    parcels = [Parcel.objects.create(), Parcel.objects.create()]
    keys = [(each.pk,) for each in parcels]
    with transaction.atomic(), connection.cursor() as cursor:
        parcels[0].save()
        cursor.execute("UPDATE captured_parcel SET weight = 3 RETURNING id")
        assert sorted([cursor.fetchone(), *cursor.fetchall()]) == keys
        cursor.execute("SELECT count(*) FROM captured_parcel")
        assert cursor.fetchall() == [(2,)]
        cursor.execute("UPDATE captured_parcel SET weight = 4 RETURNING id")
        assert sorted(cursor) == keys
    with running(CurrentRun("test:1", 1, "")), connection.cursor() as cursor:
        cursor.execute("UPDATE captured_parcel SET weight = 5 RETURNING id")
        assert sorted(cursor.fetchmany(5)) == keys
    with uncaptured(), connection.cursor() as cursor:
        cursor.execute("UPDATE captured_parcel SET weight = 6 RETURNING id")
        assert len(cursor.fetchmany(1)) == 1
    work()
    assert sorted(occurrences("only")) == sorted(str(pk) for (pk,) in [*keys, *keys])


# -- several transactions ----------------------------------------------------------------------------------------------


def test_a_save_records_the_writes_before_it_first(work):
    parcel = Parcel.objects.create()
    rows(parcel).update(weight=1)
    rows(parcel).update(weight=2)
    assert len(outbox()) == 2
    parcel.weight = 3
    parcel.save()
    assert outbox() == []
    assert len(occurrences("parcel_updated")) == 3
    assert len(occurrences("parcel_weighed")) == 3
    work()
    assert len(occurrences("parcel_updated")) == 3


@pytest.mark.parametrize("end", ["save", "update", "delete"])
def test_writes_of_another_transaction_come_before_an_update_and_what_follows_it(end, work):
    """No worker has recorded the first two when a transaction updates, and then saves or deletes."""
    parcel = Parcel.objects.create()
    work()
    rows(parcel).update(weight=1)
    rows(parcel).update(weight=2)
    with transaction.atomic():
        rows(parcel).update(weight=3)
        parcel.refresh_from_db()
        if end == "delete":
            parcel.delete()
        else:
            parcel.save()
        if end == "update":
            rows(parcel).update(weight=4)
    work()
    assert outbox() == []
    events = Event.objects.filter(declared_as="parcel_weighed", armed=True).order_by("pk")
    last = 4 if end == "update" else 3
    weights = [tuple(map(float, event.changes["weight"])) for event in events]
    assert weights == [(0, 1), (1, 2), (2, last)]
    assert Event.objects.filter(declared_as="parcel_updated", armed=True).count() == 3


def test_writes_of_another_transaction_come_first_after_a_save_that_was_rolled_back(work):
    parcel = Parcel.objects.create()
    work()
    rows(parcel).update(weight=1)
    with transaction.atomic():
        with pytest.raises(RuntimeError), transaction.atomic():
            parcel.save()
            raise RuntimeError
        rows(parcel).update(weight=2)
    work()
    events = Event.objects.filter(declared_as="parcel_weighed", armed=True).order_by("pk")
    assert [tuple(map(float, event.changes["weight"])) for event in events] == [(0, 1), (1, 2)]
    assert len(occurrences("parcel_updated")) == 2


def test_a_save_after_bulk_create_finds_a_new_entity(work):
    (parcel,) = Parcel.objects.bulk_create([Parcel(pk=1, state="sent")])
    parcel.save()
    work()
    assert occurrences("parcel_created") == ["1"]
    assert occurrences("parcel_updated") == ["1"]
    assert occurrences("parcel_sent") == ["1"]  # and not "it held before the first save"


def test_a_deletion_records_the_writes_before_it_first(work):
    (parcel,) = Parcel.objects.bulk_create([Parcel(pk=1)])
    rows(parcel).update(weight=2)
    parcel.refresh_from_db()
    parcel.delete()
    assert outbox() == []
    work()
    assert occurrences("parcel_deleted") == ["1"]
    created = Event.objects.get(declared_as="parcel_created")
    assert created.status == "cancelled"  # it had not occurred yet


def test_a_new_row_of_the_key_that_raw_sql_deleted(work):
    parcel = Parcel.objects.create(state="sent", code="old")
    rows(parcel)._raw_delete(connection.alias)
    Parcel.objects.create(pk=parcel.pk, state="sent", code="new")
    assert outbox() == []
    work()
    key = str(parcel.pk)
    assert occurrences("parcel_created") == [key, key]
    assert occurrences("parcel_sent") == [key, key]
    assert Event.objects.get(declared_as="parcel_deleted").entity.code == "old"


def test_the_reconciliation_records_the_writes_before_it(clock, work):
    Parcel.objects.bulk_create([Parcel(pk=1, due_at=clock.now + timedelta(minutes=1), state="sent")])
    reconcile_dates(clock.now)
    assert outbox() == []
    work()
    assert occurrences("parcel_created") == ["1"]
    assert event_of(Parcel.objects.get(), "parcel_due").status == "pending"


def test_a_write_that_cannot_be_recorded_does_not_fail_a_save(clock, work, monkeypatch):
    parcel = Parcel.objects.create()
    rows(parcel).update(weight=1)
    with monkeypatch.context() as patch:
        patch.setattr(states, "value_of", lambda *args: 1 / 0)
        parcel.weight = 2
        parcel.save()
        parcel.save()  # what is parked is not tried again by each save
    row = CapturedWrite.objects.get()
    assert (row.status, row.operation, "ZeroDivisionError" in row.error) == ("parked", "update", True)
    assert row.waits_for(clock.now).startswith("an operator")
    work()
    assert len(occurrences("parcel_weighed")) == 1
    row.resume(clock.now)
    work()
    assert outbox() == []
    assert len(occurrences("parcel_updated")) == 3


def test_a_write_that_cannot_be_recorded_does_not_fail_a_deletion_or_a_bulk_write(monkeypatch):
    parcels = [Parcel.objects.create(), Parcel.objects.create()]
    Parcel.objects.update(weight=1)
    monkeypatch.setattr(states, "value_of", lambda *args: 1 / 0)
    parcels[0].delete()
    with transaction.atomic():
        parcels[1].save()
        Parcel.objects.update(weight=3)
    assert set(CapturedWrite.objects.values_list("status", flat=True)) == {"parked"}
    assert Parcel.objects.get().weight == 3


def test_a_failure_of_the_database_fails_the_save(monkeypatch):
    parcel = Parcel.objects.create()
    rows(parcel).update(weight=1)

    def fail(*args, **kwargs):
        connection.errors_occurred = True  # as when a statement has failed
        raise database_failure()

    monkeypatch.setattr(replay, "replay", fail)
    with pytest.raises(OperationalError):
        parcel.save()
    assert [each.status for each in CapturedWrite.objects.all()] == ["pending"]


# -- its cost ----------------------------------------------------------------------------------------------------------


def test_a_save_costs_one_statement_more(declare):
    definition = EventDefinition("parcel_due", date_field="due_at", capture=True)
    plain = EventDefinition("parcel_due", date_field="due_at", capture=False)
    parcel = Parcel.objects.create()
    counts = []
    for each in (plain, definition):
        declare(Parcel, each)
        with transaction.atomic():
            parcel.save()  # on MariaDB and SQLite the first write of a transaction has one statement more
            with CaptureQueriesContext(connection) as queries:
                parcel.save()
        counts.append(len(queries))
    assert counts[1] == counts[0] + 1


def test_of_many_saved_entities_only_those_are_read_that_a_statement_has_written(work, monkeypatch):
    monkeypatch.setattr(hearing, "FEW_SAVED", 1)
    with transaction.atomic():
        parcels = [Parcel.objects.create() for _ in range(5)]
        Parcel.objects.bulk_create([Parcel(pk=9_001)])
        rows(parcels[3]).update(weight=1)
        with CaptureQueriesContext(connection) as queries:
            rows(parcels[2]).update(weight=1)
        asked = [each["sql"] for each in queries if "_capturedwrite" in each["sql"] and "entity_id IN" in each["sql"]]
        assert asked
        assert not any(f"'{parcels[3].pk}'" in each for each in asked)
        parcels[2].weight = 2
        parcels[2].save()
    assert outbox() == [("parcel", "9001", "insert")]
    work()
    assert sorted(occurrences("parcel_weighed")) == sorted(str(each.pk) for each in parcels[2:4])
