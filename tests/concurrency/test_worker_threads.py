"""Threads of one worker process: what they do beside each other, and what they share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import agent, complete, engine, handler, on_event, step, workflow
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes import threads as threads_module
from django_ai.automation.queues.runtimes.threads import WorkerThreads
from django_ai.automation.queues.signals import rows_claimed
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.reservations.models import Effect, Reservation, Ticket
from tests.support.polling import until
from tests.support.rows import effects, leave
from tests.support.worker_threads import MANY, Worker, worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _silent():
    """Only the threads of the test perform rows."""
    set_notifier(None)


class Meeting:
    """A point that code passes only when ``number`` threads are there at the same time."""

    def __init__(self, number: int = MANY) -> None:
        self.barrier = threading.Barrier(number)

    def wait(self) -> None:
        self.barrier.wait(60)


class Job(BaseModel):
    number: int = 0


def start_meeting(body: Callable[[], object]) -> None:
    """Start ``MANY`` runs whose one step, without a transaction, calls ``body``."""

    @workflow("meets")
    class Meets:
        Context = Job

        @step(start=True, atomic=False)
        def begin(self):
            body()
            return complete()

    for number in range(MANY):
        engine.start("meets", number=number)


def test_steps_that_wait_wait_together():
    """Each step returns only when all of them have begun, so one thread alone would never finish."""
    meeting = Meeting()

    start_meeting(lambda: (leave("came"), meeting.wait()))
    with worker() as running:
        running.perform()
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
    assert StepExecution.objects.count() == MANY
    assert effects() == ["came"] * MANY
    until(lambda: sum(running.performed) == MANY, 20, "The report of each row")


def test_coroutines_share_one_event_loop_and_each_has_the_connection_of_its_thread():
    loops, threads = set(), []
    meeting: list[asyncio.Event] = []

    @workflow("meets")
    class Meets:
        Context = Job

        @step(start=True, atomic=False)
        async def begin(self):
            loop = asyncio.get_running_loop()
            if not meeting:
                meeting.append(asyncio.Event())
            loops.add(loop)
            threads.append(threading.get_ident())
            await Effect.objects.acreate(name="came")
            if len([each async for each in Effect.objects.all()]) == MANY:
                meeting[0].set()
            await asyncio.wait_for(meeting[0].wait(), 60)
            return complete()

    for number in range(MANY):
        engine.start("meets", number=number)
    with worker() as running:
        running.perform()
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
    assert (len(loops), len(set(threads)), effects()) == (1, 1, ["came"] * MANY)


def test_callbacks_wait_together_too():
    meeting = Meeting()

    @on_event("reservation_confirmed", atomic=False)
    def call(event):
        meeting.wait()
        leave("called")

    for _ in range(MANY):
        Reservation.objects.create(status="confirmed")
    with worker() as running:
        running.perform()
    assert effects() == ["called"] * MANY


def test_the_handlers_of_one_agent_stay_one_after_the_other():
    now: list[int] = []
    most: list[int] = []

    @agent("guide", spawn_on="reservation_confirmed")
    class Guide:
        class Context(BaseModel):
            tickets: int = 0

        @classmethod
        def create_context(cls, event):
            return cls.Context()

        @handler("ticket_closed", atomic=False)
        def note(self, ctx, event):
            now.append(1)
            time.sleep(0.05)  # long enough for another thread to be offered work
            most.append(len(now))
            now.pop()
            ctx.tickets += 1

    Reservation.objects.create(status="confirmed")
    drain()
    for _ in range(MANY):
        Ticket.objects.create(open=False)
    with worker() as running:
        running.perform()
    assert HandlerExecution.objects.filter(status="completed").count() == MANY
    assert most == [1] * MANY


def test_work_that_does_not_wait_stays_in_one_thread(monkeypatch):
    monkeypatch.setattr(threads_module, "WAITING_AFTER_SECONDS", 60.0)  # no step is so slow, on any machine
    seen = set()

    @workflow("computes")
    class Computes:
        Context = Job

        @step(start=True)
        def begin(self):
            seen.add(threading.get_ident())
            return complete()

    for number in range(30):
        engine.start("computes", number=number)
    with worker() as running:
        running.perform()
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_rows_behind_a_waiting_one_are_released_for_the_others():
    """The first thread claims several rows, and waits in the first of them."""
    meeting = Meeting()
    drain()  # forgets how long rows took in other tests

    start_meeting(meeting.wait)
    with worker() as running:
        running.perform()
    assert set(WorkflowRun.objects.values_list("status", "losses")) == {("completed", 0)}


def test_a_coroutine_that_waits_passes_the_rows_behind_it_on():
    """The main thread offers once. Each step ends only when all of them have begun."""
    claimed: list[int] = []
    meeting = start_awaited_meeting()

    def note(sender, count, **kwargs):
        if sender is WorkflowRun:
            claimed.append(count)

    rows_claimed.connect(note)
    try:
        with worker() as running:
            running.threads.offer()
            until(lambda: WorkflowRun.objects.filter(status="completed").count() == MANY, 60, "The end of the work")
    finally:
        rows_claimed.disconnect(note)
    assert meeting == set(range(MANY))
    assert claimed[0] == 2  # as many as a quarter of the free threads, and one for the thread itself
    assert sum(claimed) == MANY
    assert set(WorkflowRun.objects.values_list("losses", flat=True)) == {0}


def start_awaited_meeting() -> set[int]:
    """Start ``MANY`` runs whose coroutines wait for each other. Return the set of those that came."""
    came: set[int] = set()
    all_came: list[asyncio.Event] = []

    @workflow("meets")
    class Meets:
        Context = Job

        @step(start=True, atomic=False)
        async def begin(self):
            if not all_came:
                all_came.append(asyncio.Event())
            came.add(self.context.number)
            if len(came) == MANY:
                all_came[0].set()
            await asyncio.wait_for(all_came[0].wait(), 60)
            return complete()

    for number in range(MANY):
        engine.start("meets", number=number)
    return came


def test_coroutines_that_do_not_wait_stay_in_one_thread(monkeypatch):
    monkeypatch.setattr(threads_module, "WAITING_AFTER_SECONDS", 60.0)

    @workflow("computes")
    class Computes:
        Context = Job

        @step(start=True, atomic=False)
        async def begin(self):
            return complete()

    for number in range(30):
        engine.start("computes", number=number)
    with worker() as running:
        running.perform()
        assert len(running.threads._members) == 1


def test_without_a_free_thread_rows_behind_a_waiting_one_are_released(monkeypatch):
    monkeypatch.setattr(WorkerThreads, "places", lambda self: MANY)
    began, go = threading.Event(), threading.Event()
    drain()  # forgets how long rows took in other tests
    start_meeting(lambda: (began.set(), go.wait(60)))
    with worker(limit=1) as running:
        running.threads.offer()
        assert began.wait(30)
        until(lambda: not running.threads.hand_on(), 30, "The release")
        assert WorkflowRun.objects.filter(lease__isnull=False).count() == 1
        go.set()
        running.perform()
    assert set(WorkflowRun.objects.values_list("status", "losses")) == {("completed", 0)}


def test_threads_keep_within_their_connections():
    """All of them wait, and more of them than there are connections."""
    meeting = Meeting()
    seen: list[int] = []

    start_meeting(lambda: (meeting.wait(), seen.append(running.threads.connection_slots.taken)))
    with worker(max_connections=2) as running:
        running.perform()
    assert max(seen) <= 2
    assert running.threads.connection_slots.taken == 0  # all have ended


def test_what_a_thread_raises_reaches_the_main_thread(monkeypatch):
    with worker() as running:
        running.threads._drain = lambda **options: 1 / 0
        with pytest.raises(ZeroDivisionError):
            running.perform()
            until(lambda: running._offer() and False, 20, "The failure")


def test_a_graceful_stop_finishes_running_steps_and_starts_no_other():
    began, go = threading.Event(), threading.Event()

    @workflow("slow")
    class Slow:
        Context = Job

        @step(start=True, atomic=False)
        def begin(self):
            began.set()
            go.wait(60)
            leave("done")
            return complete()

    first = engine.start("slow")
    running = Worker(1, 4)
    until(lambda: (running._offer(), began.is_set())[1], 30, "The start")
    second = engine.start("slow")
    running.is_stopping = True
    threading.Timer(0.1, go.set).start()
    assert running.threads.finish(lambda: False)
    for run in (first, second):
        run.refresh_from_db()
    assert (first.status, second.steps.count(), effects()) == ("completed", 0, ["done"])


def test_after_the_grace_a_condition_that_waits_is_cancelled_and_its_event_released(declare):
    asked = threading.Event()

    async def holds(ticket):
        if await sync_to_async(lambda: threading.current_thread() is threading.main_thread())():
            return True  # at the save
        asked.set()
        return await asyncio.sleep(60, True)

    declare(Ticket, EventDefinition("ticket_due", holds, date_field="due_at"))
    Ticket.objects.create(due_at=timezone.now() + timedelta(seconds=0.2))
    running = Worker(2, 4)
    until(lambda: (running._offer(), asked.is_set())[1], 30, "The evaluation")
    running.is_stopping = True
    assert running.threads.finish(lambda: True)
    event = Event.objects.get()
    assert (event.status, event.lease, event.losses, event.attempt) == ("pending", None, 0, 0)
    assert event.wake_at is not None


@pytest.mark.parametrize("how", ["async", "python", "blocked"])
def test_after_the_grace_running_rows_are_released_without_a_loss(how, monkeypatch):
    monkeypatch.setattr(threads_module, "INTERRUPT_SECONDS", 2.0 if how != "blocked" else 0.2)
    began, go = threading.Event(), threading.Event()
    cleaned: list[str] = []

    def python(self):
        began.set()
        try:
            while True:
                time.sleep(0.001)
        finally:
            for _ in range(200):
                time.sleep(0.001)
            cleaned.append("python")

    def blocked(self):
        began.set()
        go.wait(60)
        return complete()

    async def waits(self):
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.2)  # what cleans up is not interrupted again
            cleaned.append("async")

    begin = {"async": waits, "python": python, "blocked": blocked}[how]
    begin.__name__ = "begin"
    workflow("slow")(type("Slow", (), {"Context": Job, "begin": step(start=True, atomic=False)(begin)}))
    run = engine.start("slow")
    running = Worker(2, 4)
    until(lambda: (running._offer(), began.is_set())[1], 30, "The start")
    running.is_stopping = True
    assert running.threads.finish(lambda: True) is (how != "blocked")
    assert cleaned == ([how] if how != "blocked" else [])
    run.refresh_from_db()
    assert (run.lease, run.losses, run.attempt, run.finished_at) == (None, 0, 0, None)
    assert run.wake_at is not None
    go.set()
    until(lambda: not running.threads.are_busy, 30, "The end of the thread, whose late write is refused")
    run.refresh_from_db()
    assert run.status != "completed"
