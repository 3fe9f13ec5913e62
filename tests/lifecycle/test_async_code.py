"""Steps, handlers, callbacks and hooks that are ``async def``: their writes, their causes, their errors."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from datetime import timedelta

import pytest
from asgiref.sync import sync_to_async
from django.db import connection
from pydantic import BaseModel

from django_ai.automation import (
    Batch,
    agent,
    complete,
    engine,
    event_workflow,
    goto,
    handler,
    on_event,
    on_fail,
    step,
    workflow,
)
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.core import Retry, get_run, idempotency_key
from tests.apps.reservations.models import Effect, Reservation
from tests.support.rows import effects, history, the_run
from tests.support.workflows import flow, hook, run

pytestmark = pytest.mark.django_db(transaction=True)

ONCE = Retry(max_attempts=1)
SECRET: contextvars.ContextVar[str] = contextvars.ContextVar("secret", default="")


def test_steps_are_awaited_and_write_in_their_transaction(work):
    threads = []

    async def first(self):
        await asyncio.sleep(0)
        await Effect.objects.acreate(name="first")
        threads.append(await sync_to_async(threading.get_ident)())
        self.context.n = 7
        return goto(self.second)

    async def second(self):
        assert await sync_to_async(lambda: connection.in_atomic_block)()
        await Effect.objects.acreate(name=f"second {self.context.n} {get_run().name} {bool(idempotency_key())}")
        return complete()

    flow(first, second=second)
    found = run(work)
    assert (found.status, history(found)) == ("completed", [("first", 1, "goto"), ("second", 1, "complete")])
    assert effects() == ["first", "second 7 flow True"]
    assert threads == [threading.get_ident()]  # that of the attempt, whose connection and transaction these writes use


def test_an_async_attempt_that_raises_is_rolled_back_and_keeps_its_context(work):
    async def first(self):
        self.context.n += 1
        await Effect.objects.acreate(name="lost")
        raise ValueError("no")

    async def failed(self, error):
        await Effect.objects.acreate(name=f"failed with {self.context.n}: {error.splitlines()[-1]}")

    flow(first, retry=ONCE, failed=hook(on_fail, failed))
    assert run(work).status == "failed"
    assert effects() == ["failed with 1: ValueError: no"]


def test_what_async_code_saves_has_its_run_as_the_cause(work):
    async def first(self):
        await Reservation(status="confirmed").asave()
        return complete()

    flow(first)
    found = run(work)
    assert found.status == "completed", found.error
    assert set(Event.objects.values_list("caused_by", flat=True)) == {f"workflow:{found.pk}:first"}


def test_async_code_calls_the_engine_in_its_transaction(work):
    async def first(self):
        await sync_to_async(engine.start)("child")
        if self.context.n == 0:
            self.context.n = 1
            raise ValueError("the child of this attempt is rolled back")
        return complete()

    flow(lambda self: complete(), name="child")
    flow(first, retry=Retry(max_attempts=2, base_delay=timedelta(0)))
    found = run(work)
    assert found.status == "completed"
    assert the_run(name="child").caused_by == f"workflow:{found.pk}:first"  # there is one


def test_context_variables_follow_in_and_out(work):
    async def first(self):
        assert SECRET.get() == "in"
        SECRET.set("out")
        return complete()

    flow(first)
    SECRET.set("in")
    assert run(work).status == "completed"
    assert SECRET.get() == "out"


def test_callbacks_and_handlers_are_awaited(work):
    @on_event("reservation_confirmed", atomic=False)
    async def called(event):
        await Effect.objects.acreate(name=f"called {event.event_name}")

    @agent("guide", spawn_on="reservation_confirmed")
    class Guide:
        class Context(BaseModel):
            pass

        @handler("reservation_confirmed", atomic=False)
        async def greet(self, ctx, event):
            await asyncio.sleep(0)
            await Effect.objects.acreate(name=f"greeted {event.event_name}")

    Reservation.objects.create(status="confirmed")
    work()
    assert sorted(effects()) == ["called reservation_confirmed", "greeted reservation_confirmed"]
    assert CallbackExecution.objects.get().status == HandlerExecution.objects.get().status == "completed"


def test_an_event_workflow_may_be_async_and_cancelled_code_ends_its_attempt_only(work):
    @event_workflow("reservation_confirmed", name="greeting", default_retry=ONCE)
    class Greeting:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def begin(self):
            raise asyncio.CancelledError("user code cancels itself")

    Reservation.objects.create(status="confirmed")
    work()
    found = the_run(name="greeting")
    assert found.status == "failed"
    assert "CancelledError" in found.error


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_real_seconds_a_coroutine_is_ended_at_its_timeout_and_cleans_up(atomic):
    cleaned: list[bool] = []

    @workflow("waiting", default_retry=ONCE)
    class Waiting:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=atomic, timeout=timedelta(seconds=1))
        async def begin(self):
            await Effect.objects.acreate(name="before")
            try:
                await asyncio.sleep(60)
            finally:
                cleaned.append(True)

    found = engine.start("waiting")
    drain(heartbeat=True)
    found.refresh_from_db()
    assert (found.status, cleaned) == ("failed", [True])
    assert "longer than its timeout of 1 s" in found.error
    assert effects() == ([] if atomic else ["before"])


def test_a_timeout_of_the_code_itself_is_an_ordinary_error():
    async def first(self):
        async with asyncio.timeout(0):
            await asyncio.sleep(60)

    flow(first, retry=ONCE)
    found = engine.start("flow")
    drain(heartbeat=True)
    found.refresh_from_db()
    assert found.status == "failed"
    assert found.error.splitlines()[-1].startswith("TimeoutError")


def test_a_generator_is_refused():
    with pytest.raises(DefinitionError, match="not a generator"):

        @step
        async def begin(self):
            yield


def test_an_async_callback_and_an_async_handler_read_the_entity_of_their_event(work):
    @on_event("reservation_confirmed")
    async def confirmed(event):
        await Effect.objects.acreate(name=f"callback {event.entity.note}")

    @on_event("reservation_confirmed", batch=Batch(size=1, timeout=timedelta(minutes=5)))
    async def of_many(events):
        await Effect.objects.acreate(name=f"batch {[event.entity.note for event in events]}")

    @agent("reader", spawn_on="reservation_confirmed")
    class Reader:
        class Context(BaseModel):
            pass

        @handler("reservation_confirmed")
        async def read(self, event):
            await Effect.objects.acreate(name=f"handler {event.entity.note}")

    Reservation.objects.create(status="confirmed", note="sea view")
    work()
    assert sorted(effects()) == ["batch ['sea view']", "callback sea view", "handler sea view"]


def test_the_entity_is_read_although_it_was_deleted(work):
    @on_event("reservation_confirmed")
    async def confirmed(event):
        exists = await sync_to_async(lambda: Reservation.objects.exists())()
        await Effect.objects.acreate(name=f"{event.entity.note} {exists}")

    Reservation.objects.create(status="confirmed", note="sea view")
    Reservation.objects.all().delete()
    work()
    assert effects() == ["sea view False"]


def test_without_a_transaction_the_entity_takes_no_connection_from_code_that_waits(work):
    statements = []

    @on_event("reservation_confirmed", atomic=False)
    async def confirmed(event):
        with connection.execute_wrapper(lambda run, sql, *rest: statements.append(sql) or run(sql, *rest)):
            assert event.entity.note == "sea view"

    Reservation.objects.create(status="confirmed", note="sea view")
    work()
    assert CallbackExecution.objects.get().status == "completed", CallbackExecution.objects.get().error
    assert statements == []
