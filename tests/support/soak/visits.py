"""What the model knows of visits: their milestone counts on the wall clock of their hall, whose time zone changes.

A visit is told that its own row has changed, and not that the row of its hall has. So the model knows exactly when the
milestone is due at the end, when each visit was saved, and before that only that it is never early.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from .world import Deed, World

AHEAD = timedelta(days=182)
"""How long before the visit its milestone is, on the wall clock."""
CALLS = ("ahead", "planned")


def on_the_wall(moment: datetime, by: timedelta, zone: str) -> datetime:
    """Return ``moment`` moved by whole days on the wall clock of ``zone``."""
    local = moment.astimezone(ZoneInfo(zone or "Europe/Berlin"))
    # The clock that shows the new day decides which moment that is, so the time zone is put back afterwards.
    moved = local.replace(tzinfo=None) + by
    return moved.replace(tzinfo=local.tzinfo).astimezone(UTC)


@dataclass(frozen=True)
class Plan:
    """When the milestone is due, and the two times between which that may have been in force."""

    due: datetime | None
    first: datetime
    last: datetime


def plans_of(world: World, name: str) -> list[Plan]:
    """Return what was planned for a visit, one after the other."""
    deeds = sorted([*world.of("visit", name), *world.of_kind("hall")], key=lambda deed: deed.number)
    zones: dict[str, str] = {}
    visit: Deed | None = None
    found: list[tuple[datetime | None, Deed]] = []
    for deed in deeds:
        if deed.kind == "hall":
            zones[deed.target] = deed.detail["zone"]
        else:
            visit = deed
        if visit is not None and deed.target in (name, visit.detail["hall"]):
            start = visit.detail["start"]
            zone = zones.get(visit.detail["hall"], "")
            found.append((None if start is None else on_the_wall(start, -AHEAD, zone), deed))
    ends = [*(deed.ended for _, deed in found[1:]), datetime.max.replace(tzinfo=UTC)]
    return [Plan(due, deed.begun, end) for (due, deed), end in zip(found, ends, strict=True)]


def of_visits(world: World) -> Iterator[str]:
    for name in dict.fromkeys(deed.target for deed in world.of_kind("visit")):
        for said in _of_visit(world, name):
            yield f"visit {name}: {said}"


def _of_visit(world: World, name: str) -> Iterator[str]:
    plans, calls, gone = plans_of(world, name), world.counted(f"{name}:visit"), bool(world.of("leave", name))
    past = [plan.due is not None and plan.due <= world.now for plan in plans]
    allowed = {0} if not any(past) else {1} if past[-1] and not gone else {0, 1}
    for key in CALLS:
        if calls[key] not in allowed:
            yield f"{key} came {calls[key]} times, and {sorted(allowed)} is right"
    for milestone in world.milestones_of(f"{name}:visit"):
        in_force = [
            plan.due
            for plan in plans
            if plan.due is not None
            and plan.first <= milestone.fired + world.slack
            and plan.last >= milestone.fired - world.slack
        ]
        if not any(due <= milestone.fired for due in in_force):
            yield f"{milestone.key} fired at {milestone.fired}, and was due at {list(map(str, in_force))}"
