"""Callbacks that touch no table: a worker writes the progress of several in one statement, and reads their events so.

What becomes of each row is the same on every database; only PostgreSQL shares statements.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from itertools import count

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues import commit_group
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.interrupt import ShutdownInterrupt
from django_ai.automation.queues.lease import revoke
from django_ai.automation.queues.observing import forget_observer, observe_attempts
from django_ai.automation.queues.signals import attempt_finished
from django_ai.automation.values.retry import Retry
from tests.apps.reservations.models import Reservation
from tests.support.fault_injection import database_failure, dying
from tests.support.marks import only_on
from tests.support.polling import until
from tests.support.race import OtherThread, until_someone_waits
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"
shares = only_on("postgresql", reason="Only PostgreSQL shares statements")


@pytest.fixture(autouse=True)
def ample_time(monkeypatch):
    """On a crowded machine an attempt may take long, and would be written alone."""
    monkeypatch.setattr(commit_group, "SHORT_SECONDS", 60.0)
    monkeypatch.setattr("django_ai.automation.queues.attempt.SHORT_SECONDS", 60.0)


@pytest.fixture
def patient(monkeypatch):
    """Let progress wait for as long as it takes."""
    monkeypatch.setattr(commit_group, "MAX_SECONDS", 60.0)
    monkeypatch.setattr("django_ai.automation.queues.drain._batch_size", lambda model: 20)


def confirm(number: int) -> None:
    with transaction.atomic():
        for _ in range(number):
            Reservation.objects.create(status="confirmed")


def perform() -> None:
    """Perform what is due as a worker does."""
    drain(heartbeat=True)


def states() -> list[tuple[str, int]]:
    return list(CallbackExecution.objects.order_by("pk").values_list("status", "attempt"))


@contextmanager
def reported():
    found: list[tuple[int, Exception | None]] = []

    def note(sender, row, error, **kwargs):
        if sender is CallbackExecution:
            found.append((row.pk, error))

    attempt_finished.connect(note)
    try:
        yield found
    finally:
        attempt_finished.disconnect(note)


def test_all_are_completed_and_each_is_reported_once(patient):
    calls: list[int] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls.append(event.pk)

    confirm(7)
    with reported() as reports:
        perform()
    assert states() == [("completed", 1)] * 7
    assert sorted(calls) == sorted(Event.objects.filter(event_name=CONFIRMED).values_list("pk", flat=True))
    assert sorted(reports) == [
        (pk, None) for pk in CallbackExecution.objects.order_by("pk").values_list("pk", flat=True)
    ]
    assert set(CallbackExecution.objects.values_list("wake_at", "lease", "losses", "seq")) == {(None, None, 0, 1)}


@shares
def test_those_of_one_claim_share_a_statement_and_the_read_of_their_events(patient):
    @on_event(CONFIRMED)
    def hear(event):
        pass

    confirm(20)
    with CaptureQueriesContext(connection) as queries:
        perform()
    assert states() == [("completed", 1)] * 20
    sent = [each["sql"] for each in queries]
    table = CallbackExecution._meta.db_table
    assert len([sql for sql in sent if f'UPDATE "{table}" AS kept' in sql]) == 1, sent
    # The first alone, as the worker does not know yet whether calls touch nothing.
    reads = [sql for sql in sent if f'FROM "{Event._meta.db_table}" WHERE "id" IN' in sql]
    assert len(reads) < 8, sent


def test_one_that_fails_is_retried_and_leaves_the_others_alone(patient):
    seen: list[int] = []

    @on_event(CONFIRMED, retry=Retry(max_attempts=1))
    def hear(event):
        seen.append(event.pk)
        if len(seen) == 3:
            raise RuntimeError("the third")

    confirm(5)
    with reported() as reports:
        perform()
    assert states() == [("completed", 1), ("completed", 1), ("failed", 1), ("completed", 1), ("completed", 1)]
    assert len(reports) == 5
    assert [str(error) for _, error in reports if error] == ["the third"]


def test_one_that_loses_its_lease_is_performed_again(patient):
    calls: list[int] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls.append(event.pk)
        if len(calls) == 2:  # what the first has done is not written yet, or it is completed
            first = CallbackExecution.objects.filter(event_id=calls[0], status="pending")
            revoke(first, wake_at=first.get().created_at if first.exists() else None)

    confirm(4)
    perform()
    assert states() == [("completed", 1)] * 4
    assert len(calls) == (5 if connection.vendor == "postgresql" else 4)
    assert calls.count(calls[0]) == len(calls) - 3


@shares
def test_slow_code_delays_the_progress_of_no_other_row(monkeypatch):
    monkeypatch.setattr("django_ai.automation.queues.drain._batch_size", lambda model: 20)
    calls: list[int] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls.append(event.pk)
        if len(calls) == 2:
            first = CallbackExecution.objects.filter(event_id=calls[0])
            until(lambda: first.get().status == "completed", 20, "The progress of the first call")

    confirm(3)
    with reported() as reports:
        perform()
    assert len(calls) == 3
    assert states() == [("completed", 1)] * 3
    assert len(reports) == 3


@shares
def test_a_locked_row_waits_alone(patient):
    calls: list[int] = []
    others: list[OtherThread] = []

    def hold_the_first() -> None:
        with transaction.atomic():
            CallbackExecution.objects.select_for_update().get(event_id=calls[0])
            is_locked.append(True)
            until_someone_waits()
            statuses.extend(CallbackExecution.objects.exclude(event_id=calls[0]).values_list("status", flat=True))

    is_locked: list[bool] = []
    statuses: list[str] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls.append(event.pk)
        if len(calls) == 2:
            others.append(OtherThread(hold_the_first))
            until(lambda: is_locked, 20, "The lock of the first row")

    confirm(4)
    perform()
    others[0].join()
    assert statuses == ["completed"] * 3
    assert states() == [("completed", 1)] * 4
    assert len(calls) == 4


@shares
@pytest.mark.parametrize("is_sent", [False, True], ids=["not written", "written, and the answer was lost"])
def test_a_common_write_that_fails_is_made_row_by_row(patient, is_sent):
    calls: list[int] = []
    failed: list[str] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls.append(event.pk)

    def fail_once(execute, sql, params, many, context):
        if "SKIP LOCKED), given AS" in sql and not failed:
            failed.append(sql)
            if is_sent:
                execute(sql, params, many, context)
            raise database_failure()
        return execute(sql, params, many, context)

    confirm(4)
    with connection.execute_wrapper(fail_once):
        perform()
    assert failed
    assert states() == [("completed", 1)] * 4
    assert len(calls) == 4
    assert set(CallbackExecution.objects.values_list("seq", flat=True)) == {1}


def test_the_end_of_the_process_in_a_later_call_loses_nothing(patient):
    calls: list[int] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls.append(event.pk)
        if len(calls) == 3:
            raise ShutdownInterrupt(0)

    confirm(4)
    with pytest.raises(ShutdownInterrupt):
        perform()
    assert states() == [("completed", 1), ("completed", 1), ("pending", 0), ("pending", 0)]
    perform()
    assert states() == [("completed", 1)] * 4
    assert len(calls) == 5


def test_a_process_that_dies_at_any_statement_repeats_only_what_wrote_nothing(patient):
    calls: Counter[int] = Counter()
    completed: list[dict[int, str]] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls[event.pk] += 1
        if int(event.entity_id) % 3 == 0:
            leave(event.entity_id)

    for statement in count(1):
        calls.clear()
        confirm(5)
        rows = CallbackExecution.objects.filter(status="pending")
        pks = list(rows.values_list("event_id", flat=True))
        with dying(statement):
            perform()
        completed.append(dict(CallbackExecution.objects.filter(event_id__in=pks).values_list("event_id", "status")))
        was_whole = set(completed[-1].values()) == {"completed"}
        rows.update(wake_at=timezone.now())  # as if the leases had run out
        while rows.exists():
            perform()
        assert set(states()) == {("completed", 1)}
        assert all(calls[pk] == 1 for pk, status in completed[-1].items() if status == "completed")
        assert all(1 <= calls[pk] <= 2 for pk in pks)
        if was_whole:
            break
    assert len(completed) > 5
    written = [int(each) for each in effects()]
    assert sorted(written) == [
        pk for pk in Reservation.objects.order_by("pk").values_list("pk", flat=True) if pk % 3 == 0
    ]


def test_what_a_call_writes_is_seen_by_the_next(patient):
    """Its event was read ahead, and must be read again."""
    seen: list[str] = []

    @on_event(CONFIRMED)
    def hear(event):
        seen.append(event.error)
        if len(seen) == 6:
            Event.objects.filter(event_name=CONFIRMED).update(error="by the sixth")

    confirm(9)
    perform()
    assert seen == [""] * 6 + ["by the sixth"] * 3


def test_two_functions_get_two_instances_of_one_event(patient):
    seen: list[tuple[str, dict]] = []

    def hear(event):
        seen.append((event.namespace, dict(event.payload)))
        event.namespace, event.payload["changed"] = "changed", True

    for number in range(3):
        on_event(CONFIRMED, name=f"function {number}")(hear)
    confirm(6)
    perform()
    assert len(seen) == 18
    assert {namespace for namespace, _ in seen} == {""}
    assert not any("changed" in payload for _, payload in seen)


def test_calls_that_write_commit_as_before(patient):
    calls: list[int] = []

    @on_event(CONFIRMED)
    def hear(event):
        calls.append(event.pk)
        if len(calls) % 2:
            leave(str(len(calls)))

    confirm(6)
    perform()
    assert effects() == ["1", "3", "5"]
    assert states() == [("completed", 1)] * 6


@shares
def test_observers_surround_the_attempt_with_its_commit(patient):
    statuses: list[str] = []

    @contextmanager
    def observer(row, current):
        yield
        statuses.append(CallbackExecution.objects.get(pk=row.pk).status)

    @on_event(CONFIRMED)
    def hear(event):
        pass

    confirm(3)
    observe_attempts("test", observer)
    try:
        perform()
    finally:
        forget_observer("test")
    assert statuses == ["completed"] * 3
