"""Upkeep: when the periodic tasks are due in a runtime without schedules."""

from __future__ import annotations

import pytest

from django_ai.automation.queues import upkeep
from django_ai.automation.queues.upkeep import MINUTE, Upkeep


class Day:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(upkeep.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(upkeep.random, "uniform", lambda low, high: low)

    def after(self, minutes, keep):
        self.now += minutes * MINUTE
        keep.run()


@pytest.fixture
def day(monkeypatch):
    return Day(monkeypatch)


def test_it_looks_behind_at_once_and_each_five_minutes_and_cleans_each_day(day):
    done = []
    keep = Upkeep(lambda: done.append("look"), lambda: done.append("clean"))
    day.after(0, keep)
    day.after(4, keep)
    assert done == ["look"]
    day.after(1, keep)
    assert done == ["look", "look"]
    day.after(5, keep)
    assert done == ["look", "look", "look", "clean"]
    day.after(23 * 60, keep)
    assert done.count("clean") == 1
    day.after(60, keep)
    assert done.count("clean") == 2


def test_what_failed_is_tried_again_soon(day):
    tries = []

    def look():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("down")

    keep = Upkeep(look, lambda: None)
    with pytest.raises(OSError):
        day.after(0, keep)
    day.after(0.4, keep)
    assert len(tries) == 1
    day.after(0.1, keep)
    assert len(tries) == 2
    day.after(4, keep)
    assert len(tries) == 2
