"""An occurrence that starts one row at most is one statement on PostgreSQL: it writes what the transaction writes."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from pydantic import BaseModel

from django_ai.automation.db.inserts import insert_ignoring
from django_ai.automation.events import occurrence
from django_ai.automation.events.callbacks import callbacks_of, on_event
from django_ai.automation.events.execution import new_execution
from django_ai.automation.events.models import CallbackExecution, Event, EventStatus
from django_ai.automation.queues import positions
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.lease import revoke
from django_ai.automation.workflows.core import complete, event_workflow, step
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Ticket

pytestmark = pytest.mark.django_db(transaction=True)

IS_POSTGRESQL = connection.vendor == "postgresql"


def start_run(name: str = "flow") -> None:
    @event_workflow("ticket_closed", name=name)
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()


def call() -> None:
    @on_event("ticket_closed", name="called")
    def called(event):
        pass


@pytest.fixture
def in_one_statement(monkeypatch):
    """Collect whether each attempt at one statement has written the occurrence."""
    found = []
    original = occurrence._occur_in_one_statement

    def noting(*arguments):
        kept = original(*arguments)
        found.append(bool(kept))
        return kept

    monkeypatch.setattr(occurrence, "_occur_in_one_statement", noting)
    return found


@pytest.fixture
def bound():
    """A position that this process knows, so that a statement can find the bound."""
    with transaction.atomic():
        (position,) = positions.allocate(1)
    assert positions.lower_bound() == position


DIFFERENT = {
    "id", "event_id", "entity_id", "active_key", "origin_key", "unique_key", "call_key", "caused_by", "payload",
    "at", "event_created_at", "occurred_at", "created_at", "wake_at", "position", "fired_position",
}  # fmt: skip
"""Columns whose values differ each time."""


def columns_of(row) -> dict[str, object]:
    names = {field.attname for field in row._meta.concrete_fields} - DIFFERENT
    return {name: getattr(row, name) for name in names}


def written() -> tuple[dict[str, object], list[dict[str, object]]]:
    """Return what the occurrence has written: the columns of the event, and of each row that it has started."""
    event = Event.objects.get(declared_as="ticket_closed")
    assert event.status == EventStatus.PROCESSED
    assert event.position == event.fired_position
    assert event.payload["event_id"] == event.pk
    runs, calls = list(WorkflowRun.objects.all()), list(CallbackExecution.objects.all())
    for row in (*runs, *calls):
        assert (row.event_id, row.created_at, row.wake_at) == (event.pk, event.occurred_at, event.occurred_at)
    for run in runs:
        assert 0 < run.position < event.position
    return columns_of(event), [columns_of(row) for row in (*runs, *calls)]


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize(
    ("subscribe", "count"),
    [([], 0), ([start_run], 1), ([call], 1), ([call, start_run], 2)],
    ids=["nothing", "run", "call", "both"],
)
def test_it_writes_what_the_transaction_writes(subscribe, count, in_one_statement, monkeypatch, clock):
    for each in subscribe:
        each()
    Ticket.objects.create(open=False)
    alone = written()
    assert in_one_statement == [IS_POSTGRESQL and count < 2]
    for model in (CallbackExecution, WorkflowRun, Event, Ticket):
        model.objects.all().delete()
    monkeypatch.setattr(occurrence, "_occur_in_one_statement", lambda *arguments: [])
    Ticket.objects.create(open=False)
    assert len(alone[1]) == count
    assert alone == written()


@pytest.mark.usefixtures("bound")
def test_the_statement_is_not_used_in_a_transaction(in_one_statement):
    call()
    with transaction.atomic():
        Ticket.objects.create(open=False)
        hooks, connection.run_on_commit = connection.run_on_commit, []
        for _, hook, *_ in hooks:
            hook()
    assert in_one_statement == [False]
    assert len(written()[1]) == 1


@pytest.mark.usefixtures("bound")
def test_a_missing_key_of_an_arrival_leaves_it_to_the_transaction(in_one_statement):
    """Its owner may still commit, so a statement cannot find the bound."""
    start_run()
    with pytest.raises(RuntimeError), transaction.atomic():
        positions.allocate(1)
        raise RuntimeError
    with transaction.atomic():
        positions.allocate(1)
    Ticket.objects.create(open=False)
    assert in_one_statement == [False]
    assert len(written()[1]) == 1
    Ticket.objects.create(open=False)
    assert in_one_statement == [False, IS_POSTGRESQL]  # by now the process knows that the key never comes
    assert WorkflowRun.objects.count() == 2


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("subscribe", [start_run, call])
def test_a_lost_lease_writes_nothing(subscribe, in_one_statement, monkeypatch):
    subscribe()
    prepare = occurrence._prepare

    def lose_lease(evaluations, now):
        prepare(evaluations, now)
        revoke(Event.objects.filter(pk=evaluations[0].event.pk), status=EventStatus.CANCELLED, wake_at=None)

    monkeypatch.setattr(occurrence, "_prepare", lose_lease)
    Ticket.objects.create(open=False)
    assert in_one_statement == [False]
    assert Event.objects.get(declared_as="ticket_closed").status == EventStatus.CANCELLED
    assert not WorkflowRun.objects.exists()
    assert not CallbackExecution.objects.exists()


@pytest.mark.usefixtures("bound")
def test_what_was_started_already_is_not_started_again(in_one_statement, monkeypatch):
    call()
    prepare = occurrence._prepare
    rung = []
    monkeypatch.setattr(occurrence, "ring_after_commit", lambda *arguments: rung.append(arguments))

    def start_before(evaluations, now):
        prepare(evaluations, now)
        insert_ignoring(CallbackExecution, [new_execution(evaluations[0].event, callback, "", now)])

    (callback,) = callbacks_of("ticket_closed", "")
    monkeypatch.setattr(occurrence, "_prepare", start_before)
    Ticket.objects.create(open=False)
    assert in_one_statement == [IS_POSTGRESQL]
    assert len(written()[1]) == 1
    assert not rung


@pytest.mark.skipif(not IS_POSTGRESQL, reason="SQLite adds no constraint to a table")
@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("subscribe", [start_run, call])
def test_an_insert_that_fails_undoes_the_occurrence(subscribe):
    subscribe()
    model = WorkflowRun if subscribe is start_run else CallbackExecution
    name = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {name} ADD CONSTRAINT refused CHECK (priority > 0) NOT VALID")
    try:
        Ticket.objects.create(open=False)
        event = Event.objects.get(declared_as="ticket_closed")
        assert event.status == EventStatus.PENDING
        assert event.position is None
        assert not model.objects.exists()
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {name} DROP CONSTRAINT refused")
    Event.objects.update(lease=None, wake_at=event.event_created_at)
    drain()
    assert Event.objects.get(pk=event.pk).status == EventStatus.PROCESSED
    assert model.objects.count() == 1
