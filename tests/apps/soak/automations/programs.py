"""Workflows that interpret a program: a list of instructions in the Context. Every worker can run every program.

Each instruction writes its effects in the transaction of its step. Their keys begin with the index of the instruction:

| ``do`` | what it does | effects |
| --- | --- | --- |
| ``mark`` | nothing else | ``mark`` |
| ``slow`` | sleeps ``seconds`` in the middle of its transaction | ``began``, ``done`` |
| ``loose`` | sleeps ``seconds`` outside any transaction | ``loose``, at least once |
| ``touch`` | saves its thing | ``touched``, or ``missed`` if the thing was deleted |
| ``stock`` | updates ``crate`` without a save | ``stocked``, or ``missed`` if the crate was deleted |
| ``sleep`` | sleeps for ``seconds`` | ``sleeps``, ``timer`` |
| ``wait`` | waits ``on`` a signal, broadcast or event, with or without ``timeout`` | ``waits``, then the wake reason |
| ``choose`` | the first of the broadcasts ``names`` and ``seconds`` | ``chooses``, then ``signal`` or ``timer`` |
| ``gather`` | two broadcasts and ``seconds``, within ``timeout`` | ``gathers``, ``signal`` for each, ``gathered`` |
| ``hang`` | hangs in ``hangs`` attempts until the step's timeout ends them | ``unhung`` |
| ``hold`` | claims ``soak_touched`` of its thing | ``holds``, or ``refused`` if another run holds the claim |
| ``release`` | releases that claim | ``released``, or ``had none`` |
| ``call`` | runs ``program`` as a sub-workflow | ``calls``, ``child <status>`` |
| ``fail`` | fails the run | ``failed`` |

A run that is cancelled writes ``undone`` before it ends.

``fails`` is how often an instruction raises after its last effect. ``defers`` is how often a ``mark`` raises
``RetryAfter`` before its effect. After the last instruction, a run writes ``end``. The deletion of a thing cancels the
run that its ``soak_ready`` has started.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    Concurrency,
    On,
    Retry,
    RetryAfter,
    Throttle,
    complete,
    event_workflow,
    fail,
    get_wake,
    goto,
    idempotency_key,
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.events import claims
from django_ai.automation.exceptions import ClaimedError

from ..models import Crate, Effect, Thing

TRIES = 4
RETRY = Retry(max_attempts=TRIES, base_delay=timedelta(milliseconds=50), backoff_factor=1)
OFFSET = timedelta(milliseconds=800)
HANGS_FOR = timedelta(milliseconds=300)


def lane(**options: Any) -> dict[str, Any]:
    """Return the options in a soak. Other tests, which import this app too, have no lanes that they do not declare."""
    return options if "SOAK_LANES" in os.environ else {}


class ToldToFail(Exception):
    """The program makes this attempt fail."""


class Program(BaseModel):
    tag: str
    thing: str = ""
    program: list[dict[str, Any]] = []
    pc: int = 0
    tries: int = 0
    deferred: int = 0
    tally: list[str] = []
    serial: int = 0
    since: datetime | None = None


class Performer:
    """The steps of all programs."""

    Context = Program
    context: Program

    @step(start=True, retry=RETRY)
    def act(self):
        match self._now.get("do"):
            case "loose":
                return goto(self.loosely)
            case "hang":
                return goto(self.hanging)
        return self._turn()

    @step(retry=RETRY, timeout=HANGS_FOR)
    def hanging(self):
        return self._turn()

    @step(retry=RETRY, atomic=False)
    def loosely(self):
        return self._turn()

    @step(retry=RETRY)
    def woken(self):
        return self._turn()

    @step(retry=RETRY)
    def late(self):
        return self._turn()

    @on_cancel(retry=RETRY)
    def undo(self):
        Effect.objects.create(owner=self.context.tag, key=f"{self.context.pc}:undone")

    @on_fail
    def failed(self, error):
        Effect.objects.create(owner=self.context.tag, key=f"{self.context.pc}:failed")

    def _turn(self):
        if self.context.pc >= len(self.context.program):
            self._leave("end")
            return complete()
        return getattr(self, f"_{self._now['do']}")()

    @property
    def _now(self) -> dict[str, Any]:
        return self.context.program[self.context.pc] if self.context.pc < len(self.context.program) else {}

    def _leave(self, what: str, serial: int | None = None, not_before: datetime | None = None) -> None:
        key = f"{self.context.pc}:{what}"
        Effect.objects.create(
            owner=self.context.tag, key=key, serial=serial, not_before=not_before, idempotency=idempotency_key()
        )
        self.context.tally.append(key)

    def _last(self, what: str, serial: int | None = None, not_before: datetime | None = None):
        """Write the last effect of an instruction; raise if ``fails`` says so, else go to the next instruction."""
        tally = list(self.context.tally)
        self._leave(what, serial, not_before)
        if self.context.tries < self._now.get("fails", 0):
            # The effect is rolled back but the Context is kept, so remove the effect from the tally.
            self.context.tally = tally
            self.context.tries += 1
            raise ToldToFail
        self.context.pc, self.context.tries = self.context.pc + 1, 0
        return goto(self.act)

    def _mark(self):
        if self.context.deferred < self._now.get("defers", 0):
            self._leave("deferred")  # rolled back with the attempt
            self.context.tally.pop()
            self.context.deferred += 1
            raise RetryAfter(timedelta(seconds=1))
        self.context.deferred = 0
        return self._last("mark")

    def _slow(self):
        tally = list(self.context.tally)
        self._leave("began")
        time.sleep(self._now["seconds"])
        try:
            return self._last("done")
        except ToldToFail:
            self.context.tally = tally
            raise

    def _loose(self):
        tally = list(self.context.tally)
        self._leave("loose")
        time.sleep(self._now["seconds"])
        if self.context.tries < self._now.get("fails", 0):
            self.context.tally = tally
            self.context.tries += 1
            raise ToldToFail
        self.context.pc, self.context.tries = self.context.pc + 1, 0
        return goto(self.act)

    def _hang(self):
        if self.context.tries < self._now["hangs"]:
            self._leave("hung")  # rolled back with the attempt
            self.context.tally.pop()
            self.context.tries += 1
            time.sleep(60)
        self._leave("unhung")
        self.context.pc, self.context.tries = self.context.pc + 1, 0
        return goto(self.act)

    def _hold(self):
        try:
            claims.hold("soak_touched", {"name": self.context.thing}, expires_in=timedelta(seconds=1))
        except ClaimedError:
            return self._last("refused")
        return self._last("holds")

    def _release(self):
        released = claims.release("soak_touched", match={"name": self.context.thing})
        return self._last("released" if released else "had none")

    def _touch(self):
        thing = Thing.objects.select_for_update().filter(name=self.context.thing).first()
        if thing is None:
            return self._last("missed")
        thing.version += 1
        thing.save()
        return self._last("touched", serial=thing.version)

    def _stock(self):
        name = self._now["crate"]
        if not Crate.objects.filter(name=name).update(version=F("version") + 1):
            return self._last("missed")
        Effect.objects.create(owner=f"{name}:steps", key="stocked")
        return self._last("stocked")

    def _sleep(self):
        length = timedelta(seconds=self._now["seconds"])
        if get_wake().reason == "timer":
            assert self.context.since is not None
            return self._last("timer", not_before=self.context.since + length)
        self._leave("sleeps")
        self.context.since = timezone.now()
        return sleep(length, then=None if self._now.get("again") else self.woken)

    def _wait(self):
        instruction, wake = self._now, get_wake()
        length = None if instruction.get("timeout") is None else timedelta(seconds=instruction["timeout"])
        if wake.reason == "timeout":
            assert self.context.since is not None
            return self._last("timeout", not_before=self.context.since + (length or timedelta(0)))
        if wake.reason != "first":
            serial = wake.payload["serial" if wake.reason == "signal" else "event_id"]
            return self._last(str(wake.reason), serial=serial)
        self._leave("waits")
        self.context.since = timezone.now()
        then = None if instruction.get("again") else self.woken
        late = None if instruction.get("again") or length is None else self.late
        if instruction["on"] == "event":
            return wait_for_event(
                "soak_touched", timeout=length, on_timeout=late, then=then, match={"name": "{{ ctx.thing }}"}
            )
        if instruction["on"] == "own event":
            return wait_for_event("soak_touched", timeout=length, on_timeout=late, then=then)
        return wait(channel(self.context.tag, self.context.pc, instruction), timeout=length, on_timeout=late, then=then)

    def _choose(self):
        wake, length = get_wake(), timedelta(seconds=self._now["seconds"])
        if wake.reason == "first":
            self._leave("chooses")
            self.context.since = timezone.now()
            names = {name: wait(name) for name in self._now["names"]}
            return wait_any(names, later=sleep(length), then=None if self._now.get("again") else self.woken)
        if wake.branch == "later":
            assert self.context.since is not None
            return self._last("timer", not_before=self.context.since + length)
        assert wake.branch in self._now["names"]
        return self._last("signal", serial=wake.payload["serial"])

    def _gather(self):
        wake = get_wake()
        if wake.reason == "first":
            self._leave("gathers")
            one, two = self._now["names"]
            later = sleep(timedelta(seconds=self._now["seconds"]))
            timeout = timedelta(seconds=self._now["timeout"])
            return wait_all(one=wait(one), two=wait(two), later=later, timeout=timeout)
        tally = list(self.context.tally)
        for name in ("one", "two"):
            if name in wake.branches:
                self._leave("signal", wake.branches[name].payload["serial"])
        assert wake.reason == "timeout" or len(wake.branches) == 3
        try:
            return self._last("gathered")
        except ToldToFail:
            self.context.tally = tally
            raise

    def _call(self):
        if get_wake().reason == "signal":
            return self._last(f"child {get_wake().payload['status']}")
        self._leave("calls")
        arguments = {"tag": f"{self.context.tag}.{self.context.pc}", "thing": self.context.thing}
        return run_subflow("soak:program", then=self.woken, program=self._now["program"], **arguments)

    def _fail(self):
        return fail("The program says so.")


def channel(tag: str, pc: int, instruction: dict[str, Any]) -> str:
    """Return the name of the signal that an instruction waits for."""
    return str(instruction["name"]) if instruction["on"] == "broadcast" else f"{tag}:{pc}"


@workflow("soak:program", **lane(priority=lambda context: len(context.tag) % 3 - 1))
class ByHand(Performer):
    """Started by a simulated user, or as a sub-workflow."""


@workflow("soak:limited", concurrency=[Concurrency(2, key="{{ ctx.thing }}"), Concurrency(3)])
class Limited(Performer):
    """The same, a few at a time: what it leaves must be the same, too."""


@event_workflow(
    "soak_ready",
    name="soak:ready",
    cancel_on=[On("soak_gone", match={"name": "{{ ctx.thing }}"})],
    concurrency=Concurrency(2, key="{{ ctx.thing }}"),
    **lane(queue="ready", priority=lambda event: event.pk % 5),
)
class OnReady(Performer):
    """Runs the program of the thing that has become ready."""

    @classmethod
    def create_context(cls, event):
        thing = event.entity
        return Program(tag=f"{thing.name}:ready", thing=thing.name, program=thing.program)


@event_workflow(
    "soak_due",
    offset=-OFFSET,
    name="soak:before",
    throttle=Throttle(40, per=timedelta(seconds=1)),
    **lane(queue="planned"),
)
class BeforeDue(Performer):
    """A planned run."""

    @classmethod
    def create_context(cls, event):
        thing = event.entity
        return Program(tag=f"{thing.name}:before", thing=thing.name, program=[{"do": "mark"}])


@workflow("soak:steps", **lane(queue="steps"))
class Steps:
    """Runs ``steps`` times; each time writes one effect."""

    class Context(BaseModel):
        tag: str
        steps: int
        done: int = 0

    @step(start=True)
    def one(self):
        self.context.done += 1
        Effect.objects.create(owner=self.context.tag, key=str(self.context.done), idempotency=idempotency_key())
        return complete() if self.context.done >= self.context.steps else goto(self.one)
