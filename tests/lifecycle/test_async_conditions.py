"""Conditions that are ``async def``: of events, of handlers and of workflows, wherever they are evaluated."""

from __future__ import annotations

import asyncio
import inspect
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, connections, transaction
from pydantic import BaseModel

from django_ai.automation import agent, complete, event_workflow, handler, on_event, step, why
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.queues.async_code import awaited
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.interrupt import Deadline
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect, Reservation, Ticket
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.filterwarnings("error::RuntimeWarning")]

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


class Asked:
    """A condition, ``async def``, that reads the database. It notes where it has run."""

    def __init__(self) -> None:
        self.calls: list[SimpleNamespace] = []
        self.failures = 0

    async def __call__(self, ticket) -> bool:
        await asyncio.sleep(0)
        call = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            thread=await sync_to_async(threading.get_ident)(),
            is_atomic=await sync_to_async(lambda: connection.in_atomic_block)(),
            rows=await sync_to_async(lambda: Ticket.objects.count())(),
        )
        self.calls.append(call)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the price service is away")
        return not ticket.open


@pytest.fixture
def asked(declare) -> Asked:
    """The condition of ``ticket_closed``, which a callback hears."""
    condition = Asked()
    declare(Ticket, EventDefinition("ticket_closed", condition))
    on_event("ticket_closed", name="closed")(lambda event: leave("closed"))
    return condition


def test_a_save_evaluates_it_in_its_transaction_on_its_connection(asked, work):
    with transaction.atomic():
        Ticket.objects.create(open=False)
        (call,) = asked.calls
        assert (call.thread, call.is_atomic, call.rows) == (threading.get_ident(), True, 1)
        transaction.set_rollback(True)
    assert not Event.objects.exists()
    Ticket.objects.create(open=True)
    Ticket.objects.create(open=False)
    work()
    assert effects() == ["closed"]
    assert asked.calls[-1].rows == 2


def test_asave_evaluates_it_on_the_event_loop_that_has_called_it(asked, work):
    async def view():
        ticket = await Ticket.objects.acreate(open=True)
        ticket.open = False
        await ticket.asave()
        return asyncio.get_running_loop(), await sync_to_async(threading.get_ident)()

    loop, thread = async_to_sync(view)()
    assert [(call.loop, call.thread, call.is_atomic) for call in asked.calls[:2]] == [(loop, thread, True)] * 2
    work()
    assert effects() == ["closed"]


def test_asave_under_a_server_that_runs_an_event_loop(asked, work):
    async def view():
        ticket = await Ticket.objects.acreate(open=False)
        await sync_to_async(connections.close_all)()
        return ticket, asyncio.get_running_loop()

    ticket, loop = asyncio.run(view())
    call = asked.calls[0]
    assert (call.loop, call.is_atomic, call.rows) == (loop, True, 1)
    work()
    assert (effects(), Event.objects.get().entity_id) == (["closed"], str(ticket.pk))


def test_several_saves_at_the_same_time(asked, work):
    async def view():
        await asyncio.gather(*(Ticket.objects.acreate(open=False) for _ in range(5)))

    async_to_sync(view)()
    work()
    assert effects() == ["closed"] * 5


def test_a_step_that_saves(asked, work):
    """A coroutine of the worker saves, and the condition is another one on the same thread."""

    class Nothing(BaseModel):
        pass

    @event_workflow("reservation_confirmed", name="saves")
    class Saves:
        Context = Nothing

        @step(start=True)
        async def begin(self):
            await Ticket.objects.acreate(open=False)
            return complete()

    Reservation.objects.create(status="confirmed")
    work()
    assert WorkflowRun.objects.get().status == "completed"
    assert asked.calls[0].is_atomic
    assert effects() == ["closed"]


@pytest.mark.parametrize("is_async", [True, False])
def test_an_error_is_handled_like_that_of_a_plain_function(is_async, declare, clock, work):
    failures = [1, 1, 1]

    def plain(ticket):
        if failures:
            failures.pop()
            raise ConnectionError("the price service is away")
        return True

    async def waits(ticket):
        return plain(ticket)

    declare(Ticket, EventDefinition("ticket_due", waits if is_async else plain, date_field="due_at"))
    on_event("ticket_due", name="due")(lambda event: leave("due"))
    Ticket.objects.create(due_at=clock() + HOUR)
    seen = []
    for tick in (timedelta(0), HOUR, SECOND, 2 * SECOND, 4 * SECOND):
        clock.tick(tick)
        work()
        event = Event.objects.get()
        last = event.error.strip().rpartition("\n")[2]
        seen.append((event.status, event.attempt, last))
    failed = "ConnectionError: the price service is away"
    assert seen[-1] == ("processed", 0, "")
    assert failed in [last for _, _, last in seen]
    assert effects() == ["due"]
    assert failures == []


def test_a_worker_evaluates_it_again_before_the_event_occurs(declare, clock, work):
    is_open = [False]

    async def holds(ticket):
        await asyncio.sleep(0)
        return is_open[0]

    declare(Ticket, EventDefinition("ticket_due", holds, date_field="due_at", grace=timedelta(0)))
    on_event("ticket_due", name="due")(lambda event: leave("due"))
    for is_open[0] in (True, False):  # as it is at the save, and the other at the date
        Ticket.objects.create(due_at=clock() + SECOND)
        work()
        is_open[0] = not is_open[0]
        clock.tick(SECOND)
        work()
    assert [event.status for event in Event.objects.order_by("pk")] == ["expired", "processed"]
    assert effects() == ["due"]


def test_the_reconciliation_evaluates_it(declare, clock):
    async def holds(ticket):
        return await Ticket.objects.filter(pk=ticket.pk, open=True).aexists()

    declare(Ticket, EventDefinition("ticket_due", holds, date_field="due_at"))
    Ticket.objects.bulk_create([Ticket(due_at=clock() + SECOND), Ticket(due_at=clock() + SECOND, open=False)])
    reconcile_dates(clock())
    assert sorted(Event.objects.values_list("armed", flat=True)) == [False, True]


def test_of_a_handler(work):
    async def for_even(event, ctx):
        await asyncio.sleep(0)
        return ctx.limit > await sync_to_async(lambda: Ticket.objects.count())() and not event.entity.open

    @agent("guide", spawn_on="reservation_confirmed")
    class Guide:
        class Context(BaseModel):
            limit: int = 2

        @handler("ticket_closed", condition=for_even)
        def note(self, event):
            leave("noted")

    Reservation.objects.create(status="confirmed")
    work()
    for _ in range(2):
        Ticket.objects.create(open=False)
        work()
    assert list(HandlerExecution.objects.order_by("pk").values_list("status", flat=True)) == ["completed", "skipped"]
    assert effects() == ["noted"]


def test_when_of_a_workflow_and_why(asked, work):
    async def wanted(event):
        await Effect.objects.acreate(name="asked")
        return event.entity.title != "no"

    @event_workflow("ticket_closed", name="wanted", when=wanted)
    class Wanted:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return complete()

    for title in ("yes", "no"):
        ticket = Ticket.objects.create(open=False, title=title)
    work()
    statuses = WorkflowRun.objects.order_by("pk").values_list("status", flat=True)
    assert list(statuses) == ["completed", "cancelled"]
    conditions = [each for answer in why(ticket, "wanted").answers for each in answer.conditions if each.name == "when"]
    assert [each.holds for each in conditions] == [False]


def test_in_the_thread_of_a_running_event_loop_it_is_refused():
    """Where ``DJANGO_ALLOW_ASYNC_UNSAFE`` lets code save there."""

    async def never():
        return True

    async def save(result):
        return awaited(result)

    coroutine = never()
    with pytest.raises(RuntimeError, match="event loop"):
        asyncio.run(save(coroutine))
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_many_of_them_do_not_extend_the_timeout_of_a_step():
    deadline = Deadline()
    with deadline.bound(60, connection):
        before = deadline.at
        for _ in range(100):
            with deadline.postponed(1.0) as left:
                assert 0 < left <= 60
                assert deadline.at == pytest.approx(before + 1.0)
                with deadline.postponed(1.0) as nested:
                    assert nested <= 60
        assert deadline.at == pytest.approx(before)
        assert deadline.next_check == pytest.approx(before)


def test_a_hanging_one_in_a_step_ends_with_the_timeout_of_the_step(declare):
    async def hangs(ticket):
        await asyncio.sleep(60)

    declare(Ticket, EventDefinition("ticket_closed", hangs))

    @on_event("reservation_confirmed", name="saves", timeout=timedelta(seconds=0.2))
    def saves(event):
        Ticket.objects.create(open=False)  # records the error of the condition, as any other
        leave("after")

    Reservation.objects.create(status="confirmed")
    drain(heartbeat=True)
    assert (effects(), Ticket.objects.count()) == ([], 0)
    assert "timeout of 0.2 s" in CallbackExecution.objects.get(callback="saves").error
