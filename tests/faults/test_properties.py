"""Properties of the engine under random sequences of actions.

Hypothesis draws the programs, the external actions, the time that passes, and the SQL statement at which a worker (or
the process that saves) dies. The clock is stopped, the worker is ``drain``, and at the end the model of the soak
checks the result.

``PROPERTY_EXAMPLES`` and ``PROPERTY_STEPS`` set the number of examples and of their steps, for longer runs than in the
gate. With ``PROPERTY_EXAMPLES`` the examples are random.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.registry import due_times, wakeables
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.soak import models as rows
from tests.conftest import StoppedClock
from tests.support.fault_injection import dying
from tests.support.soak.actions import NEVER, Outside
from tests.support.soak.model import compare
from tests.support.soak.observations import resume_lost, without_reason, world_of
from tests.support.soak.world import Deed

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(3600),
    pytest.mark.slow,
    # A simulated crash leaves its cursor open.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "25"))
STEPS = int(os.environ.get("PROPERTY_STEPS", "20"))

fails = st.sampled_from([0, 0, 0, 1, 3, 4])
again = st.booleans()
timeouts = st.sampled_from([None, 1, 5])
dates = st.sampled_from([None, -5, 0, 0.3, 1, 5, NEVER.total_seconds()])


def instruction(do: str, **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"do": st.just(do), **fields})


def instructions(*ons: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        instruction("mark", fails=fails),
        instruction("touch", fails=fails),
        instruction("loose", fails=fails, seconds=st.just(0)),
        instruction("sleep", fails=fails, seconds=st.sampled_from([0, 1, 5]), again=again),
        instruction("wait", fails=fails, on=st.just("broadcast"), name=st.just("x"), timeout=timeouts, again=again),
        instruction("hold", fails=fails),
        instruction("release", fails=fails),
        *[instruction("wait", fails=fails, on=st.just(on), timeout=timeouts, again=again) for on in ons],
        instruction("fail"),
    )


def programs(*ons: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    # A child does not wait for a signal to its run, because the external actions do not know the child.
    child = st.lists(instructions("event"), min_size=1, max_size=2)
    return st.lists(instructions(*ons) | instruction("call", fails=fails, program=child), min_size=1, max_size=4)


class Mortal(Outside):
    """External actions whose process may die: an action is then either done or not done."""

    death: int | None = None

    def _do(self, kind: str, target: str, act: Any, **detail: Any) -> Any:
        if self.death is None:
            return super()._do(kind, target, act, **detail)
        number, known = len(self.deeds), len(self.deeds)
        with dying(self.death):
            return super()._do(kind, target, act, **detail)
        done = rows.Deed.objects.filter(number=number).first()
        if done is None or len(self.deeds) > known:
            return None
        now = CLOCK.now
        self.deeds.append(Deed(number, kind, target, now, now, detail, done.result))
        return done.result


CLOCK: StoppedClock


class Lives(RuleBasedStateMachine):
    """The random actions, and the check at the end of each example."""

    def __init__(self) -> None:
        super().__init__()
        forget()
        self.clock = CLOCK
        self.outside = Mortal()
        self.things: list[str] = []
        self.waits: list[tuple[str, int]] = []
        self.serial = 0

    def known(self, kind: str, target: str) -> bool:
        return any(deed.kind == kind and deed.target == target for deed in self.outside.deeds)

    @rule(ready=st.booleans(), due=dates, program=programs("event", "own event"))
    def make(self, ready, due, program):
        name = f"t{len(self.things)}n{len(self.outside.deeds)}"
        self.outside.make(name, ready=ready, due=due, program=program)
        if self.known("make", name):
            self.things.append(name)

    @rule(program=programs("signal", "event"), which=st.integers(0, 9))
    def start(self, program, which):
        tag = f"r{len(self.outside.deeds)}"
        self.outside.start(tag, program, self.things[which % len(self.things)] if self.things else "")
        if self.known("start", tag):
            self.waits += [(tag, pc) for pc, each in enumerate(program) if each.get("on") == "signal"]

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9), value=st.booleans())
    def ready(self, which, value):
        self.outside.ready(self.things[which % len(self.things)], value)

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9), value=st.booleans())
    def freeze(self, which, value):
        self.outside.freeze(self.things[which % len(self.things)], value)

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9), due=dates)
    def date(self, which, due):
        self.outside.date(self.things[which % len(self.things)], due)

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9))
    def touch(self, which):
        self.outside.touch(self.things[which % len(self.things)])

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9))
    def delete(self, which):
        name = self.things[which % len(self.things)]
        self.outside.delete(name)
        if self.known("delete", name):
            self.things.remove(name)

    @precondition(lambda self: self.waits)
    @rule(which=st.integers(0, 9))
    def signal(self, which):
        self.serial += 1
        self.outside.signal(*self.waits[which % len(self.waits)], self.serial)

    @rule()
    def broadcast(self):
        self.serial += 1
        self.outside.broadcast("x", self.serial)

    @rule(length=st.integers(2, 4))
    def burst(self, length):
        for _ in range(length):
            self.broadcast()

    @precondition(lambda self: self.things)
    @rule(which=st.integers(0, 9))
    def cancel_event(self, which):
        self.outside.cancel_event(self.things[which % len(self.things)])

    @precondition(lambda self: self.outside.runs)
    @rule(which=st.integers(0, 9))
    def cancel(self, which):
        tags = [tag for tag, pk in self.outside.runs.items() if pk is not None]
        if tags:
            self.outside.cancel(tags[which % len(tags)])

    @rule(seconds=st.sampled_from([0.1, 0.5, 1, 5, 11]))
    def time_passes(self, seconds):
        self.clock.tick(timedelta(seconds=seconds))

    @rule()
    def a_worker_works(self):
        drain()

    @rule(milliseconds=st.sampled_from([-500, -50, 50, 500]))
    def a_worker_works_by_a_wrong_clock(self, milliseconds):
        by = timedelta(milliseconds=milliseconds)
        rows.SKEW = by
        self.clock.tick(by)
        try:
            drain()
        finally:
            self.clock.tick(-by)
            rows.SKEW = timedelta(0)

    @rule(at=st.integers(1, 60))
    def a_worker_dies(self, at):
        with dying(at):
            drain()

    @rule(which=st.integers(0, 5))
    def a_worker_dies_before_it_begins(self, which):
        claim(wakeables()[which], self.clock.now, 20)

    @rule(at=st.none() | st.integers(3, 40))
    def those_who_save_die(self, at):
        """From now on, each process that saves dies at its statement number ``at``, or never if it is None."""
        self.outside.death = at

    def teardown(self):
        self.outside.death = None
        for _ in range(1000):
            drain()
            if resume_lost():
                continue
            nearest = min(due_times().values(), default=None)
            if nearest is None or nearest > self.clock.now + NEVER / 2:
                break
            self.clock.now = max(nearest, self.clock.now)
        world = world_of(self.outside, skew=timedelta(milliseconds=500))
        found = [*compare(world), *without_reason(self.clock.now)]
        assert not found, "\n".join(found)


def forget() -> None:
    """Delete all rows, because each example starts without rows."""
    models = [rows.Effect, rows.Deed, rows.Thing, Signal, WorkflowRun, AgentRun, Event]
    for model in models:
        model._base_manager.all()._raw_delete(connection.alias) if model in models[:2] else _delete(model)


def _delete(model: Any) -> None:
    model._base_manager.all().delete()


def test_whatever_happens_the_effects_are_those_of_the_model(clock, caplog):
    caplog.set_level(logging.CRITICAL, "django_ai.automation")
    caplog.set_level(logging.CRITICAL, "django")
    global CLOCK
    CLOCK = clock
    started = clock.now

    def begin() -> Lives:
        clock.now = started
        return Lives()

    run_state_machine_as_test(
        begin,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize="PROPERTY_EXAMPLES" not in os.environ,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
