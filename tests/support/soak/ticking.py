"""What the model knows of the schedules: which of their times must have been performed.

One of them makes up for every time that was missed, so all of its times must have been performed, once each. The other
has the default, ``catch_up=1``: of the times that an outage covers, the last two are performed, one that was missed and
one that has just come, and those before are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from .world import Effect, Ticking, World

TICK = timedelta(seconds=2)
EACH, LATEST = "soak:tick", "soak:latest"
OWNERS = {EACH: "tick:schedule", LATEST: "latest:schedule"}
"""Whose effects are those of each schedule."""
BEGINS_WITHIN = timedelta(seconds=30)
"""How soon after the start of the workers one of them has inserted the rows of the schedules."""


def of_schedules(world: World) -> Iterator[str]:
    if world.since is None:
        return
    latest = world.since + BEGINS_WITHIN
    for name, owner in OWNERS.items():
        row = world.schedules.get(name)
        if row is None and world.now > latest:
            yield f"schedule {name}: no worker has inserted its row"
        elif row is not None:
            if row.anchor > latest:
                yield f"schedule {name}: it began at {row.anchor}, and the workers at {world.since}"
            for said in _of_schedule(world, name, row, world.by_owner.get(owner, ())):
                yield f"schedule {name}: {said}"


def _of_schedule(world: World, name: str, row: Ticking, effects: Sequence[Effect]) -> Iterator[str]:
    number = Counter(datetime.fromisoformat(effect.key) for effect in effects)
    if twice := sorted(time for time, times in number.items() if times > 1):
        yield f"{_texts(twice)} came more than once"
    # What is due at the very end may or may not have been performed by then.
    due = _times(row, world.now - world.slack - TICK)
    may_come = _times(row, world.now + world.skew)
    if wrong := sorted(number.keys() - set(may_come)):
        yield f"{_texts(wrong)} are no times of it"
    lost = [time for time in due if time not in number]
    if lost and name == EACH:
        yield f"{len(lost)} of {len(due)} times were lost: {_texts(lost)}"
    elif lost:
        yield from _of_left_out(world, lost, {datetime.fromisoformat(each.key): each for each in effects})
    yield from _of_counts(row, name, len(number), len(lost), len(may_come) - len(due))


def _times(row: Ticking, end: datetime) -> list[datetime]:
    """Return the times of the schedule up to ``end``."""
    return [row.anchor + number * TICK for number in range(1, (end - row.anchor) // TICK + 1)]


def _of_left_out(world: World, lost: Sequence[datetime], performed: Mapping[datetime, Effect]) -> Iterator[str]:
    """Check each run of times that was left out: the two after it were performed, when the second had come. If they
    were not due by then, the last one left out was."""
    for time in lost:
        first, second = time + TICK, time + 2 * TICK
        if first in lost:
            continue
        if first not in performed or second not in performed:
            yield f"{time} was left out, and {first} and {second} were not both performed"
        elif performed[first].at < second - world.skew:
            yield f"{time} was left out, although {first} was performed at {performed[first].at}, before {second}"


def _of_counts(row: Ticking, name: str, performed: int, lost: int, open_ones: int) -> Iterator[str]:
    """Check what the row counts. ``open_ones``: how many times had just come when the effects were read."""
    if not 0 <= row.fired - performed <= open_ones:
        yield f"it was fired {row.fired} times, and performed {performed} times"
    if not 0 <= row.skipped - lost <= (0 if name == EACH else open_ones):
        yield f"it says that it has left out {row.skipped} times, and {lost} are missing"
    decided = len(_times(row, row.reached))
    if row.fired + row.skipped != decided:
        yield f"{decided} times had come, {row.fired} were fired, and {row.skipped} were left out"


def _texts(times: Sequence[datetime]) -> str:
    shown = ", ".join(f"{time:%H:%M:%S.%f}" for time in times[:10])
    return f"{shown} and {len(times) - 10} others" if len(times) > 10 else shown
