"""What executed at the same time: the intervals between the effects that steps leave when they begin and end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from tests.apps.soak.models import Effect


@dataclass(frozen=True)
class Interval:
    owner: str
    begin: datetime
    end: datetime


def intervals(killed: Mapping[int, datetime]) -> list[Interval]:
    """Return when steps were executed. ``killed``: when each process was killed: what it had begun ended then."""
    found: list[Interval] = []
    open_at: dict[tuple[str, int], datetime] = {}
    for effect in Effect.objects.order_by("at", "pk"):
        step = (effect.owner, effect.serial or 0)
        if effect.key == "begin":
            open_at[step] = effect.at
        elif effect.key == "end":
            found.append(Interval(effect.owner, open_at.pop(step), effect.at))
    for (owner, pid), begin in open_at.items():
        assert pid in killed, f"a step of {owner} in process {pid} never ended"
        found.append(Interval(owner, begin, max(begin, killed[pid])))
    return found


def most_at_once(found: Iterable[Interval]) -> int:
    """Return how many intervals there were at the same time, at most."""
    edges = sorted((moment, change) for each in found for moment, change in ((each.begin, 1), (each.end, -1)))
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most
