"""How many statements events add to a save, counted inside its transaction."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows import subscriber
from django_ai.automation.workflows.core import complete, event_workflow, step
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect, Ticket
from tests.support.polling import until

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


@contextmanager
def at_most(extra: int):
    """Assert that the block, in one transaction, runs the statement of the save and at most ``extra`` more."""
    with transaction.atomic():
        connection.ensure_connection()
        Effect.objects.exists()  # starts the transaction
        with CaptureQueriesContext(connection) as queries:
            yield
        statements = [query["sql"] for query in queries]
        assert len(statements) - 1 <= extra, statements


@pytest.fixture(params=["nobody", "offsets"])
def subscribers(request):
    if request.param == "nobody":
        return
    for offset in (-HOUR, HOUR, relativedelta(days=-1)):

        @on_event("ticket_due", offset=offset, name=f"at {offset}")
        def listen(event):
            pass

    @on_event("ticket_closed")
    def closed(event):
        pass

    for number in range(2):

        @event_workflow("ticket_due", offset=-HOUR * (number + 1), name=f"flow {number}")
        class Flow:
            class Context(BaseModel):
                pass

            @step(start=True)
            def first(self):
                return complete()


@pytest.mark.usefixtures("subscribers")
@pytest.mark.parametrize("values", [{}, {"open": False}, {"dated": True}])
def test_the_first_save_costs_two_statements_at_most(values, clock):
    values = {"due_at": clock() + 9 * HOUR} if values.pop("dated", None) else values
    with at_most(2):
        Ticket.objects.create(**values)


@pytest.mark.usefixtures("subscribers")
def test_a_first_save_without_a_date_costs_one():
    with at_most(1):
        Ticket.objects.create()


@pytest.mark.usefixtures("subscribers")
@pytest.mark.parametrize("values", [{}, {"open": False}, {"dated": True}])
def test_an_update_that_changes_nothing_of_an_event_costs_one(values, clock):
    values = {"due_at": clock() + 9 * HOUR} if values.pop("dated", None) else values
    ticket = Ticket.objects.create(**values)
    ticket.title = "changed"
    with at_most(1):
        ticket.save()
    with at_most(1):
        ticket.save(update_fields=["title"])


def test_a_moved_date_costs_a_look_and_a_write(clock):
    ticket = Ticket.objects.create(due_at=clock() + 9 * HOUR)
    ticket.due_at += HOUR
    with at_most(2):
        ticket.save()


@pytest.mark.usefixtures("subscribers")
def test_the_planned_runs_are_there_all_the_same(clock, request):
    with transaction.atomic():
        Ticket.objects.create(due_at=clock() + 9 * HOUR)
    planned = 2 if "offsets" in request.node.name else 0
    assert WorkflowRun.objects.filter(status="waiting").count() == planned


def test_models_without_events_cost_nothing():
    with at_most(0):
        Effect.objects.create(name="x")


def test_a_deletion_costs_a_look_a_write_and_a_look_for_who_waits(clock):
    ticket = Ticket.objects.create(due_at=clock() + 9 * HOUR)
    with at_most(5):  # includes the savepoint around the last query
        ticket.delete()


def test_the_occurrences_of_a_commit_are_one_batch():
    def statements(number: int) -> int:
        with CaptureQueriesContext(connection) as queries, transaction.atomic():
            tickets = [Ticket(open=False) for _ in range(number)]
            for ticket in tickets:
                ticket.save()
        return len(queries) - 2 * number  # minus the inserts of entities and events

    # Each occurrence costs one fenced write; all events of a commit share the other statements.
    assert statements(20) - statements(10) <= 10


def test_an_occurrence_that_starts_a_run_costs_seven_statements_after_the_commit():
    @event_workflow("ticket_closed", name="flow")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    expected = {
        "postgresql": 2 + 7,  # claim, entity, occurrence with its run, shapes, waits, windows, release
        "sqlite": 2 + 10,  # and BEGIN IMMEDIATE, the position, the bound
    }
    sent: list[str] = []

    def is_cheap() -> bool:
        with CaptureQueriesContext(connection) as queries:
            Ticket.objects.create(open=False)
        sent[:] = [query["sql"] for query in queries]
        statements = [sql for sql in sent if sql.split()[0] not in ("BEGIN", "COMMIT", "SET")]
        return len(statements) <= expected.get(connection.vendor, 2 + 14)

    is_cheap()
    # As long as a transaction of any test beside this one might own a missing position, the bound takes more.
    until(is_cheap, 30, "An occurrence with so few statements")
    if connection.vendor == "postgresql":
        assert sent.count("BEGIN") == 1  # that of the save


def test_an_occurrence_is_notified_once(monkeypatch):
    notified = []
    wake_waiting_for = subscriber.wake_waiting_for

    def counting(events, *rest, **more):
        notified.extend(event.event_name for event in events)
        wake_waiting_for(events, *rest, **more)

    monkeypatch.setattr(subscriber, "wake_waiting_for", counting)
    Ticket.objects.create(open=False)
    drain()
    assert notified == ["ticket_closed"]
