"""Two workers, a worker and a save, on the captured writes of the same entities."""

from __future__ import annotations

from functools import partial

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from django_ai.automation.db.deadlocks import retry_on_deadlock
from django_ai.automation.events.models import CapturedWrite, Event
from django_ai.automation.events.recording.captured.performing import BUSY_DELAY, perform_writes
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from tests.apps.captured.models import Cabinet, Parcel
from tests.support.captured_writes import occurrences, outbox
from tests.support.polling import until
from tests.support.race import OtherThread, row_locks, someone_waits, together

pytestmark = pytest.mark.django_db(transaction=True)


def test_rows_of_one_entity_that_two_workers_have_leased_are_recorded_once():
    parcel = Parcel.objects.create()
    for weight in range(1, 5):
        Parcel.objects.update(weight=weight)
    now = timezone.now()
    first, second = claim(CapturedWrite, now, 2), claim(CapturedWrite, now, 2)
    assert [len(first), len(second)] == [2, 2]
    assert together(lambda: perform_writes(second, timezone.now), lambda: perform_writes(first, timezone.now)) == []
    drain()
    assert outbox() == []
    assert occurrences("parcel_weighed") == [str(parcel.pk)] * 4
    assert len(occurrences("parcel_updated")) == 4


@pytest.mark.slow
def test_many_workers_and_writers_count_each_write_once():
    Parcel.objects.bulk_create([Parcel(code=str(n)) for n in range(30)])

    def add_to_all() -> None:
        with transaction.atomic():
            # In the order of the keys, as projects must write, too.
            list(Parcel.objects.select_for_update().order_by("pk").values_list("pk"))
            Parcel.objects.update(weight=F("weight") + 1)

    # MariaDB may end a deadlock at the expense of any transaction: projects repeat theirs.
    def write() -> None:
        for _ in range(5):
            retry_on_deadlock(connection.alias, add_to_all)

    def add(pk: int) -> None:
        with transaction.atomic():
            parcel = Parcel.objects.select_for_update().get(pk=pk)
            parcel.weight += 1
            parcel.save()

    def save() -> None:
        for pk in Parcel.objects.order_by("pk").values_list("pk", flat=True)[:10]:
            retry_on_deadlock(connection.alias, partial(add, pk))

    assert together(write, save, drain, drain, drain) == []
    drain()
    assert outbox() == []
    assert len(occurrences("parcel_created")) == 30
    assert len(occurrences("parcel_updated")) == 30 * 5 + 10
    assert len(occurrences("parcel_weighed")) == 30 * 5 + 10


@row_locks
def test_no_worker_waits_for_an_entity_that_others_have_locked():
    parcels = Parcel.objects.bulk_create([Parcel() for _ in range(5)])
    with transaction.atomic():
        Parcel.objects.filter(pk=parcels[2].pk).update(weight=1)
        OtherThread(drain).join()
        assert occurrences("parcel_created") == [str(each.pk) for each in parcels if each is not parcels[2]]
        (row,) = CapturedWrite.objects.filter(transaction=first_transaction(parcels[2]))
        assert row.lease is None
        assert row.wake_at > timezone.now() - BUSY_DELAY
    drain(timezone.now() + BUSY_DELAY)
    assert len(occurrences("parcel_created")) == 5
    assert len(occurrences("parcel_weighed")) == 1


def first_transaction(parcel: Parcel) -> int | None:
    rows = CapturedWrite.objects.filter(entity_id=str(parcel.pk)).order_by("pk")
    return rows.values_list("transaction", flat=True)[0]


@row_locks
def test_a_save_that_waited_for_a_bulk_write_records_that_first():
    parcel = Parcel.objects.create()
    mine = Parcel.objects.get()
    mine.weight = 5
    with transaction.atomic():
        Parcel.objects.update(weight=3)
        saver = OtherThread(mine.save)
        until(someone_waits, 20, "The save that waits for the row")
    saver.join()
    assert outbox() == []
    assert occurrences("parcel_weighed") == [str(parcel.pk)] * 2


def test_children_are_recorded_by_two_workers():
    for number in range(10):
        with connection.cursor() as cursor, transaction.atomic():
            cursor.execute("INSERT INTO captured_shelf (number, is_clean) VALUES (%s, %s)", [str(number), True])
            cursor.execute("INSERT INTO captured_cabinet (shelf_ptr_id, doors) VALUES (%s, 3)", [str(number)])
    assert together(drain, drain) == []
    drain()
    assert Cabinet.objects.count() == len(occurrences("cabinet_written")) == len(occurrences("shelf_written")) == 10
    assert not Event.objects.filter(status="cancelled").exists()
