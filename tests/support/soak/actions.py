"""The outside of the soak: what users and operators do to the database, each deed in one transaction with its row in
``Deed``. Where the answer to a commit is lost, that row says whether it was done, so no deed is done twice.

``Chooser`` draws programs and deeds from a seed, by what it has done before and never by what the database says: the
same seed makes the same choices.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import Error as AnyDatabaseError
from django.db import connection, transaction
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.db.errors import is_database_failure
from django_ai.automation.events.models import Event
from tests.apps.soak import models as rows

from .model import Deed

Program = list[dict[str, Any]]
NEVER = timedelta(days=3650)


class Outside:
    """Does deeds, and remembers them."""

    def __init__(self) -> None:
        self.deeds: list[Deed] = []
        self.runs: dict[str, int] = {}

    def make(self, name: str, *, ready: bool, due: float | None, program: Program) -> None:
        date = _in(due)

        def act() -> Any:
            return rows.Thing.objects.create(name=name, ready=ready, due_at=date, program=program).pk

        self._do("make", name, act, ready=ready, due=date, program=program)

    def ready(self, name: str, value: bool) -> None:
        self._do("ready", name, lambda: _change(name, ready=value), value=value)

    def freeze(self, name: str, value: bool) -> None:
        self._do("freeze", name, lambda: _change(name, frozen=value), value=value)

    def date(self, name: str, due: float | None) -> None:
        date = _in(due)
        self._do("date", name, lambda: _change(name, due_at=date), due=date)

    def touch(self, name: str) -> None:
        self._do("touch", name, lambda: _change(name, version=1))

    def delete(self, name: str) -> None:
        self._do("delete", name, lambda: rows.Thing.objects.select_for_update().get(name=name).delete()[0])

    def start(self, tag: str, program: Program, thing: str) -> None:
        def act() -> Any:
            return engine.start("soak:program", tag=tag, program=program, thing=thing).pk

        self.runs[tag] = self._do("start", tag, act, program=program, thing=thing)

    def signal(self, tag: str, pc: int, serial: int) -> None:
        name = f"{tag}:{pc}"
        run = self.runs[tag]
        self._do("signal", name, lambda: engine.signal(name, {"serial": serial}, run=run).pk, serial=serial)

    def broadcast(self, name: str, serial: int) -> None:
        self._do("broadcast", name, lambda: engine.signal(name, {"serial": serial}).pk, serial=serial)

    def cancel_event(self, name: str) -> None:
        """Cancel the scheduled event of a thing, if it is still pending."""
        self._do("cancel event", name, lambda: _cancel_event(name))

    def cancel(self, tag: str) -> None:
        self._do("cancel", tag, lambda: engine.cancel(self.runs[tag], "The outside says so."))

    def _do(self, kind: str, target: str, act: Callable[[], Any], **detail: Any) -> Any:
        """Do one deed, once, whatever happens to the database meanwhile."""
        number, begun = len(self.deeds), timezone.now()
        while True:
            try:
                with transaction.atomic():
                    done = rows.Deed.objects.filter(number=number).first()
                    if done is None:
                        done = rows.Deed.objects.create(number=number, kind=kind, result=act())
                break
            except AnyDatabaseError as error:
                if not is_database_failure(error, connection):
                    raise
                connection.close()
                time.sleep(0.1)
        self.deeds.append(Deed(number, kind, target, begun, timezone.now(), detail, done.result))
        return done.result


def _in(seconds: float | None) -> datetime | None:
    return None if seconds is None else timezone.now() + timedelta(seconds=seconds)


def _change(name: str, version: int = 0, **values: Any) -> bool:
    thing = rows.Thing.objects.select_for_update().get(name=name)
    thing.version += version
    for field, value in values.items():
        setattr(thing, field, value)
    thing.save()
    return True


def _cancel_event(name: str) -> bool:
    thing = rows.Thing.objects.select_for_update().get(name=name)
    event = Event.objects.of(thing).filter(event_name="soak_due", active_key__isnull=False).first()
    return event is not None and event.cancel()


class Chooser:
    """Draws what the outside does next, from a seed. ``pace``: how long sleeps, timeouts and dates are, in seconds."""

    def __init__(self, outside: Outside, seed: int, pace: float = 2.0) -> None:
        self.outside = outside
        self.random = random.Random(seed)
        self.pace = pace
        self.things: list[str] = []
        self.tags: list[str] = []
        self.programs: dict[str, Program] = {}
        self.open: list[tuple[str, int]] = []
        self.serial = 0

    def step(self) -> None:
        """Do one more thing."""
        kinds: Mapping[str, int] = {
            "make": 4, "start": 6, "touch": 5, "date": 3, "ready": 3, "freeze": 1,
            "signal": 5, "broadcast": 1, "burst": 1, "cancel": 1, "cancel_event": 1, "delete": 1,
        }  # fmt: skip
        (kind,) = self.random.choices(list(kinds), weights=list(kinds.values()))
        getattr(self, f"_{kind}")()

    def finish(self) -> None:
        """End what need not wait for ever: most of the waits and of the dates that are far, by their names."""
        for tag, pc in self.open:
            if self.random.random() < 0.7:
                self._send(tag, pc)
        self.open.clear()
        for name in self.things:
            if self.random.random() < 0.5:
                self.outside.freeze(name, False)
                self.outside.date(name, self.random.uniform(0, self.pace))

    def _make(self) -> None:
        name = f"t{len(self.outside.deeds)}"
        due = self._some_date()
        program = self.program(2, own=True)
        self.outside.make(name, ready=self.random.random() < 0.4, due=due, program=program)
        self.things.append(name)

    def _start(self) -> None:
        tag = f"r{len(self.outside.deeds)}"
        thing = self.random.choice(self.things[-20:]) if self.things and self.random.random() < 0.7 else ""
        program = self.program(self.random.randint(1, 6), thing=thing)
        self.outside.start(tag, program, thing)
        self.tags.append(tag)
        self.open += [(tag, pc) for pc, instruction in enumerate(program) if instruction.get("on") == "signal"]

    def _touch(self) -> None:
        self._to_one(self.outside.touch)

    def _date(self) -> None:
        self._to_one(lambda name: self.outside.date(name, self._some_date()))

    def _ready(self) -> None:
        self._to_one(lambda name: self.outside.ready(name, self.random.random() < 0.8))

    def _freeze(self) -> None:
        self._to_one(lambda name: self.outside.freeze(name, self.random.random() < 0.5))

    def _delete(self) -> None:
        if len(self.things) > 3:
            name = self.random.choice(self.things[-30:])
            self.things.remove(name)
            self.outside.delete(name)

    def _signal(self) -> None:
        if self.open:
            place = self.random.randrange(max(0, len(self.open) - 30), len(self.open))
            # Now and then a second one to the same wait: it is kept, and nobody takes it.
            tag, pc = self.open[place] if self.random.random() < 0.1 else self.open.pop(place)
            self._send(tag, pc)

    def _send(self, tag: str, pc: int) -> None:
        self.serial += 1
        self.outside.signal(tag, pc, self.serial)

    def _broadcast(self) -> None:
        self.serial += 1
        self.outside.broadcast(self.random.choice("xyz"), self.serial)

    def _burst(self) -> None:
        """Send several signals in a row, some under one name."""
        for _ in range(self.random.randint(2, 6)):
            self._broadcast() if self.random.random() < 0.6 else self._signal()

    def _cancel_event(self) -> None:
        self._to_one(self.outside.cancel_event)

    def _cancel(self) -> None:
        if self.tags:
            tag = self.random.choice(self.tags[-20:])
            self.tags.remove(tag)
            self.outside.cancel(tag)

    def _to_one(self, act: Callable[[str], None]) -> None:
        if self.things:
            act(self.random.choice(self.things[-30:]))

    def _some_date(self) -> float | None:
        draw = self.random.random()
        if draw < 0.15:
            return None
        if draw < 0.3:
            return NEVER.total_seconds()
        return self.random.uniform(-0.5, 2) * self.pace

    def program(self, length: int, *, thing: str = "", own: bool = False, depth: int = 0) -> Program:
        """Return a random program."""
        return [self._instruction(thing, own, depth) for _ in range(length)]

    def _instruction(self, thing: str, own: bool, depth: int) -> dict[str, Any]:
        draw = self.random
        kinds = ["mark", "mark", "slow", "loose", "sleep", "wait", "wait"]
        kinds += ["touch", "touch", "hold", "release"] if thing or own else []
        kinds += ["hang"] if draw.random() < 0.3 else []
        kinds += ["call"] if depth < 2 else []
        kinds += ["fail"] if draw.random() < 0.1 else []
        kind = draw.choice(kinds)
        instruction: dict[str, Any] = {"do": kind}
        if kind not in ("fail", "hang") and draw.random() < 0.3:
            instruction["fails"] = 4 if draw.random() < 0.05 else draw.randint(1, 3)
        if kind == "hang":
            instruction["hangs"] = draw.randint(0, 3)
        elif kind in ("slow", "loose"):
            instruction["seconds"] = round(draw.uniform(0, 0.15) * self.pace, 3)
        elif kind == "sleep":
            instruction |= {"seconds": round(draw.uniform(0, 1) * self.pace, 3), "again": draw.random() < 0.5}
        elif kind == "wait":
            instruction |= self._wait(thing, own, depth)
        elif kind == "call":
            instruction["program"] = self.program(draw.randint(1, 3), thing=thing, own=own, depth=depth + 1)
        return instruction

    def _wait(self, thing: str, own: bool, depth: int) -> dict[str, Any]:
        draw = self.random
        ons = ["broadcast"]
        ons += ["signal", "signal"] if depth == 0 and not own else []
        ons += ["event"] if thing or own else []
        ons += ["own event"] if own else []
        on = draw.choice(ons)
        timeout = round(draw.uniform(0, 1.5) * self.pace, 3) if draw.random() < 0.6 or depth else None
        instruction: dict[str, Any] = {"on": on, "timeout": timeout, "again": draw.random() < 0.5}
        if on == "broadcast":
            instruction["name"] = draw.choice("xyz")
        return instruction
