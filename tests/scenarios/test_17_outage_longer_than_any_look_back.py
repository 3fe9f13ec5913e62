"""Scenario 17: after an outage longer than any grace, retention or horizon, every overdue row fires exactly once.

This does not depend on which periodic task runs first. After the outage each of Q2's schedules runs once.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.models import OrmQ, Schedule
from django_q.scheduler import scheduler
from django_q.signing import SignedPackage
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    agent,
    complete,
    engine,
    event_workflow,
    get_wake,
    handler,
    on_event,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.runtimes import tasks
from django_ai.automation.queues.runtimes.q2_schedules import SCHEDULES, install_schedules, skip_missed
from django_ai.automation.queues.runtimes.tasks import cleanup_old, poll_due, process_scheduled
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, OUTAGE = timedelta(hours=1), timedelta(days=800)

EXPECTED = [
    "a retry of a callback",
    "a retry of a step",
    "a signal on its way",
    "a sleeping run",
    "a timeout",
    "an agent: after",
    "an agent: at",
    "an agent: before",
    "an event",
    "an immediate event of a dead process",
    "an offset after",
    "an offset before",
    "planned after",
    "planned before",
]


class Nothing(BaseModel):
    pass


@pytest.fixture
def waiting(clock, work, monkeypatch):
    """Create one of each kind of timer, due within two hours."""
    on_event("checkin_due", name="at")(lambda event: leave("an event"))
    on_event("checkin_due", offset=-HOUR / 2, name="before")(lambda event: leave("an offset before"))
    on_event("checkin_due", offset=HOUR, name="after")(lambda event: leave("an offset after"))

    def planned(name, offset):
        @event_workflow("checkin_due", offset=offset, name=name)
        class Planned:
            Context = Nothing

            @step(start=True)
            def first(self):
                leave(name)
                return complete()

    planned("planned before", -HOUR / 2)
    planned("planned after", HOUR)

    @agent("companion")
    class Companion:
        Context = Nothing

        @handler("checkin_due", offset=-HOUR / 2, match={})
        def before(self, ctx):
            leave("an agent: before")

        @handler("checkin_due", match={})
        def at(self, ctx):
            leave("an agent: at")

        @handler("checkin_due", offset=HOUR, match={})
        def after(self, ctx):
            leave("an agent: after")

    @workflow("sleeper")
    class Sleeper:
        Context = Nothing

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            leave("a sleeping run")
            return complete()

    @workflow("patient")
    class Patient:
        Context = Nothing

        @step(start=True)
        def first(self):
            if get_wake().reason == "timeout":
                leave("a timeout")
                return complete()
            return wait("never", timeout=HOUR)

    @workflow("listener")
    class ListenerFlow:
        Context = Nothing

        @step(start=True)
        def first(self):
            return wait("bell", then=self.second)

        @step()
        def second(self):
            leave("a signal on its way")
            return complete()

    failed = set()

    def fails_once(name):
        if name not in failed:
            failed.add(name)
            raise RuntimeError("not yet")
        leave(name)

    @workflow("stumbler")
    class Stumbler:
        Context = Nothing

        @step(start=True, retry=Retry(max_attempts=2, base_delay=HOUR, max_delay=HOUR))
        def first(self):
            fails_once("a retry of a step")
            return complete()

    @on_event("guest_docs_uploaded", name="stumbles", retry=Retry(max_attempts=2, base_delay=HOUR, max_delay=HOUR))
    def stumbles(event):
        fails_once("a retry of a callback")

    on_event("reservation_confirmed", name="orphan")(lambda event: leave("an immediate event of a dead process"))

    AgentManager.spawn("companion")
    for name in ("sleeper", "patient", "listener", "stumbler"):
        engine.start(name)
    Reservation.objects.create(docs=True)
    work()
    engine.signal("bell")
    from django_ai.automation.events.commit_batch import CommitBatch

    with monkeypatch.context() as patch:
        patch.setattr(CommitBatch, "__call__", lambda self: None)  # as if the process had died right after its commit
        Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)
    assert effects() == []


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("first", ["work", "poll_due", "cleanup_old", "process_scheduled"])
def test_17_everything_overdue_fires_once_however_old(first, clock, work):
    clock.tick(OUTAGE)
    {"work": work, "poll_due": poll_due, "cleanup_old": cleanup_old, "process_scheduled": process_scheduled}[first]()
    for _ in range(5):
        work()
        poll_due()
        clock.tick(HOUR)
    assert sorted(effects()) == EXPECTED
    cleanup_old()
    clock.tick(OUTAGE)
    work()
    poll_due()
    assert sorted(effects()) == EXPECTED
    assert not WorkflowRun.objects.unfinished().exists()
    assert not Event.objects.filter(status__in=["expired", "parked"]).exists()
    assert not CallbackExecution.objects.exclude(status="completed").exists()
    assert not HandlerExecution.objects.exclude(status="completed").exists()
    assert AgentRun.objects.get().status == "active"


@pytest.fixture
def schedules(clock, monkeypatch):
    """Install Q2's schedules, all due now."""
    Schedule.objects.all().delete()
    install_schedules()
    Schedule.objects.update(next_run=clock())
    monkeypatch.setattr("django_q.scheduler.localtime", clock)


def half_a_minute(clock):
    """Run Q2's scheduler and then its tasks, as a cluster does every half minute; return the names of the tasks."""
    scheduler(broker=ORM(list_key=Conf.PREFIX))
    given = [SignedPackage.loads(task.payload)["func"] for task in OrmQ.objects.order_by("pk")]
    OrmQ.objects.all().delete()
    for func in given:
        getattr(tasks, func.rsplit(".", 1)[1])()
    clock.tick(timedelta(seconds=30))
    return [func.rsplit(".", 1)[1] for func in given]


@pytest.mark.usefixtures("schedules")
@pytest.mark.parametrize("catch_up", [True, False])
def test_17_the_schedules_make_up_for_an_outage_with_one_run_each(catch_up, clock, monkeypatch):
    """For both values of Q2's ``catch_up``: catching up on 800 days would take a year, one poll every half minute."""
    monkeypatch.setattr(Conf, "CATCH_UP", catch_up)
    clock.tick(OUTAGE + timedelta(minutes=7))
    given = [each for _ in range(20) for each in half_a_minute(clock)]  # ten minutes
    assert 10 <= given.count("process_scheduled") <= 12
    assert 2 <= given.count("reconcile_soon") <= 4
    assert given.count("prune_soon") <= 2
    now = timezone.now()
    for row in Schedule.objects.filter(name__in=[name for name, *_ in SCHEDULES]):
        assert row.next_run > now - timedelta(minutes=2), row.name


@pytest.mark.usefixtures("schedules")
def test_17_a_schedule_keeps_its_time_of_day(clock):
    cleaning = Schedule.objects.get(name="Events: cleanup_old")
    cleaning.next_run = clock.now.replace(hour=3, minute=17)
    cleaning.save()
    clock.tick(OUTAGE)
    assert skip_missed(clock()) == 3
    cleaning.refresh_from_db()
    assert (cleaning.next_run.hour, cleaning.next_run.minute) == (3, 17)
    assert timedelta(0) <= clock() - cleaning.next_run < timedelta(days=1)
    assert skip_missed(clock()) == 0


@pytest.mark.usefixtures("schedules")
def test_17_what_an_operator_has_set_is_left_alone(clock):
    """``skip_missed`` does not change the project's own schedules, nor a schedule with a limited number of runs."""
    own = Schedule.objects.create(name="own", func="math.sqrt", schedule_type="I", minutes=1, next_run=clock())
    limited = Schedule.objects.get(name="Events: poll_due")
    limited.repeats = 5
    limited.save()
    before = {row.pk: row.next_run for row in (own, limited)}
    clock.tick(OUTAGE)
    skip_missed(clock())
    assert {row.pk: row.next_run for row in Schedule.objects.filter(pk__in=before)} == before
