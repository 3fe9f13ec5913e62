"""What the soak knows at the end: the deeds of the outside, and the rows that remain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any


@dataclass(frozen=True)
class Deed:
    """An action of the outside that was committed between ``begun`` and ``ended``."""

    number: int
    kind: str
    target: str
    begun: datetime
    ended: datetime
    detail: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None


@dataclass(frozen=True)
class Effect:
    owner: str
    key: str
    serial: int | None
    at: datetime
    not_before: datetime | None = None
    idempotency: str = ""


@dataclass(frozen=True)
class Run:
    """The state of a run at the end."""

    tag: str
    status: str
    tally: Sequence[str]
    started: datetime | None = None
    """When it was created, for a run of a workflow."""
    error: str = ""
    lost: bool = False
    """Whether a worker has lost its lease on it."""


@dataclass(frozen=True)
class Occurrence:
    """An event row of a thing, crate or visit. ``at``: when it occurred, or None."""

    thing: str
    name: str
    pk: int
    at: datetime | None


@dataclass(frozen=True)
class Milestone:
    """A call of a callback or handler for a milestone, or a planned run, and when that milestone fired."""

    owner: str
    key: str
    event: int
    fired: datetime
    status: str


@dataclass(frozen=True)
class Ticking:
    """The row of a schedule at the end: from when it counts, until when it has decided, how often it was fired, and how
    many of its times it has left out."""

    anchor: datetime
    reached: datetime
    fired: int
    skipped: int


@dataclass
class World:
    """All data that is known at the end. ``slack``: the longest time from reading the clock to reading the rows for it.
    ``skew``: the largest error of the workers' clocks. ``skipped``: how often a claim kept an agent from handling a
    touch, by thing. ``schedules``: by name. ``since``: when the workers began; None: they know no schedules.
    ``outbox``: how many captured writes are not recorded."""

    deeds: Sequence[Deed]
    effects: Sequence[Effect]
    runs: Sequence[Run]
    occurrences: Sequence[Occurrence]
    milestones: Sequence[Milestone]
    now: datetime
    slack: timedelta = timedelta(0)
    skew: timedelta = timedelta(0)
    skipped: Mapping[str, int] = field(default_factory=dict)
    schedules: Mapping[str, Ticking] = field(default_factory=dict)
    since: datetime | None = None
    outbox: int = 0

    def __post_init__(self) -> None:
        self.by_owner: dict[str, list[Effect]] = {}
        for effect in self.effects:
            self.by_owner.setdefault(effect.owner, []).append(effect)
        self.by_tag: dict[str, list[Run]] = {}
        for run in self.runs:
            self.by_tag.setdefault(run.tag, []).append(run)
        self.by_target: dict[tuple[str, str], list[Deed]] = {}
        self.by_kind: dict[str, list[Deed]] = {}
        for deed in self.deeds:
            self.by_target.setdefault((deed.kind, deed.target), []).append(deed)
            self.by_kind.setdefault(deed.kind, []).append(deed)
        self.by_subscriber: dict[str, list[Milestone]] = {}
        for milestone in self.milestones:
            self.by_subscriber.setdefault(milestone.owner, []).append(milestone)

    def of(self, kind: str, target: str) -> list[Deed]:
        return self.by_target.get((kind, target), [])

    def of_kind(self, kind: str) -> list[Deed]:
        return self.by_kind.get(kind, [])

    def milestones_of(self, owner: str) -> list[Milestone]:
        return self.by_subscriber.get(owner, [])

    def counted(self, owner: str) -> Counter[str]:
        """Return how often each effect of ``owner`` was left, by key."""
        return Counter(effect.key for effect in self.by_owner.get(owner, ()))

    def is_gone(self, thing: str) -> bool:
        return bool(self.of("delete", thing))
