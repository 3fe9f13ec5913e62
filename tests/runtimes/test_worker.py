"""``manage.py automation_worker``: real processes, killed, stopped and woken. Waits real seconds.

``test_same_story`` and ``tests/scenarios`` test what it performs; this module tests how it starts, waits and stops.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.notifier import WorkerNotifier, set_notifier
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark, Probe
from tests.support.child_processes import automation_worker, children_of
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.slow]


@pytest.fixture(autouse=True)
def _worker_notifier():
    """Send doorbells as a web process of the project would."""
    set_notifier(WorkerNotifier())
    yield
    set_notifier(None)


def done(run: WorkflowRun) -> bool:
    return WorkflowRun.objects.filter(pk=run.pk, status="completed").exists()


def warm(log, run=None) -> None:
    """Wait until a worker has completed ``run``, or a new run."""
    run = run or engine.start("story:count", steps=1)
    until(lambda: done(run), 30, "The work", log)


@contextmanager
def warm_worker(log, *options):
    """Run a worker that has completed a run and is now idle."""
    run = engine.start("story:count", steps=1)  # before its first poll
    with automation_worker(log, *options) as process:
        warm(log, run)
        yield process


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


class TestStopAndRestart:
    def test_idle_worker_ends_at_once_on_sigterm(self, tmp_path):
        log = tmp_path / "worker.log"
        with warm_worker(log, "--processes", "2", "--poll", "60") as process:
            children = children_of(process.pid)
            assert len(children) == 2
            process.send_signal(signal.SIGTERM)
            # Long before the next poll and the end of the grace period.
            assert process.wait(15) == 0
            assert not any(is_alive(child) for child in children)

    def test_killed_child_is_restarted(self, tmp_path):
        log = tmp_path / "worker.log"
        with warm_worker(log) as process:
            (child,) = children_of(process.pid)
            os.kill(child, signal.SIGKILL)
            warm(log)
            assert children_of(process.pid) != [child]
        assert "was killed by SIGKILL" in log.read_text()

    def test_children_end_when_their_supervisor_is_killed(self, tmp_path):
        log = tmp_path / "worker.log"
        with warm_worker(log, "--processes", "2", "--poll", "60") as process:
            children = children_of(process.pid)
            process.kill()
            process.wait(10)
            until(lambda: not any(is_alive(child) for child in children), 15, "The end of the children", log)


class TestConcurrency:
    def test_one_process_performs_rows_beside_each_other_and_finishes_them_on_sigterm(self, tmp_path):
        """Each step waits for its file, which is written only when all of them wait."""
        log, flags = tmp_path / "worker.log", [tmp_path / f"run{number}" for number in range(3)]
        runs = [engine.start("story:hung", flag=str(flag), atomic=False) for flag in flags]
        with automation_worker(log, "--concurrency", "3") as process:
            until(lambda: all(flag.exists() for flag in flags), 60, "The start of all steps", log)
            assert len({flag.read_text() for flag in flags}) == 1  # the process ID
            process.send_signal(signal.SIGTERM)
            for flag in flags:
                flag.with_name(f"{flag.name}.go").touch()
            assert process.wait(20) == 0
        assert all(done(run) for run in runs)


class TestWaking:
    def test_real_seconds_a_commit_wakes_it_before_its_next_poll(self, tmp_path):
        if connection.vendor == "mysql":
            pytest.skip("MariaDB has no NOTIFY, and no file to watch")
        log = tmp_path / "worker.log"
        with warm_worker(log, "--poll", "60"):
            time.sleep(0.5)  # the worker is idle by now
            started = time.monotonic()
            warm(log)
            assert time.monotonic() - started < 15

    def test_real_seconds_sql_of_a_program_that_rings_no_doorbell_wakes_it(self, tmp_path):
        if connection.vendor != "sqlite":
            pytest.skip("only on SQLite each commit wakes a worker")
        log = tmp_path / "worker.log"
        with warm_worker(log, "--poll", "60"):
            nap = engine.start("story:nap", seconds=3600)
            until(lambda: nap.steps.count() == 1, 15, "The beginning of the nap", log)
            with sqlite3.connect(connection.settings_dict["NAME"], timeout=20) as raw:
                raw.execute(f"UPDATE {WorkflowRun._meta.db_table} SET wake_at = '2020-01-01 00:00:00'")
            raw.close()
            until(lambda: done(nap), 15, "The end of the nap", log)

    def test_real_seconds_polling_without_doorbells_finds_the_work(self, tmp_path):
        log = tmp_path / "worker.log"
        set_notifier(None)  # no doorbell is sent
        with warm_worker(log, "--poll", "0.3"):
            time.sleep(0.5)
            warm(log)

    def test_real_seconds_it_wakes_for_a_timer_before_its_next_poll(self, tmp_path):
        log = tmp_path / "worker.log"
        nap = engine.start("story:nap", seconds=3)
        with automation_worker(log, "--poll", "60"):
            until(lambda: done(nap), 40, "The end of the nap", log)
        slept, woke = nap.steps.order_by("pk")
        assert timedelta(seconds=3) <= woke.started - slept.finished < timedelta(seconds=30)


class TestOptions:
    def test_kinds_limit_what_it_performs(self):
        Probe.objects.create(name="due", due_at=timezone.now() - timedelta(seconds=1))
        run = engine.start("story:count", steps=1)
        call_command("automation_worker", "--once", "--kinds", "events, callbacks")
        assert not done(run)
        assert Mark.objects.filter(name="due:due").count() == 1
        call_command("automation_worker", "--once", "--kinds", "workflows")
        assert done(run)

    def test_rows_of_other_kinds_are_rung_for(self):
        """A worker of events does not perform the callbacks that they cause, so it must wake another worker."""

        class Counting:
            rings = 0

            def ring(self, alias, queues=()):
                self.rings += 1

        Probe.objects.create(name="due", due_at=timezone.now() + timedelta(hours=1))
        Probe.objects.update(due_at=timezone.now())
        Event.objects.filter(event_name="probe_due").update(wake_at=timezone.now(), at=timezone.now())
        bell = Counting()
        set_notifier(bell)
        call_command("automation_worker", "--once", "--kinds", "events")
        assert CallbackExecution.objects.get().status == "pending"
        assert bell.rings > 0

    def test_once_performs_what_is_due_and_exits(self, capsys):
        run = engine.start("story:count", steps=3)
        before = signal.getsignal(signal.SIGTERM)
        call_command("automation_worker", "--once")
        assert done(run)
        assert "Performed 1." in capsys.readouterr().out
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--kinds", "workflow"], "Did you mean 'workflows'"),
            (
                ["--kinds", "mail"],
                "agents, bulk, callbacks, events, limits, maintenance, schedules",
            ),
            (["--processes", "0"], "--processes=0 must be at least 1"),
            (["--poll", "0"], "--poll=0 must be positive"),
            (["--grace", "-1"], "--grace=-1"),
            (["--once", "--processes", "2"], "one process"),
            (["--concurrency", "0"], "--concurrency=0 must be at least 1"),
            (["--connections", "0"], "--connections=0 must be at least 1"),
            (["--once", "--concurrency", "2"], "one row after the other"),
        ],
    )
    def test_nonsense_is_refused(self, options, message):
        with pytest.raises(CommandError, match=message):
            call_command("automation_worker", *options)
