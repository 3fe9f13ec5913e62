"""``Poller.sleep``: how soon a poll follows a doorbell. The listener and the clock are the test's own."""

from __future__ import annotations

import pytest

from django_ai.automation.queues.runtimes import poller as module
from django_ai.automation.queues.runtimes.poller import MAX_NOTIFY_INTERVAL_SECONDS, Poller


class Clock:
    """Replaces ``time`` in the module."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Doorbells:
    """A listener whose doorbell rings ``after`` so many seconds, and which notes for how long it slept despite it."""

    def __init__(self, clock, hears_every_commit=True):
        self.clock = clock
        self.hears_every_commit = hears_every_commit
        self.after = 0.001
        self.pauses = []
        self.waits = 0

    def wait(self, seconds, file=None):
        self.waits += 1
        self.clock.now += self.after
        return True

    def sleep(self, seconds, file=None):
        self.pauses.append(round(seconds, 3))
        self.clock.now += max(seconds, 0)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def poller_with(listener):
    poller = Poller(1.0)
    poller._listener = listener
    poller._polled_at = listener.clock.now
    return poller


def sleep_and_find_nothing(poller, clock):
    poller.sleep(1.0)
    poller._polled_at = clock.now
    poller.record_performed(0)


def test_commits_that_leave_nothing_due_are_polled_for_ever_less_often(clock):
    bells = Doorbells(clock)
    poller = poller_with(bells)
    for _ in range(6):
        sleep_and_find_nothing(poller, clock)
    assert bells.pauses == [0.009, 0.019, 0.039, 0.079, 0.099, 0.099]


@pytest.mark.parametrize(("hears_every_commit", "pause"), [(True, 0.019), (False, 0.099)])
def test_after_a_calm_commits_on_sqlite_are_polled_for_at_once_again(clock, hears_every_commit, pause):
    bells = Doorbells(clock, hears_every_commit)
    poller = poller_with(bells)
    for _ in range(6):
        sleep_and_find_nothing(poller, clock)
    bells.after = MAX_NOTIFY_INTERVAL_SECONDS * 2
    poller.sleep(1.0)
    assert bells.pauses[-1] < 0
    poller._polled_at = clock.now
    bells.after = 0.001
    poller.record_performed(0)
    poller.sleep(1.0)
    assert bells.pauses[-1] == pause


@pytest.mark.parametrize(("hears_every_commit", "waits"), [(True, 0), (False, 1)])
def test_between_two_doorbells_for_due_rows_the_commits_of_their_workers_end_no_sleep(clock, hears_every_commit, waits):
    bells = Doorbells(clock, hears_every_commit)
    poller = poller_with(bells)
    poller._is_work_pause = True
    poller.sleep(0.05)
    assert bells.waits == waits
