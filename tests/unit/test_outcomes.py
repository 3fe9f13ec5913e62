"""Outcomes are frozen values, and raise when they are created with invalid arguments."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta

import pytest

from django_ai.automation.exceptions import DefinitionError, NaiveDatetimeError
from django_ai.automation.workflows.core import (
    complete,
    fail,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_any,
    wait_for_event,
)

HOUR = timedelta(hours=1)


class Flow:
    @step(start=True)
    def begin(self):
        return goto(self.end)

    @step()
    def end(self):
        return complete()

    def plain(self):
        pass


def test_a_step_is_named_by_itself_or_by_its_name():
    assert goto(Flow().end) == goto(Flow.end) == goto("end")


def test_they_are_frozen():
    others = (fail("a"), run_subflow("a"), wait_any(a=wait("a")))
    for outcome in (goto("a"), sleep(HOUR), wait("a"), wait_for_event("a"), *others):
        with pytest.raises(FrozenInstanceError):
            setattr(outcome, fields(outcome)[0].name, "b")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: goto(""),
        lambda: goto(None),
        lambda: goto(5),
        lambda: goto("a", progress=1.01),
        lambda: goto("a", progress=-0.1),
        lambda: goto("a", progress=float("nan")),
        lambda: goto("a", progress=True),
        lambda: goto("a", progress="0.4"),
        lambda: goto(Flow().plain),
        lambda: goto(Flow().end()),
        lambda: sleep(),
        lambda: sleep(5),
        lambda: sleep(timedelta(seconds=-1)),
        lambda: sleep(HOUR, until=datetime(2030, 1, 1, tzinfo=UTC)),
        lambda: sleep(until="tomorrow"),
        lambda: sleep(HOUR, then=Flow().plain),
        lambda: wait(""),
        lambda: wait(None),
        lambda: wait("x" * 201),
        lambda: wait("a", timeout=60),
        lambda: wait("a", timeout=timedelta(seconds=-1)),
        lambda: wait("a", on_timeout="fallback"),
        lambda: wait("a", then=5),
        lambda: wait_for_event(""),
        lambda: wait_for_event(5),
        lambda: wait_for_event("a", on_timeout="fallback"),
        lambda: wait_for_event("a", match=["x"]),
        lambda: wait_for_event("a", match={"pk": "{{ ctx.__class__ }}"}),
        lambda: fail(""),
        lambda: fail("  "),
        lambda: fail(None),
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(DefinitionError):
        wrong()


def test_a_method_that_is_no_step_is_named_with_the_fix():
    with pytest.raises(DefinitionError, match=r"'plain' is not a step; decorate it with @step\(\)"):
        goto(Flow().plain)


def test_sleeping_until_a_naive_date_is_refused():
    with pytest.raises(NaiveDatetimeError):
        sleep(until=datetime(2030, 1, 1))  # noqa: DTZ001


def test_the_cheatsheets_positions_work():
    outcome = wait("custom:signal", HOUR, "late")
    assert (outcome.signal, outcome.timeout, outcome.on_timeout) == ("custom:signal", HOUR, "late")
    outcome = wait_for_event("paid", HOUR, "late")
    assert (outcome.event, outcome.signal, outcome.timeout, outcome.on_timeout) == ("paid", "event:paid", HOUR, "late")
    assert wait.for_signal("a") == wait("a")
    assert wait.for_event("a").event == "a"


def test_waiting_for_an_events_channel_is_waiting_for_the_event():
    assert wait("event:paid").event == "paid"


def test_a_wait_without_match_is_not_a_match_of_anything():
    assert wait_for_event("a").match is None
    assert wait_for_event("a", match={}).match.lookups == ()


def test_the_decorator_wants_a_step_below_it():
    with pytest.raises(DefinitionError, match="stands above @step"):

        @wait_for_event("paid")
        def plain(self):
            pass
