"""Notifiers, brokers, schedules and tasks tell workers that rows are due. These tests start no worker."""

from __future__ import annotations

import signal
import threading
import time
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.models import OrmQ, Schedule
from django_q.signing import SignedPackage

from django_ai.automation import engine
from django_ai.automation.exceptions import SettingsError
from django_ai.automation.queues import held_leases, notifier
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Maintenance
from django_ai.automation.queues.notifier import InlineNotifier, SilentNotifier, get_notifier, ring_after_commit
from django_ai.automation.queues.runtimes import poller, q2_brokers, query_timeout, tasks
from django_ai.automation.queues.runtimes.q2 import DOORBELL, Q2Notifier, doorbell_timeout
from django_ai.automation.queues.runtimes.q2_schedules import SCHEDULES, install_schedules
from django_ai.automation.workflows.models import WorkflowRun, WorkflowStatus
from tests.apps.story.models import Mark, Probe
from tests.support.databases import REDIS_URL
from tests.support.marks import not_on
from tests.support.polling import until
from tests.support.services import needs

pytestmark = pytest.mark.django_db(transaction=True)


class Counting:
    def __init__(self):
        self.rings = 0

    def ring(self, alias, queues=()):
        self.rings += 1


@pytest.fixture
def bell():
    counting = Counting()
    notifier.set_notifier(counting)
    yield counting
    notifier.set_notifier(None)


class TestExecutors:
    def test_rings_once_a_commit_however_much_became_due(self, bell):
        with transaction.atomic():
            for _ in range(5):
                engine.start("story:count", steps=1)
            assert bell.rings == 0
        assert bell.rings == 1

    def test_does_not_ring_for_what_was_rolled_back(self, bell):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            engine.start("story:count", steps=1)
            raise ZeroDivisionError
        assert bell.rings == 0

    def test_rings_for_the_rest_when_a_savepoint_was_rolled_back(self, bell):
        with transaction.atomic():
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                engine.start("story:count", steps=1)
                raise ZeroDivisionError
            engine.start("story:count", steps=1)
        assert bell.rings == 1
        assert WorkflowRun.objects.count() == 1

    def test_a_broken_executor_breaks_no_request(self, caplog):
        class Broken:
            def ring(self, alias, queues=()):
                raise OSError("the broker is down")

        notifier.set_notifier(Broken())
        try:
            run = engine.start("story:count", steps=1)
        finally:
            notifier.set_notifier(None)
        assert "notifier failed" in caplog.text
        drain()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.COMPLETED

    def test_inline_performs_at_the_commit(self, settings):
        settings.AUTOMATION = {"RUNTIME": "inline"}
        assert isinstance(get_notifier(), InlineNotifier)
        with transaction.atomic():
            Probe.objects.create(name="inline", ready=True)
            assert Mark.objects.count() == 0
        assert Mark.objects.get().name == "ready:inline"

    def test_settings_name_the_executor(self, settings):
        settings.AUTOMATION = {"RUNTIME": "silent"}
        assert isinstance(get_notifier(), SilentNotifier)
        settings.AUTOMATION = {}
        assert isinstance(get_notifier(), Q2Notifier)
        settings.AUTOMATION = {"RUNTIME": "nowhere.Executor"}
        with pytest.raises(SettingsError, match=r"nowhere\.Executor"):
            get_notifier()

    def test_q2_in_sync_mode_performs_at_once(self, monkeypatch):
        monkeypatch.setattr(Conf, "SYNC", True)
        run = engine.start("story:count", steps=1)
        Q2Notifier().ring("default")
        run.refresh_from_db()
        assert run.status == WorkflowStatus.COMPLETED

    def test_q2_with_a_stock_broker_queues_a_task_without_arguments(self, monkeypatch):
        monkeypatch.setattr(Conf, "BROKER_CLASS", None)
        monkeypatch.setattr(Conf, "ORM", "default")
        Q2Notifier().ring("default")
        task = SignedPackage.loads(OrmQ.objects.get().payload)
        assert (task["func"], task["args"], task["kwargs"], task["save"]) == (DOORBELL, (), {}, False)
        assert task["timeout"] == doorbell_timeout() > 300

    def test_q2_with_our_broker_queues_nothing(self):
        Q2Notifier().ring("default")
        assert OrmQ.objects.count() == 0

    def test_outside_a_transaction_it_rings_at_once(self, bell):
        ring_after_commit("default")
        assert bell.rings == 1


def maintain():
    drain(models=[Maintenance])


@pytest.fixture
def broker(monkeypatch):
    monkeypatch.setattr(Conf, "POLL", 0.05)
    found = q2_brokers.OrmBroker(list_key="automation-tests")
    assert found.dequeue()  # a new process: maintenance is due
    maintain()
    yield found
    found.poller.close()


class TestOrmBroker:
    def test_sleeps_while_nothing_is_due(self, broker):
        assert broker.dequeue() is None  # the poller starts to LISTEN and polls once more
        started = time.monotonic()
        assert broker.dequeue() is None
        assert time.monotonic() - started >= 0.045

    def test_hands_out_a_doorbell_that_was_never_stored(self, broker):
        engine.start("story:count", steps=1)
        ((ack, package),) = broker.dequeue()
        assert ack is None
        assert SignedPackage.loads(package)["func"] == DOORBELL
        assert OrmQ.objects.count() == 0

    def test_wakes_for_a_timer_before_its_next_poll(self, broker, monkeypatch):
        monkeypatch.setattr(broker.poller, "poll", 5)
        due = timezone.now() + timedelta(seconds=0.15)
        WorkflowRun.objects.create(name="story:count", wake_at=due)
        started = time.monotonic()
        while not broker.dequeue():
            assert time.monotonic() - started < 4
        assert timezone.now() >= due

    def test_hands_out_doorbells_ever_more_slowly_while_work_stays_due(self, broker):
        engine.start("story:count", steps=1)
        bells, started = 0, time.monotonic()
        while time.monotonic() - started < 0.5:
            bells += len(broker.dequeue() or ())
        assert bells <= 10
        until(lambda: broker.dequeue(), 20, "Another doorbell")

    def test_hands_out_the_projects_own_tasks(self, broker):
        from django_q.tasks import async_task

        async_task("builtins.print", "hello", broker=broker)
        ((ack, package),) = broker.dequeue()
        assert ack == OrmQ.objects.get().pk
        assert SignedPackage.loads(package)["func"] == "builtins.print"
        assert broker.dequeue() is None  # the task is locked until it is acknowledged
        broker.acknowledge(ack)
        assert OrmQ.objects.count() == 0

    def test_catches_what_the_database_throws(self, broker, monkeypatch, caplog):
        def broken():
            raise OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(poller, "next_due", broken)
        assert broker.dequeue() is None
        assert "will retry" in caplog.text
        monkeypatch.undo()
        engine.start("story:count", steps=1)
        assert broker.dequeue()

    @pytest.mark.timeout(0)  # otherwise pytest-timeout uses SIGALRM
    @not_on("mysql", reason="its driver handles no signal while it waits")
    def test_real_seconds_gives_up_a_look_that_nobody_answers(self, broker, monkeypatch, caplog):
        """A poll whose query is never answered times out. It would block the only pusher of the cluster forever."""

        def waits_for_ever():
            for _ in range(10):
                if connection.vendor == "postgresql":
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT pg_sleep(2)")
                else:
                    time.sleep(2)

        alarm = signal.getsignal(signal.SIGALRM)
        monkeypatch.setattr(query_timeout, "INITIAL_TIMEOUT_SECONDS", 0.2)
        broker.poller.query_timeout.seconds = 0.2
        monkeypatch.setattr(poller, "next_due", waits_for_ever)
        started = time.monotonic()
        assert broker.dequeue() is None
        assert time.monotonic() - started < 10
        assert "did not answer within 0.2 s" in caplog.text
        assert broker.poller.query_timeout.seconds == 0.4
        monkeypatch.undo()
        monkeypatch.setattr(query_timeout, "INITIAL_TIMEOUT_SECONDS", 0.2)
        engine.start("story:count", steps=1)
        assert broker.dequeue()
        assert broker.poller.query_timeout.seconds == 0.2
        assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (alarm, (0.0, 0.0))

    @pytest.mark.parametrize("failures", [1, 2])
    def test_acknowledges_where_the_connection_breaks(self, broker, monkeypatch, caplog, failures):
        """A failed ``acknowledge`` is tried once more and never raises: the error would stop Q2's monitor."""
        from django_q.tasks import async_task

        async_task("builtins.print", "hello", broker=broker)
        ((ack, _),) = broker.dequeue()
        delete, left = ORM.delete, [None] * failures

        def breaks(self, task_id):
            if left:
                left.pop()
                raise OperationalError("server closed the connection unexpectedly")
            delete(self, task_id)

        monkeypatch.setattr(ORM, "delete", breaks)
        broker.acknowledge(ack)
        assert OrmQ.objects.count() == failures - 1
        assert ("will be delivered again" in caplog.text) == (failures == 2)

    def test_survives_pickling_as_spawned_processes_need(self, broker):
        import pickle

        copy = pickle.loads(pickle.dumps(broker))
        engine.start("story:count", steps=1)
        assert copy.dequeue()
        assert "automation rows" in copy.info()


class TestRedisBroker:
    @pytest.fixture
    def redis_broker(self, monkeypatch):
        needs("redis")
        monkeypatch.setattr(Conf, "POLL", 0.05)
        monkeypatch.setattr(Conf, "REDIS", REDIS_URL)
        found = q2_brokers.RedisBroker(list_key="automation-tests")
        found.delete_queue()
        yield found
        found.delete_queue()

    def test_hands_out_doorbells_and_tasks(self, redis_broker):
        from django_q.tasks import async_task

        assert redis_broker.dequeue()  # a new process: maintenance is due
        maintain()
        assert redis_broker.dequeue() is None
        engine.start("story:count", steps=1)
        assert SignedPackage.loads(redis_broker.dequeue()[0][1])["func"] == DOORBELL
        drain()
        async_task("builtins.print", broker=redis_broker)
        assert SignedPackage.loads(redis_broker.dequeue()[0][1])["func"] == "builtins.print"
        assert "automation rows" in redis_broker.info()

    def test_works_on_when_redis_is_down(self, monkeypatch):
        pytest.importorskip("redis")
        monkeypatch.setattr(Conf, "POLL", 0.05)
        monkeypatch.setattr(Conf, "REDIS", "redis://127.0.0.1:1/0")
        broker = q2_brokers.RedisBroker(list_key="automation-tests")
        assert broker.dequeue()
        maintain()
        assert broker.dequeue() is None
        engine.start("story:count", steps=1)
        assert SignedPackage.loads(broker.dequeue()[0][1])["func"] == DOORBELL


def test_without_the_redis_client_the_broker_says_what_is_missing(monkeypatch):
    monkeypatch.delattr(q2_brokers, "RedisBroker", raising=False)
    with pytest.raises(ImportError, match=r"django-ai-automation\[redis\]"):
        getattr(q2_brokers, "RedisBroker")  # noqa: B009
    with pytest.raises(AttributeError, match="NoBroker"):
        getattr(q2_brokers, "NoBroker")  # noqa: B009


class TestSchedules:
    def test_migrate_installs_the_three_of_the_guide(self):
        call_command("migrate", verbosity=0, stdout=StringIO())
        found = {schedule.name: schedule for schedule in Schedule.objects.all()}
        assert set(found) == {"Workflows: process_scheduled", "Events: poll_due", "Events: cleanup_old"}
        assert (found["Workflows: process_scheduled"].minutes, found["Events: poll_due"].minutes) == (1, 5)
        assert found["Events: cleanup_old"].schedule_type == Schedule.DAILY
        for schedule in found.values():
            assert callable(getattr(tasks, schedule.func.rpartition(".")[2]))

    def test_is_idempotent_and_keeps_what_an_operator_set(self):
        install_schedules(using="default")
        Schedule.objects.filter(name="Events: poll_due").update(minutes=2, func="old.place")
        Schedule.objects.create(name="Events: poll_due", func="a.double")
        install_schedules(using="default")
        schedule = Schedule.objects.get(name="Events: poll_due")
        assert (schedule.minutes, schedule.func) == (2, SCHEDULES[1][1])
        assert Schedule.objects.count() == 3

    def test_can_be_switched_off(self, settings):
        Schedule.objects.all().delete()
        settings.SKIP_Q2_AUTOSCHEDULE = True
        install_schedules(using="default")
        assert Schedule.objects.count() == 0


class TestTasks:
    def test_process_scheduled_performs_what_is_due(self):
        run = engine.start("story:count", steps=2)
        assert tasks.process_scheduled() >= 1
        run.refresh_from_db()
        assert run.status == WorkflowStatus.COMPLETED

    def test_a_share_that_is_used_up_rings_for_the_rest(self, settings, bell):
        settings.AUTOMATION = {"DRAIN_BUDGET": timedelta(microseconds=1)}
        for _ in range(3):
            engine.start("story:count", steps=1)
        before = bell.rings
        assert tasks.drain_due() == 1
        assert bell.rings == before + 1
        assert WorkflowRun.objects.filter(lease=None).exclude(wake_at=None).count() == 2

    def test_cleanup_removes_what_is_over_and_keeps_what_once_only_needs(self):
        from django_ai.automation.events.models import Event

        kept = Probe.objects.create(name="kept", ready=True)
        gone = Probe.objects.create(name="gone", ready=True)
        by_hand = engine.start("story:count", steps=1)
        drain()
        gone.delete()
        later = timezone.now() + timedelta(days=31)
        assert tasks.cleanup_old(timezone.now()) == 0
        assert tasks.cleanup_old(later) > 0
        assert not WorkflowRun.objects.filter(pk=by_hand.pk).exists()
        assert set(Event.objects.values_list("entity_id", flat=True)) == {str(kept.pk)}
        kept.save()
        drain()
        assert Mark.objects.filter(name="ready:kept").count() == 1


class TestHeartbeat:
    def test_renews_what_was_started_and_gives_back_what_was_not(self):
        for _ in range(3):
            engine.start("story:count", steps=1)
        rows = claim(WorkflowRun, timezone.now(), 3)
        leases = held_leases.HeldLeases()
        leases.hold(list(rows))
        assert leases.start(rows[0])
        leases.keep_for(timedelta(minutes=5))
        before = WorkflowRun.objects.get(pk=rows[0].pk).wake_at
        time.sleep(0.01)
        leases.renew()
        assert WorkflowRun.objects.get(pk=rows[0].pk).wake_at > before
        for row in rows[1:]:
            assert leases.start(row) is False
            assert WorkflowRun.objects.get(pk=row.pk).lease is None

    def test_who_drops_waits_for_a_thread_that_is_dropping(self, monkeypatch):
        """``release_unstarted`` waits until another thread has released its rows: the process may end next."""
        engine.start("story:count", steps=1)
        leases = held_leases.HeldLeases()
        leases.hold(list(claim(WorkflowRun, timezone.now(), 1)))
        begun, go_on, second_done = threading.Event(), threading.Event(), threading.Event()

        def slow_release(row, now):
            begun.set()
            go_on.wait(10)

        monkeypatch.setattr(held_leases, "release", slow_release)
        first = threading.Thread(target=leases.release_unstarted)
        second = threading.Thread(target=lambda: (leases.release_unstarted(), second_done.set()))
        first.start()
        assert begun.wait(10)
        second.start()
        assert not second_done.wait(0.2)
        go_on.set()
        assert second_done.wait(10)
        first.join()
        second.join()

    def test_renews_although_another_thread_waits_for_a_locked_row(self, monkeypatch):
        """The heartbeat renews leases while another pool thread waits to release a row that a step has locked."""
        monkeypatch.setattr(held_leases, "SECONDS_FOR_ANOTHER_RELEASE", 0.05)
        engine.start("story:count", steps=1)
        engine.start("story:count", steps=1)
        rows = claim(WorkflowRun, timezone.now(), 2)
        leases = held_leases.HeldLeases()
        leases.hold(list(rows))
        leases.start(rows[0])
        leases.keep_for(timedelta(minutes=1))
        begun, go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(held_leases, "release", lambda row, now: (begun.set(), go_on.wait(10)))
        other = threading.Thread(target=leases.release_unstarted)
        other.start()
        assert begun.wait(10)
        before = WorkflowRun.objects.get(pk=rows[0].pk).wake_at
        leases.renew()
        assert other.is_alive()
        assert WorkflowRun.objects.get(pk=rows[0].pk).wake_at > before
        go_on.set()
        other.join()

    def test_stops_after_the_timeout(self, monkeypatch):
        monkeypatch.setattr(held_leases, "SECONDS_TO_RETURN", 0)  # an interrupted attempt gets no time to be written
        engine.start("story:count", steps=1)
        (row,) = claim(WorkflowRun, timezone.now(), 1)
        leases = held_leases.HeldLeases()
        leases.hold([row])
        leases.start(row)
        leases.keep_for(timedelta(0))
        before = WorkflowRun.objects.get(pk=row.pk).wake_at
        leases.renew()
        assert WorkflowRun.objects.get(pk=row.pk).wake_at == before


def test_sqlite_connections_are_made_fit_for_several_writers():
    if connection.vendor != "sqlite":
        pytest.skip("only SQLite needs these settings")
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone() == ("wal",)
        cursor.execute("PRAGMA busy_timeout")
        assert cursor.fetchone() == (20000,)
    assert connection.transaction_mode == "IMMEDIATE"
