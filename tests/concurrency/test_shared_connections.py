"""The connections that the threads of one worker process share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from django.db import DatabaseError, connection, connections, transaction
from pydantic import BaseModel

from django_ai.automation import complete, engine, step, workflow
from django_ai.automation.db.connection_slots import ConnectionSlots, frees_connection, put_down, within_pool
from django_ai.automation.queues.notifier import set_notifier
from tests.support.marks import not_on
from tests.support.worker_threads import worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _silent():
    """Only the threads of the test perform rows."""
    set_notifier(None)


class Job(BaseModel):
    number: int = 0


def test_a_step_in_a_transaction_keeps_its_connection():
    slots = ConnectionSlots(1)
    found: list[bool] = []

    def work() -> None:
        mine = connections[connection.alias]
        slots.bind(mine)
        mine.ensure_connection()
        found.append(frees_connection(mine))
        with transaction.atomic():
            found.append(frees_connection(mine))
        mine.close()
        found.append(slots.taken == 0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert found == [True, False, True]


def test_a_connection_waits_for_a_slot_and_a_failed_one_gives_it_back(monkeypatch):
    slots = ConnectionSlots(1)
    done: list[str] = []

    def hold(started: threading.Event, release: threading.Event) -> None:
        mine = connections[connection.alias]
        slots.bind(mine)
        mine.ensure_connection()
        done.append("first")
        started.set()
        release.wait(30)
        mine.close()

    def follow() -> None:
        mine = connections[connection.alias]
        with monkeypatch.context() as patch:
            patch.setattr(type(mine), "get_new_connection", lambda self, params: 1 / 0)
            slots.bind(mine)
            with pytest.raises(ZeroDivisionError):
                mine.connect()
        done.append("failed")
        mine.connect()
        done.append("second")
        mine.close()

    started, release = threading.Event(), threading.Event()
    first = threading.Thread(target=hold, args=[started, release])
    first.start()
    assert started.wait(30)
    second = threading.Thread(target=follow)
    second.start()
    second.join(0.2)
    assert done == ["first"]
    release.set()
    for thread in (first, second):
        thread.join(30)
    assert (done, slots.taken) == (["first", "failed", "second"], 0)


needs_shared_sessions = not_on("sqlite", reason="SQLite's sessions are closed instead")


def session_of(mine) -> int:
    with mine.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()" if mine.vendor == "postgresql" else "SELECT connection_id()")
        return cursor.fetchone()[0]


def in_thread(slots: ConnectionSlots, work: Callable[..., object]) -> list[object]:
    """Call ``work`` in a thread, with a connection that belongs to ``slots``, which is put down afterwards."""
    found: list[object] = []

    def call() -> None:
        mine = connections[connection.alias]
        slots.bind(mine)
        try:
            found.append(work(mine))
        finally:
            put_down(mine)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(30)
    return found


@needs_shared_sessions
def test_a_session_that_was_put_down_is_continued_by_another_thread():
    slots = ConnectionSlots(2)
    assert in_thread(slots, session_of) == in_thread(slots, session_of)
    assert slots.taken == 0
    before = in_thread(slots, session_of)
    slots.close_idle(60)
    assert in_thread(slots, session_of) == before
    slots.close_idle()
    assert in_thread(slots, session_of) != before
    slots.close_idle()


@needs_shared_sessions
@pytest.mark.parametrize("how", ["age", "autocommit", "failure", "transaction"])
def test_a_session_that_was_not_left_as_it_was_is_closed(how):
    def leave_changed(mine):
        mine.ensure_connection()
        if how == "age":
            mine.settings_dict = {**mine.settings_dict, "CONN_MAX_AGE": 1}
            mine.close_at = time.monotonic() - 1
        elif how == "autocommit":
            mine.set_autocommit(False)
        elif how == "failure":
            with pytest.raises(DatabaseError), mine.cursor() as cursor:
                cursor.execute("SELECT nothing FROM nowhere")
        else:
            transaction.atomic(using=mine.alias).__enter__()
            mine.cursor().execute("SELECT 1")

    slots = ConnectionSlots(2)
    in_thread(slots, leave_changed)
    assert (slots.taken, slots._idle) == (0, [])


@needs_shared_sessions
def test_a_session_that_the_server_has_ended_meanwhile_is_not_continued():
    slots = ConnectionSlots(2)
    (ended,) = in_thread(slots, session_of)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [ended])
        else:
            cursor.execute(f"KILL {ended}")
    (other,) = in_thread(slots, session_of)
    assert other != ended
    slots.close_idle()


@needs_shared_sessions
def test_code_that_changes_its_session_does_not_pass_it_on():
    """One thread performs a step that switches the time zone of its session; the next step has another session."""
    seen: list[tuple[int, str]] = []
    sql = {
        "postgresql": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW timezone"),
        "mysql": ("SET time_zone = '+09:00'", "SELECT @@time_zone"),
    }[connection.vendor]

    @workflow("changes")
    class Changes:
        Context = Job

        @step(start=True, atomic=False)
        def begin(self):
            mine = connections[connection.alias]
            with mine.cursor() as cursor:
                cursor.execute(sql[1])
                seen.append((session_of(mine), cursor.fetchone()[0]))
                cursor.execute(sql[0])
            return complete()

    for number in range(2):
        engine.start("changes", number=number)
    with worker() as running:
        running.perform()
    (first, zone), (second, zone_after) = seen
    assert (first != second, zone_after) == (True, zone)


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (None, 20),
        (False, 20),
        (True, 3),
        ({"min_size": 2, "max_size": 10}, 9),
        ({"min_size": 6}, 5),
        ({"max_size": 1}, 1),
    ],
)
def test_threads_leave_a_connection_of_the_pool_to_the_main_thread(pool, expected):
    given = SimpleNamespace(settings_dict={"OPTIONS": {"pool": pool}})
    assert within_pool(given, 20) == expected
