"""What the model knows of crates: each write that their triggers have captured is an occurrence, as a save is.

A transaction is one write of each crate that it changes, whatever it consists of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from .crate_writes import ROLLED_BACK
from .world import Deed, World

MILESTONES = {"crate_due": timedelta(0), "crate_due+": timedelta(milliseconds=600)}
CALLS = ("crate_made", "crate_written", "crate_touched", "crate_closed", "crate_gone", *MILESTONES)


def of_crates(world: World) -> Iterator[str]:
    if world.outbox:
        yield f"{world.outbox} captured writes were not recorded"
    occurred = Counter((each.thing, each.name) for each in world.occurrences if each.at is not None)
    for deed in world.of_kind("stock"):
        for name in deed.detail["names"]:
            for said in _of_crate(world, deed, name, occurred):
                yield f"crate {name}: {said}"
    for kind in ("stock", "restock", "drop"):
        for deed in world.of_kind(kind):
            if deed.result != len(deed.detail["names"]):
                yield f"crate {deed.target}: {kind} {deed.detail['how']} wrote to {deed.result} rows"


def names_of(world: World) -> set[str]:
    return {name for deed in world.of_kind("stock") for name in deed.detail["names"]}


def is_gone(world: World, name: str) -> bool:
    return any(name in deed.detail["names"] for deed in world.of("drop", name.partition(".")[0]))


def _of_crate(world: World, made: Deed, name: str, occurred: Mapping[tuple[str, str], int]) -> Iterator[str]:
    calls, gone = world.counted(f"{name}:crate"), is_gone(world, name)
    writes = [
        deed
        for deed in world.of("restock", made.target)
        if name in deed.detail["names"] and deed.detail["how"] != ROLLED_BACK
    ]
    stocked = world.counted(f"{name}:steps")["stocked"]
    touches = sum(1 for deed in writes if deed.detail["touch"]) + stocked
    values = [made.detail["values"]["is_open"]]
    values += [deed.detail["values"]["is_open"] for deed in writes if "is_open" in deed.detail["values"]]
    expected = {
        "crate_made": 1,
        "crate_written": len(writes) + stocked,
        "crate_touched": touches,
        "crate_closed": sum(1 for was, becomes in pairwise(values) if was and not becomes),
        "crate_gone": int(gone),
    }
    effects = world.by_owner.get(f"{name}:crate", ())
    for (key, serial), number in Counter((effect.key, effect.serial) for effect in effects).items():
        if number > 1:
            yield f"{key} of event {serial} was called {number} times"
    for key, number in expected.items():
        cancelled = calls[f"{key} cancelled"]
        done = calls[key] + cancelled
        # A deletion also cancels the row that waits for the next touch.
        most = number + (gone and key == "crate_touched")
        if not number <= done <= most or (cancelled and not gone):
            yield f"{key} was called {calls[key]} times and cancelled {cancelled} times, and {number} is right"
        if calls[key] != occurred[name, key]:
            yield f"{key} occurred {occurred[name, key]} times, and was called {calls[key]} times"
    touched = sorted(effect.idempotency for effect in effects if effect.key == "crate_touched")
    possible = {f"{version} to {version + 1}" for version in range(touches)}
    if len(set(touched)) != len(touched) or not possible.issuperset(touched):
        yield f"crate_touched came with the changes {touched}, of {touches} touches"
    yield from _of_dates(world, [made, *writes], name, calls, gone)


def _of_dates(world: World, writes: Sequence[Deed], name: str, calls: Mapping[str, int], gone: bool) -> Iterator[str]:
    """Check the milestones of the date: once each if it is past and was not deleted, and never early."""
    dated = [deed for deed in writes if "due_at" in deed.detail["values"]]
    dates: list[datetime | None] = [deed.detail["values"]["due_at"] for deed in dated]
    ends = [*(deed.ended for deed in dated[1:]), datetime.max.replace(tzinfo=world.now.tzinfo)]
    for key, offset in MILESTONES.items():
        past = [date is not None and date + offset <= world.now for date in dates]
        allowed = {0} if not any(past) else {1} if past[-1] and not gone else {0, 1}
        if calls[key] not in allowed:
            yield f"{key} was called {calls[key]} times, and {sorted(allowed)} is right"
    if calls["crate_due cancelled"] and (not gone or calls["crate_due"]):
        yield f"crate_due was called {calls['crate_due']} times and cancelled {calls['crate_due cancelled']} times"
    for milestone in world.milestones_of(f"{name}:crate"):
        if milestone.key not in MILESTONES:
            continue
        in_force = [
            date + MILESTONES[milestone.key]
            for date, deed, end in zip(dates, dated, ends, strict=True)
            if date is not None and deed.begun <= milestone.fired + world.slack and end >= milestone.fired - world.skew
        ]
        if not any(due <= milestone.fired for due in in_force):
            yield f"{milestone.key} fired at {milestone.fired}, and was due at {list(map(str, in_force))}"
