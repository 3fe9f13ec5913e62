"""Scenario 35: a step that hangs fails its attempt at its timeout. A process that cannot be interrupted is replaced."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, transaction
from pydantic import BaseModel

from django_ai.automation import Retry, agent, complete, engine, handler, on_event, on_fail, step, workflow
from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.db.statements import CANCEL_SECONDS, cancel_statement
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.exceptions import AttemptTimeoutError
from django_ai.automation.queues import attempt, held_leases, interrupt
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import set_notifier
from django_ai.automation.queues.runtimes import tasks
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect
from tests.apps.story.models import Probe
from tests.support.child_processes import automation_worker, run_script
from tests.support.polling import until
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

SHORT = timedelta(milliseconds=200)
ONCE = Retry(max_attempts=1)


def sleeps() -> None:
    time.sleep(60)


def waits_for_a_socket() -> None:
    """Block like an HTTP call without a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.recv(1)


def computes() -> None:
    while True:
        sum(range(1000))


def asks_the_database() -> None:
    slow = {
        "postgresql": "SELECT pg_sleep(60)",
        "mysql": "SELECT SLEEP(60)",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    }
    with connection.cursor() as cursor:
        cursor.execute(slow[connection.vendor])


HANGS = [sleeps, waits_for_a_socket, computes, asks_the_database]


def hanging(hang: Callable[[], Any], *, retry: Retry = ONCE, atomic: bool = True) -> None:
    @workflow("hanging")
    class Hanging:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, timeout=SHORT, retry=retry, atomic=atomic)
        def begin(self):
            self.context.tries += 1
            leave("written")
            if self.context.tries == 1:
                hang()
            return complete()

        @on_fail(retry=ONCE)
        def failed(self, error):
            leave("failed")


def ended(run: WorkflowRun) -> tuple[str, str]:
    run.refresh_from_db()
    return run.status, run.error


def in_a_thread(work: Callable[[], Any]) -> None:
    def perform() -> None:
        try:
            work()
        finally:
            connection.close()

    thread = threading.Thread(target=perform)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("hang", HANGS, ids=lambda hang: hang.__name__)
def test_35_real_seconds_the_attempt_fails_after_its_timeout(hang):
    hanging(hang)
    run, started = engine.start("hanging"), time.monotonic()
    drain(heartbeat=True)
    assert time.monotonic() - started < 5
    status, error = ended(run)
    assert (status, run.losses, run.steps.count()) == ("failed", 0, 2)
    assert "longer than its timeout of 0.2 s" in error
    assert effects() == ["failed"]  # the writes of the step were rolled back, and @on_fail has run
    assert Effect.objects.count() == 1  # the connection still works


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_35_real_seconds_it_is_tried_again(atomic):
    hanging(sleeps, retry=Retry(max_attempts=2, base_delay=timedelta(0)), atomic=atomic)
    run = engine.start("hanging")
    drain(heartbeat=True)
    assert ended(run) == ("completed", "")
    assert run.steps.count() == 2
    assert effects() == (["written"] if atomic else ["written", "written"])


def test_35_real_seconds_in_a_thread_that_is_not_the_main_one():
    hanging(computes)
    run = engine.start("hanging")
    in_a_thread(lambda: drain(heartbeat=True))
    status, error = ended(run)
    assert status == "failed"
    assert "AttemptTimeoutError" in error


def test_35_code_that_returns_as_it_is_interrupted_leaves_nothing_behind_in_a_traced_thread():
    """A traced thread continues after its deadline is disarmed. On Python 3.11, its next call used to hang."""
    script = """
import sys, threading
from django_ai.automation.queues import interrupt

def tracer(frame, event, arg):
    return tracer

def work():
    sys.settrace(tracer)
    for _ in range(50):
        deadline = interrupt.Deadline()
        deadline.armed = deadline.fired = True
        deadline._disarm()
    seen.append(interrupt.timeout_message(1))

seen = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
sys.settrace(tracer)
print(interrupt.timeout_message(1), *seen)
"""
    done = run_script(script)
    assert (done.returncode, done.stdout.count("timeout of 1 s")) == (0, 2), done.stderr


def test_35_an_interrupt_while_the_deadline_is_set_does_not_reach_the_engine(monkeypatch):
    """The block of the deadline is never left then: the attempt disarms it before it commits anything."""
    seen: list[tuple[bool, interrupt.Deadline]] = []

    @contextmanager
    def interrupted_at_entry(timeout: timedelta, connection: Any) -> Iterator[None]:
        leases = held_leases.current_leases()
        assert leases is not None
        entered.append(leases.deadline.bound(timeout.total_seconds(), connection))
        entered[-1].__enter__()
        seen.append((leases.deadline.armed, leases.deadline))
        raise AttemptTimeoutError("just now")
        yield

    entered: list[Any] = []
    monkeypatch.setattr(attempt, "bounded", interrupted_at_entry)
    hanging(sleeps)
    run = engine.start("hanging")
    drain(heartbeat=True)
    assert ended(run)[0] == "failed"
    # Once for the step, and once for its ``@on_fail``.
    assert [(was_armed, deadline.armed) for was_armed, deadline in seen] == [(True, False)] * 2


def test_35_a_server_that_is_silent_is_asked_to_cancel_for_seconds_only():
    """``cancel`` of psycopg would hold Python's lock until the server answers."""
    raw = SimpleNamespace(
        info=SimpleNamespace(transaction_status=SimpleNamespace(name="ACTIVE")),
        cancel_safe=lambda *, timeout: asked.append(timeout),
    )
    asked: list[float] = []
    cancel_statement(SimpleNamespace(vendor="postgresql", connection=raw, alias="default"), None)  # type: ignore[arg-type]
    assert asked == [CANCEL_SECONDS]


def test_35_a_task_queue_that_executes_at_once_does_not_end_the_process_that_saves(monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(tasks, "drain", lambda **options: asked.append(options["expendable"]) or 0)
    tasks.drain_due()
    set_notifier(SimpleNamespace(ring=lambda alias, queues=(): tasks.drain_due()))  # type: ignore[arg-type]
    try:
        engine.start("story:count", steps=1)
    finally:
        set_notifier(None)
    assert asked == [True, False]


def test_35_real_seconds_with_other_leased_rows_and_a_beat_that_the_step_blocks(settings):
    """Attempts fail at their timeouts even if the step blocks the heartbeat (on SQLite, by the write lock)."""
    settings.AUTOMATION = {
        **settings.AUTOMATION, "LEASE": timedelta(seconds=2), "HEARTBEAT": timedelta(milliseconds=50),
    }  # fmt: skip
    hanging(sleeps)
    runs = [engine.start("hanging") for _ in range(4)]
    started = time.monotonic()
    drain(heartbeat=True)
    assert time.monotonic() - started < 20
    for run in runs:
        assert ended(run)[0] == "failed"
        assert run.losses == 0


def test_35_real_seconds_a_step_that_has_locked_its_own_row_and_those_of_others(settings):
    """The heartbeat does not wait for these locks, so every attempt fails at its timeout and no lease is lost."""
    settings.AUTOMATION = {
        **settings.AUTOMATION, "LEASE": timedelta(seconds=20), "HEARTBEAT": timedelta(milliseconds=50),
    }  # fmt: skip

    def locks() -> None:
        with transaction.atomic():
            list(WorkflowRun.objects.select_for_update())
            time.sleep(60)

    hanging(locks, atomic=False)
    runs = [engine.start("hanging") for _ in range(3)]
    started = time.monotonic()
    drain(heartbeat=True)
    assert time.monotonic() - started < 15
    for run in runs:
        assert ended(run)[0] == "failed"
        assert run.losses == 0


def test_35_real_seconds_code_that_swallows_the_exception_gets_it_again(monkeypatch):
    monkeypatch.setattr(interrupt, "SECONDS_BETWEEN_INTERRUPTS", 0.1)

    def stubborn() -> None:
        for _ in range(3):
            try:
                time.sleep(60)
            except Exception:
                leave("swallowed")

    hanging(stubborn)
    run = engine.start("hanging")
    drain(heartbeat=True)
    assert ended(run)[0] == "failed"
    assert effects() == ["failed"]


def test_35_real_seconds_callbacks_and_handlers_have_timeouts_too():
    @on_event("probe_ready", name="hangs", timeout=SHORT, retry=ONCE)
    def hangs(event):
        time.sleep(60)

    @agent("keeper", spawn_on="probe_ready", default_retry=ONCE)
    class Versioned:
        class Context(BaseModel):
            pass

        @handler("probe_ready", timeout=SHORT)
        def note(self, ctx):
            time.sleep(60)

    Probe.objects.create(name="x", ready=True)
    drain(heartbeat=True)
    for row in (CallbackExecution.objects.get(callback="hangs"), HandlerExecution.objects.get()):
        assert row.status == "failed"
        assert "timeout of 0.2 s" in row.error


def test_35_what_is_in_time_is_not_interrupted():
    """A deadline that passes while the engine commits interrupts nothing: it is armed only for user code."""

    @workflow("quick")
    class Quick:
        class Context(BaseModel):
            pass

        @step(start=True, timeout=timedelta(seconds=0.5), retry=ONCE)
        def begin(self):
            transaction.on_commit(lambda: time.sleep(0.8))
            return complete()

    run = engine.start("quick")
    drain(heartbeat=True)
    assert ended(run) == ("completed", "")


@pytest.mark.alone
@pytest.mark.parametrize("options", [(), ("--concurrency", "3")], ids=["one thread", "threads"])
@pytest.mark.parametrize("how", ["signals are blocked", "the interpreter is held"])
def test_35_real_seconds_a_process_that_cannot_be_interrupted_is_replaced(tmp_path, how, options):
    """The process exits, and its supervisor starts another process, which completes the work."""
    log = tmp_path / "worker.log"
    stuck, sound = engine.start("story:stuck", how=how), engine.start("story:count", steps=2)
    with automation_worker(log, *options, TEST_LEASE_SECONDS="2"):
        until(lambda: ended(sound)[0] == "completed", 60, "The work of a process that took its place", log)
        until(lambda: WorkflowRun.objects.get(pk=stuck.pk).status == "completed", 60, "The second attempt", log)
    assert "Restarting it" in log.read_text()
    assert stuck.steps.filter(outcome="lost").count() == 1
