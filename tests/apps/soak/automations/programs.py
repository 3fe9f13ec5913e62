"""Workflows whose Context holds their program, a list of instructions: any worker runs any program.

Each instruction leaves its effects in the transaction of its step, under the number of the instruction:

| ``do`` | what it does | effects |
| --- | --- | --- |
| ``mark`` | nothing else | ``mark`` |
| ``slow`` | takes ``seconds`` in the middle of its transaction | ``began``, ``done`` |
| ``loose`` | takes ``seconds`` outside any transaction | ``loose``, at least once |
| ``touch`` | saves the thing that it is about | ``touched``, or ``missed`` if that was deleted |
| ``sleep`` | for ``seconds`` | ``sleeps``, ``timer`` |
| ``wait`` | ``on`` a signal, a broadcast or an event, with ``timeout`` or without | ``waits``, then why it woke |
| ``hang`` | hangs ``hangs`` times until its timeout ends the attempt | ``unhung`` |
| ``hold`` | claims the touches of its thing for its run | ``holds``, or ``refused`` where another run has them |
| ``release`` | releases them | ``released``, or ``had none`` |
| ``call`` | runs ``program`` as a sub-workflow | ``calls``, ``child <status>`` |
| ``fail`` | ends the run | ``failed`` |

``fails`` lets an instruction's last effect raise so often before it passes. Behind the last one there is ``end``.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    complete,
    event_workflow,
    fail,
    get_wake,
    goto,
    idempotency_key,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.events import claims
from django_ai.automation.exceptions import ClaimedError

from ..models import Effect, Thing

TRIES = 4
RETRY = Retry(max_attempts=TRIES, base_delay=timedelta(milliseconds=50), backoff_factor=1)
OFFSET = timedelta(milliseconds=800)
HANGS_FOR = timedelta(milliseconds=300)


class ToldToFail(Exception):
    """The program says that this try fails."""


class Program(BaseModel):
    tag: str
    thing: str = ""
    program: list[dict[str, Any]] = []
    pc: int = 0
    tries: int = 0
    tally: list[str] = []
    serial: int = 0
    since: datetime | None = None


class Performer:
    """The steps that all programs have."""

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
        """Leave the last effect of an instruction, or fail with it, and go on with the next."""
        tally = list(self.context.tally)
        self._leave(what, serial, not_before)
        if self.context.tries < self._now.get("fails", 0):
            # The effect is rolled back and the Context is kept: so it learns what became of it.
            self.context.tally = tally
            self.context.tries += 1
            raise ToldToFail
        self.context.pc, self.context.tries = self.context.pc + 1, 0
        return goto(self.act)

    def _mark(self):
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


@workflow("soak:program")
class ByHand(Performer):
    """Started by the outside, or as a sub-workflow."""


@event_workflow("soak_ready", name="soak:ready")
class OnReady(Performer):
    """Runs the program of the thing that has become ready."""

    @classmethod
    def create_context(cls, event):
        thing = event.entity
        return Program(tag=f"{thing.name}:ready", thing=thing.name, program=thing.program)


@event_workflow("soak_due", offset=-OFFSET, name="soak:before")
class BeforeDue(Performer):
    """A planned run."""

    @classmethod
    def create_context(cls, event):
        thing = event.entity
        return Program(tag=f"{thing.name}:before", thing=thing.name, program=[{"do": "mark"}])


@workflow("soak:steps")
class Steps:
    """So many steps, each of which leaves one effect."""

    class Context(BaseModel):
        tag: str
        steps: int
        done: int = 0

    @step(start=True)
    def one(self):
        self.context.done += 1
        Effect.objects.create(owner=self.context.tag, key=str(self.context.done), idempotency=idempotency_key())
        return complete() if self.context.done >= self.context.steps else goto(self.one)
