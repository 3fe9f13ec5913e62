"""Scenario 19: on SQLite another connection holds the only write lock for longer than the others wait.

A save is refused as a whole. A worker retries its claim; a step is released and retried, and uses up no attempt.
With IMMEDIATE transactions, the default unless the project sets another mode, a step that reads and then writes waits
at its beginning. With DEFERRED transactions SQLite refuses its write at once, and the step is retried.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, contextmanager
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, step, workflow
from django_ai.automation.events.models import Event
from django_ai.automation.queues.checks import check_settings
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.tasks import drain_due
from tests.apps.reservations.models import Effect, Reservation
from tests.apps.story.models import Mark
from tests.support.blocking_steps import assert_done_once
from tests.support.child_processes import start_worker
from tests.support.marks import only_on
from tests.support.polling import until
from tests.support.race import OtherThread
from tests.support.rows import effects, leave

pytestmark = [
    pytest.mark.django_db(transaction=True),
    only_on("sqlite", reason="only SQLite has one lock for all writers"),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Wait only a moment for the lock, in every thread."""
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {"timeout": 0.05})
    yield
    connection.close()


@contextmanager
def locked():
    """Hold the write lock on another connection."""
    with closing(sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


@pytest.fixture
def written():
    @workflow("written", default_retry=Retry(max_attempts=1))
    class Written:
        class Context(BaseModel):
            tries: int = 0
            atomic: bool = True

        @step(start=True)
        def inside(self):
            self.context.tries += 1
            leave("first")
            leave("second")
            return complete()

    return Written


@pytest.mark.usefixtures("written")
def test_19_locked_during_the_claim():
    run = engine.start("written")
    with locked():
        with pytest.raises(OperationalError, match="locked"):
            drain()
        assert drain_due() == 0  # the task of a queue does not raise
    drain()
    run.refresh_from_db()
    assert_done_once(run)
    assert run.losses == 0


def test_19_locked_when_the_step_commits():
    """With ``atomic=False`` the step runs outside a transaction, and its progress cannot be written."""
    held = []

    @workflow("outside", default_retry=Retry(max_attempts=1))
    class Outside:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, atomic=False)
        def work(self):
            self.context.tries += 1
            if not held:
                held.append(locked())
                held[0].__enter__()
            else:
                leave("second")
            return complete()

    run = engine.start("outside")
    drain()
    held[0].__exit__(None, None, None)
    run.refresh_from_db()
    assert (run.status, run.attempt, run.data["tries"]) == ("running", 0, 0)
    assert run.lease is not None  # the release failed too, so the lease must expire
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run, atomic=False)


def test_19_locked_while_the_web_process_saves():
    """A save writes both the row and its events, or neither: the locked save is refused, the second one succeeds."""
    with locked(), pytest.raises(OperationalError, match="locked"):
        Reservation.objects.create(status="confirmed")
    assert (Reservation.objects.count(), Event.objects.count()) == (0, 0)
    Reservation.objects.create(status="confirmed")
    assert Event.objects.filter(event_name="reservation_confirmed", status="processed").count() == 1


def test_19_a_reader_is_never_in_the_way(written):
    """With write-ahead logging, a long read transaction does not block writers."""
    engine.start("written")
    with closing(sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM app_effect").fetchall()
        drain()
        assert reader.execute("SELECT count(*) FROM app_effect").fetchone() == (0,)
    assert effects() == ["first", "second"]


@pytest.fixture
def deferred(monkeypatch):
    """Let transactions take the write lock at their first write, as a project may configure."""
    connection.close()
    options = {"transaction_mode": "DEFERRED", "timeout": 0.05}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    monkeypatch.setattr(connection, "transaction_mode", "DEFERRED")
    yield
    connection.close()


def upgrading(gate):
    """Declare "upgrade": a step that reads, stops, and writes."""

    @workflow("upgrade", default_retry=Retry(max_attempts=1))
    class Upgrade:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def work(self):
            self.context.tries += 1
            assert Effect.objects.count() in (0, 1)
            if not gate.reached.is_set():
                gate.pass_through()
            leave("first")
            leave("second")
            return complete()


@pytest.mark.usefixtures("deferred")
def test_19_a_deferred_transaction_that_read_and_then_writes(gate):
    """SQLite refuses the write at once, because the snapshot is outdated: no attempt is used up."""
    upgrading(gate)
    run = engine.start("upgrade")
    worker = OtherThread(drain)
    gate.wait_until_reached()
    Mark.objects.create(name="another's write")
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert (run.attempt, run.losses, run.lease, run.data["tries"]) == (0, 0, None, 0)
    assert effects() == []
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run)


def test_19_an_immediate_transaction_that_read_and_then_writes(gate):
    """The step has held the lock since its beginning, so the other writer is refused."""
    upgrading(gate)
    run = engine.start("upgrade")
    worker = OtherThread(drain)
    gate.wait_until_reached()
    with pytest.raises(OperationalError, match="locked"):
        Mark.objects.create(name="another's write")
    gate.opened.set()
    worker.join()
    run.refresh_from_db()
    assert_done_once(run)


def test_19_the_options_of_the_project_are_respected(monkeypatch, tmp_path):
    settings = {
        **connection.settings_dict,
        "NAME": str(tmp_path / "own.sqlite3"),
        "OPTIONS": {"transaction_mode": "DEFERRED", "timeout": 3, "init_command": "PRAGMA journal_mode=DELETE;"},
    }
    own = DatabaseWrapper(settings, "default")
    try:
        with own.cursor() as cursor:
            found = {name: cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("busy_timeout", "journal_mode")}
        assert found == {"busy_timeout": 3000, "journal_mode": "delete"}
        assert own.transaction_mode == "DEFERRED"
    finally:
        own.close()


def test_19_without_options_of_the_project_a_connection_is_tuned(tmp_path):
    own = DatabaseWrapper({**connection.settings_dict, "NAME": str(tmp_path / "own.sqlite3"), "OPTIONS": {}}, "default")
    try:
        with own.cursor() as cursor:
            found = {name: cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in ("busy_timeout", "journal_mode")}
        assert found == {"busy_timeout": 20000, "journal_mode": "wal"}
        assert own.transaction_mode == "IMMEDIATE"
    finally:
        own.close()


@pytest.mark.timeout(120)
@pytest.mark.alone
def test_19_real_seconds_workers_outlive_a_lock_of_others():
    """Three workers perform each step once, although another connection often holds the lock longer than a lease."""
    runs = [engine.start("story:count", steps=3) for _ in range(15)]
    workers = [start_worker(TEST_LEASE_SECONDS="1") for _ in range(3)]
    stop = threading.Event()
    try:
        for _ in range(3):
            with locked():
                stop.wait(1.5)
            stop.wait(0.3)
        until(lambda: all_done(runs), 60, "The end of the runs")
        assert [worker.poll() for worker in workers] == [None] * 3
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert Mark.objects.count() == 3 * len(runs)


def all_done(runs):
    return type(runs[0]).objects.filter(status="completed").count() == len(runs)


def test_19_a_nested_block_of_the_user_waits_no_second_time(written):
    """A transaction that has the write lock can write again without waiting."""
    run = engine.start("written")
    with transaction.atomic():
        leave("outer")
        thread = OtherThread(drain)
        with pytest.raises(OperationalError, match="locked"):
            thread.join()
        leave("outer")
    drain()
    run.refresh_from_db()
    assert run.status == "completed"
    assert effects() == ["outer", "outer", "first", "second"]
    assert run.wake_at is None
    assert timedelta(0) < run.finished_at - run.created_at


def test_19_django_does_not_conclude_that_there_is_no_json():
    """Django checks for JSON support in a transaction: without our patch a lock made ``manage.py`` refuse to start."""
    features = connection.features
    was = features.__dict__.pop("supports_json_field", None)
    try:
        with locked():
            assert features.supports_json_field
    finally:
        if was is not None:
            features.__dict__["supports_json_field"] = was


def test_19_a_wrong_setting_is_found_by_its_check_and_not_by_the_connection(settings):
    connection.close()
    settings.AUTOMATION = {"LEAS": 1}
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert [each.id for each in check_settings(None)] == ["automation.E001"]
    connection.close()
