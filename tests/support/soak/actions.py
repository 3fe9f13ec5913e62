"""The outside of the soak: the actions (deeds) of users and operators. Each is one transaction that also inserts a row
in ``Deed``. If the answer to a commit is lost, that row shows whether the deed was done, so no deed is done twice.

``Chooser`` draws programs and deeds from a seed. It considers its earlier choices and never the database, so the same
seed makes the same choices.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import Error as AnyDatabaseError
from django.db import connections, transaction
from django.utils import timezone

from django_ai.automation import emit, engine
from django_ai.automation.db.errors import is_database_failure
from django_ai.automation.events.models import Event
from tests.apps.soak import models as rows

from . import crate_writes
from .visits import AHEAD, on_the_wall
from .world import Deed

Program = list[dict[str, Any]]
NEVER = timedelta(days=3650)
HALLS = ("h1", "h2", "h3", "h4")
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Tokyo", "Australia/Lord_Howe", "America/Santiago", "UTC", "")
"""In which one of two moments half a year apart may be in summer, in the north, in the south, or in neither."""


class Outside:
    """Performs deeds, and records them."""

    def __init__(self) -> None:
        self.deeds: list[Deed] = []
        self.runs: dict[str, int] = {}
        self.names: dict[str, str] = {}
        """The workflow of each run."""
        self.zones: dict[str, str] = {"": ""}
        """The time zone of each hall, and of none."""

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
        name = self.names[tag] = "soak:limited" if len(self.runs) % 2 else "soak:program"

        def act() -> Any:
            return engine.start(name, tag=tag, program=program, thing=thing, key=tag, if_exists="raise").pk

        self.runs[tag] = self._do("start", tag, act, program=program, thing=thing)

    def start_again(self, tag: str) -> None:
        """Start a run with a key that is taken: it is the same run, whatever has become of it."""
        found = self._do("start again", tag, lambda: engine.start(self.names[tag], tag=tag, program=[], key=tag).pk)
        assert found == self.runs[tag], f"{tag}: run {found} was started beside run {self.runs[tag]}"

    def signal(self, tag: str, pc: int, serial: int) -> None:
        name = f"{tag}:{pc}"
        run = self.runs[tag]
        self._do("signal", name, lambda: engine.signal(name, {"serial": serial}, run=run).pk, serial=serial)

    def broadcast(self, name: str, serial: int) -> None:
        self._do("broadcast", name, lambda: engine.signal(name, {"serial": serial}).pk, serial=serial)

    def emit(self, key: str, due: float | None) -> None:
        date = _in(due)
        self._do("emit", key, lambda: emit("soak_news", {"key": key}, key=key, at=date).pk, due=date)

    def cancel_event(self, name: str) -> None:
        """Cancel the scheduled event of a thing, if it is still pending."""
        self._do("cancel event", name, lambda: _cancel_event(name))

    def cancel(self, tag: str) -> None:
        self._do("cancel", tag, lambda: engine.cancel(self.runs[tag], "The outside says so."))

    # -- crates, in the ways of which Django sends no signals ----------------------------------------------------------

    def stock(self, batch: str, names: Sequence[str], how: str, is_open: bool, due: float | None) -> None:
        values = {"is_open": is_open, "due_at": _in(due)}
        act = partial(crate_writes.add, names, how, values)
        self._do("stock", batch, act, on=crate_writes.alias_for(how), names=names, how=how, values=values)

    def restock(self, batch: str, names: Sequence[str], how: str, *, touch: bool, **values: Any) -> None:
        if "due_at" in values:
            values["due_at"] = _in(values["due_at"])
        act = partial(crate_writes.change, names, how, values, touch=touch)
        self._do(
            "restock", batch, act, on=crate_writes.alias_for(how), names=names, how=how, touch=touch, values=values
        )

    def drop(self, batch: str, names: Sequence[str], how: str) -> None:
        act = partial(crate_writes.drop, names, how)
        self._do("drop", batch, act, on=crate_writes.alias_for(how), names=names, how=how)

    # -- visits, in halls whose time zones change ----------------------------------------------------------------------

    def hall(self, name: str, zone: str) -> None:
        """Save the row of the hall alone, which its visits are not told."""
        self._do(
            "hall", name, lambda: rows.Hall.objects.update_or_create(name=name, defaults={"zone": zone})[1], zone=zone
        )
        self.zones[name] = zone

    def visit(self, name: str, hall: str, due: float | None) -> None:
        """Make or change a visit, whose milestone is due in ``due`` seconds if its hall stays where it is."""
        ahead = _in(due)
        start = None if ahead is None else on_the_wall(ahead, AHEAD, self.zones[hall])

        def act() -> Any:
            visit = rows.Visit.objects.select_for_update().filter(name=name).first() or rows.Visit(name=name)
            visit.hall_id, visit.starts_at = hall or None, start
            visit.save()
            return True

        self._do("visit", name, act, hall=hall, start=start)

    def leave(self, name: str) -> None:
        self._do("leave", name, lambda: rows.Visit.objects.get(name=name).delete()[0])

    def pause(self, **target: Any) -> None:
        self._do("pause", str(target), lambda: engine.pause(**target))

    def unpause(self, **target: Any) -> None:
        self._do("unpause", str(target), lambda: engine.unpause(**target))

    def _do(self, kind: str, target: str, act: Callable[[], Any], *, on: str = "default", **detail: Any) -> Any:
        """Do one deed exactly once, even if the database fails meanwhile. ``on``: the alias of the connection."""
        number, begun = len(self.deeds), timezone.now()
        while True:
            try:
                with transaction.atomic(using=on):
                    done = rows.Deed.objects.using(on).filter(number=number).first()
                    if done is None:
                        done = rows.Deed.objects.using(on).create(number=number, kind=kind, result=act())
                break
            except AnyDatabaseError as error:
                if not is_database_failure(error, connections[on]):
                    raise
                connections[on].close()
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
    """Draws the next deeds from a seed. ``pace``: the scale of sleeps, timeouts and dates, in seconds."""

    def __init__(self, outside: Outside, seed: int, pace: float = 2.0) -> None:
        self.outside = outside
        self.random = random.Random(seed)
        self.pace = pace
        self.things: list[str] = []
        self.tags: list[str] = []
        self.news: list[str] = []
        self.crates: dict[str, list[str]] = {}
        self.visits: list[str] = []
        self.open: list[tuple[str, int]] = []
        self.serial = 0

    def step(self) -> None:
        """Do the next deed, or several in a burst."""
        kinds: Mapping[str, int] = {
            "make": 4, "start": 6, "start_again": 1, "touch": 5, "date": 3, "ready": 3, "freeze": 1,
            "signal": 5, "broadcast": 1, "burst": 1, "cancel": 1, "cancel_event": 1, "delete": 1, "emit": 3,
            "stock": 2, "restock": 6, "drop": 1, "visit": 4, "hall": 2, "leave": 1,
        }  # fmt: skip
        (kind,) = self.random.choices(list(kinds), weights=list(kinds.values()))
        getattr(self, f"_{kind}")()

    def finish(self) -> None:
        """Send most of the signals that runs wait for, and set an early date for half of the things. Set an early date,
        or none that comes, for each visit, for it is due an hour later when its hall has moved."""
        for tag, pc in self.open:
            if self.random.random() < 0.7:
                self._send(tag, pc)
        self.open.clear()
        for name in self.things:
            if self.random.random() < 0.5:
                self.outside.freeze(name, False)
                self.outside.date(name, self.random.uniform(0, self.pace))
        for name in self.visits:
            due = self.random.uniform(0, self.pace) if self.random.random() < 0.6 else NEVER.total_seconds()
            self.outside.visit(name, self._some_hall(), due)

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

    def _start_again(self) -> None:
        if self.tags:
            self.outside.start_again(self.random.choice(self.tags))

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
            # Sometimes send a second signal to the same wait. It is stored, and no wait receives it.
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

    def _emit(self) -> None:
        """Emit news, now and then under a key that was used before."""
        if not self.news or self.random.random() < 0.7:
            self.news.append(f"n{len(self.outside.deeds)}")
        self.outside.emit(self.random.choice(self.news[-5:]), self._some_date())

    def _cancel_event(self) -> None:
        self._to_one(self.outside.cancel_event)

    def _cancel(self) -> None:
        if self.tags:
            tag = self.random.choice(self.tags[-20:])
            self.tags.remove(tag)
            self.outside.cancel(tag)

    def _stock(self) -> None:
        batch = f"c{len(self.outside.deeds)}"
        names = [f"{batch}.{number}" for number in range(self.random.randint(1, 4))]
        how = self.random.choice(crate_writes.ADDING)
        self.outside.stock(batch, names, how, self.random.random() < 0.5, self._some_date())
        self.crates[batch] = names

    def _restock(self) -> None:
        batch, names = self._some_crates()
        if not names:
            return
        how, touch = self.random.choice(crate_writes.CHANGING), self.random.random() < 0.5
        values: dict[str, Any] = {}
        if how == crate_writes.BACK_AND_FORTH or self.random.random() < 0.5:
            values["is_open"] = self.random.random() < 0.5
        if self.random.random() < 0.3:
            values["due_at"] = self._some_date()
        if not values:
            touch = True
        self.outside.restock(batch, names, how, touch=touch, **values)

    def _drop(self) -> None:
        batch, names = self._some_crates()
        if names and len(self.crates) > 3:
            self.crates[batch] = [name for name in self.crates[batch] if name not in names]
            if not self.crates[batch]:
                del self.crates[batch]
            self.outside.drop(batch, names, self.random.choice(crate_writes.DROPPING))

    def _some_crates(self) -> tuple[str, list[str]]:
        """Return some crates of a batch, and its name."""
        if not self.crates:
            return "", []
        batch = self.random.choice(list(self.crates)[-10:])
        names = self.crates[batch]
        return batch, sorted(self.random.sample(names, self.random.randint(1, len(names))))

    def _hall(self) -> None:
        self.outside.hall(self.random.choice(HALLS), self.random.choice(ZONES))

    def _visit(self) -> None:
        if not self.visits or self.random.random() < 0.4:
            name = f"v{len(self.outside.deeds)}"
            self.visits.append(name)
        else:
            name = self.random.choice(self.visits[-20:])
        self.outside.visit(name, self._some_hall(), self._some_date())

    def _leave(self) -> None:
        if len(self.visits) > 3:
            name = self.random.choice(self.visits[-20:])
            self.visits.remove(name)
            self.outside.leave(name)

    def _some_hall(self) -> str:
        """Return a hall that exists, or none."""
        return self.random.choice(sorted(self.outside.zones))

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
        kinds = ["mark", "mark", "slow", "loose", "sleep", "wait", "wait", "choose", "gather"]
        kinds += ["touch", "touch", "hold", "release"] if thing or own else []
        kinds += ["stock"] if self.crates else []
        kinds += ["hang"] if draw.random() < 0.3 else []
        kinds += ["call"] if depth < 2 else []
        kinds += ["fail"] if draw.random() < 0.1 else []
        kind = draw.choice(kinds)
        instruction: dict[str, Any] = {"do": kind}
        if kind not in ("fail", "hang") and draw.random() < 0.3:
            instruction["fails"] = 4 if draw.random() < 0.05 else draw.randint(1, 3)
        if kind == "mark" and draw.random() < 0.15:
            instruction["defers"] = draw.randint(1, 3)
        elif kind == "stock":
            instruction["crate"] = draw.choice(self.crates[draw.choice(list(self.crates)[-10:])])
        elif kind == "hang":
            instruction["hangs"] = draw.randint(0, 3)
        elif kind in ("slow", "loose"):
            instruction["seconds"] = round(draw.uniform(0, 0.15) * self.pace, 3)
        elif kind == "sleep":
            instruction |= {"seconds": round(draw.uniform(0, 1) * self.pace, 3), "again": draw.random() < 0.5}
        elif kind == "wait":
            instruction |= self._wait(thing, own, depth)
        elif kind == "choose":
            instruction |= {"names": draw.choice(["x", "xy", "yz"]), "again": draw.random() < 0.5}
            instruction["seconds"] = round(draw.uniform(0, 1.5) * self.pace, 3)
        elif kind == "gather":
            instruction["names"] = draw.choice(["xy", "yy", "zx"])
            instruction["seconds"] = round(draw.uniform(0, 1) * self.pace, 3)
            instruction["timeout"] = round(draw.uniform(0.5, 3) * self.pace, 3)
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
