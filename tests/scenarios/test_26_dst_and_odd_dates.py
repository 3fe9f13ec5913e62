"""Scenario 26: daylight saving time, naive datetimes, the 31st, and clocks that jump.

A ``timedelta`` is elapsed time, and a ``relativedelta`` is added to the local time. Saving a naive datetime raises an
error. A month before the 31st is the last day of that month. Workers whose clocks jump or differ by an hour do nothing
twice, lose nothing, and are never early by their own clock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import agent, complete, engine, event_workflow, goto, handler, on_event, sleep, step, workflow
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import NaiveDatetimeError
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.race import OtherThread
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

BERLIN = ZoneInfo("Europe/Berlin")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)

# The clocks go forward on 31 March 2030 at 2:00, and back on 27 October 2030 at 3:00.
DATES = [
    # Test id, offset, local date of the entity, and expected moment in UTC.
    ("a day before, elapsed", -DAY, (2030, 3, 31, 15), (2030, 3, 30, 13)),
    ("a day before, on the wall", relativedelta(days=-1), (2030, 3, 31, 15), (2030, 3, 30, 14)),
    ("a day after, elapsed", DAY, (2030, 3, 30, 15), (2030, 3, 31, 14)),
    ("a day after, on the wall", relativedelta(days=1), (2030, 3, 30, 15), (2030, 3, 31, 13)),
    ("to a time that does not exist", relativedelta(days=1), (2030, 3, 30, 2, 30), (2030, 3, 31, 1, 30)),
    ("a day before, elapsed, autumn", -DAY, (2030, 10, 27, 15), (2030, 10, 26, 14)),
    ("a day before, on the wall, autumn", relativedelta(days=-1), (2030, 10, 27, 15), (2030, 10, 26, 13)),
    ("a day after, on the wall, autumn", relativedelta(days=1), (2030, 10, 26, 15), (2030, 10, 27, 14)),
    ("to a time that is there twice", relativedelta(days=1), (2030, 10, 26, 2, 30), (2030, 10, 27, 0, 30)),
    ("an hour after, over the gap", HOUR, (2030, 3, 31, 1, 30), (2030, 3, 31, 1, 30)),
    ("a month before the 31st", relativedelta(months=-1), (2030, 3, 31, 12), (2030, 2, 28, 11)),
    ("a month after the 31st", relativedelta(months=1), (2030, 1, 31, 12), (2030, 2, 28, 11)),
    ("a month after, in a leap year", relativedelta(months=1), (2032, 1, 31, 12), (2032, 2, 29, 11)),
    ("a year after 29 February", relativedelta(years=1), (2032, 2, 29, 12), (2033, 2, 28, 11)),
    ("the last of the month", relativedelta(day=31), (2030, 6, 10, 12), (2030, 6, 30, 10)),
    ("midnight of the day", relativedelta(hour=0, minute=0), (2030, 3, 31, 15), (2030, 3, 30, 23)),
]


@pytest.mark.parametrize("kind", ["callback", "workflow", "handler"])
@pytest.mark.parametrize(("offset", "wall", "utc"), [row[1:] for row in DATES], ids=[row[0] for row in DATES])
def test_26_offsets_and_summer_time(kind, offset, wall, utc, clock, work):
    clock.now = datetime(2029, 12, 1, tzinfo=UTC)
    if kind == "callback":
        on_event("checkin_due", offset=offset, name="timed")(lambda event: leave(clock().isoformat()))
    elif kind == "workflow":

        @event_workflow("checkin_due", offset=offset, name="timed")
        class Timed:
            class Context(BaseModel):
                pass

            @step(start=True)
            def first(self):
                leave(clock().isoformat())
                return complete()

    else:

        @agent("timed")
        class Watcher:
            class Context(BaseModel):
                pass

            @handler("checkin_due", offset=offset, match={})
            def on_time(self, ctx):
                leave(clock().isoformat())

        AgentManager.spawn("timed")
        work()
    Reservation.objects.create(status="confirmed", checkin_at=datetime(*wall, tzinfo=BERLIN))
    due = datetime(*utc, tzinfo=UTC)
    clock.now = due - timedelta(microseconds=1)
    work()
    assert effects() == []
    clock.now = due
    work()
    work()
    assert effects() == [due.isoformat()]


@pytest.mark.parametrize("hour", [2, 3])
def test_26_both_hours_that_are_there_twice_are_two(hour, clock, work):
    """02:30 before and 02:30 after the change are an hour apart (PEP 495)."""
    clock.now = datetime(2030, 10, 26, tzinfo=UTC)

    @on_event("checkin_due", name="timed")
    def timed(event):
        leave(clock().isoformat())

    at = datetime(2030, 10, 27, 2, 30, tzinfo=BERLIN, fold=hour - 2)
    Reservation.objects.create(status="confirmed", checkin_at=at)
    due = datetime(2030, 10, 27, hour - 2, 30, tzinfo=UTC)
    clock.now = due - timedelta(seconds=1)
    work()
    assert effects() == []
    clock.now = due
    work()
    assert effects() == [due.isoformat()]


def test_26_a_naive_datetime_is_refused_with_its_save():
    naive = datetime(2030, 3, 31, 2, 30)  # noqa: DTZ001
    with pytest.raises(NaiveDatetimeError, match="checkin_at"):
        Reservation.objects.create(status="confirmed", checkin_at=naive)
    assert (Reservation.objects.count(), Event.objects.count()) == (0, 0)
    stay = Reservation.objects.create(status="confirmed", checkin_at=timezone.make_aware(naive))
    stay.checkin_at = naive
    with pytest.raises(NaiveDatetimeError, match="make_aware"):
        stay.save()
    with pytest.raises(NaiveDatetimeError, match="sleep"):
        sleep(until=naive)
    with pytest.raises(NaiveDatetimeError, match="now"):
        drain(naive)


def once(name, times):
    """Declare a workflow whose step runs ``times`` times and leaves one effect each time."""

    @workflow(name)
    class Once:
        class Context(BaseModel):
            done: int = 0

        @step(start=True)
        def first(self):
            self.context.done += 1
            leave(f"{name} {self.context.done}")
            return complete() if self.context.done == times else goto(self.first)


def test_26_the_clock_jumps_forward_in_the_middle_of_a_step(clock, work):
    """If the clock jumps past the end of a lease, another worker claims the run, and the late commit is refused."""
    stolen = []

    @workflow("jumped")
    class Jumped:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, atomic=False)
        def first(self):
            self.context.tries += 1
            if not stolen:
                clock.tick(HOUR)
                stolen.append(None)
                OtherThread(drain).join()  # another worker with the same clock
            leave(f"outside {self.context.tries}")
            return complete()

    run = engine.start("jumped")
    work()
    run.refresh_from_db()
    assert (run.status, run.data["tries"]) == ("completed", 1)
    # Two attempts started (the guarantee is at least once): one was committed, the other is recorded as lost.
    assert [each.outcome for each in run.steps.order_by("pk")] == ["lost", "complete"]


def test_26_the_clock_jumps_back_after_a_claim(clock, work):
    """If the clock jumps back, the lease of a dead worker ends an hour late, and then the run completes once."""
    once("plain", 1)
    run = engine.start("plain")
    assert claim(WorkflowRun, clock(), 10)  # and its worker dies
    clock.tick(-HOUR)
    assert work() == 0
    clock.tick(HOUR + timedelta(seconds=11))
    work()
    run.refresh_from_db()
    assert (run.status, effects()) == ("completed", ["plain 1"])


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
def test_26_a_timer_follows_the_clock_and_fires_once(jump, clock, work):
    """A timer is due after a jump forward, waits after a jump back, and fires once in both cases."""

    @workflow("nap")
    class Nap:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            leave(clock().isoformat())
            return complete()

    began = clock()
    engine.start("nap")
    Reservation.objects.create(status="confirmed", checkin_at=began + HOUR)
    on_event("checkin_due", name="timed")(lambda event: leave(clock().isoformat()))
    work()
    clock.tick(jump)
    work()
    assert len(effects()) == (2 if jump > timedelta(0) else 0)
    clock.tick(-jump)
    work()
    clock.now = began + HOUR
    work()
    clock.tick(jump)
    work()
    clock.tick(3 * HOUR)
    work()
    assert effects() == [(began + HOUR).isoformat()] * 2


@pytest.mark.parametrize("first", ["fast", "slow"])
def test_26_two_workers_whose_clocks_differ_by_an_hour(first, clock):
    """The fast worker may claim rows that the slow worker has leased, but each step keeps exactly one result."""
    once("steps", 3)
    runs = [engine.start("steps") for _ in range(8)]
    now = clock()
    moments = {"fast": now + HOUR, "slow": now}
    order = [first, *({"fast", "slow"} - {first})]
    workers = [OtherThread(lambda name=name: drain(moments[name])) for name in order]
    for worker in workers:
        worker.join()
    for _ in range(3):
        drain(now + 2 * HOUR)
    for run in runs:
        run.refresh_from_db()
    assert {run.status for run in runs} == {"completed"}
    assert {run.data["done"] for run in runs} == {3}
    assert sorted(effects()) == sorted(f"steps {number}" for number in (1, 2, 3) for _ in runs)


def test_26_the_fast_clock_takes_the_row_of_the_slow_one(clock):
    """If the fast worker looks for work during the slow worker's atomic step, only one of the two commits.

    On SQLite the fast worker cannot write before the slow worker has ended.
    """
    stolen = []

    @workflow("contested")
    class Contested:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def first(self):
            if not stolen:
                stolen.append(OtherThread(lambda: drain(clock() + HOUR)))
                from django.db import connection

                if connection.vendor != "sqlite":
                    stolen[0].join()
            leave("kept")
            return complete()

    run = engine.start("contested")
    drain(clock())
    stolen[0].join()
    drain(clock() + 2 * HOUR)
    run.refresh_from_db()
    assert run.status == "completed"
    assert effects() == ["kept"]
    assert run.steps.filter(outcome="complete").count() == 1
