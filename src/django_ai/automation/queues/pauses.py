"""What is paused, as this process saw it last, and which rows that concerns.

A ``Pause`` names a target: one row, all rows of one workflow, agent or callback, one queue, or everything. The query
for due rows reads the targets in branches of its own (``DueQuery``), so each round of ``drain`` and each poll knows
them without a query, and a project that pauses nothing pays nothing. Two things happen to paused rows:

* the lanes of a paused queue, or all lanes if everything is paused, are not due (``is_paused_lane``): their rows stay
  as they are, and are claimed when the pause ends;
* rows of a paused name, and single paused rows, lie between others in their lanes. They are claimed and then *held*
  (``holding``): their ``wake_at`` is NULL, so they cost nothing while the pause lasts, however many they are.

Only runs, callback executions and agents can be paused. Events still occur and signals are delivered: what follows from
them waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from django.utils.translation import gettext

from .lanes import Lane, LanedWakeable, shown_name

EVERYTHING = "everything"
QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Pauses:
    """The targets that are paused, and whether single rows are paused, too."""

    targets: frozenset[str] = frozenset()
    has_rows: bool = False

    @property
    def holds_rows(self) -> bool:
        """Whether claimed rows may have to be held."""
        return self.has_rows or any(not target.startswith(f"{QUEUE}:") for target in self.targets)

    def is_paused_lane(self, lane: Lane) -> bool:
        """Return whether no row of ``lane`` is performed."""
        if not self.targets or not issubclass(lane.model, LanedWakeable):
            return False
        return EVERYTHING in self.targets or target_of_queue(shown_name(lane.queue)) in self.targets


NOTHING = Pauses()
_current = NOTHING
_ended: deque[str] = deque()  # of all threads
_count = 0


def current() -> Pauses:
    """Return what was paused when this process last looked for due rows."""
    return _current


def remember(targets: Iterable[str], *, has_rows: bool) -> Pauses:
    """Note what is paused now, and return it."""
    global _current
    found = Pauses(frozenset(targets), has_rows)
    if found != _current:
        _ended.extend(_current.targets - found.targets)
        _current = found
    return _current


def take_ended() -> list[str]:
    """Return the targets whose pauses have ended since the last call. ``drain`` releases the rows that they hold: the
    process that has ended a pause may have died before it had released them all."""
    ended: set[str] = set()
    while _ended:
        with suppress(IndexError):
            ended.add(_ended.popleft())
    return [target for target in ended if target not in _current.targets]


def count() -> int:
    """Return how many pauses this process has begun. A worker that performs several steps in a row compares it, so that
    a step may pause its own run."""
    return _count


def note_pause() -> None:
    global _count
    _count += 1


def reset() -> None:
    """Forget what was paused (tests)."""
    global _current
    _current = NOTHING
    _ended.clear()


# -- targets -----------------------------------------------------------------------------------------------------------


def target_of_queue(name: str) -> str:
    return f"{QUEUE}:{name}"


def target_of_name(scope: str, name: str) -> str:
    """Return the target of all rows of a workflow, agent or callback."""
    return f"{scope}:{name}"


def target_of_row(kind: str, pk: int) -> str:
    """Return the target of one row of a kind."""
    return f"{kind}#{pk}"


def described(target: str) -> str:
    """Return a target in words."""
    scope, _, name = target.partition(":")
    if target == EVERYTHING:
        return gettext("everything")
    words = {
        "queue": gettext("the queue %s"),
        "workflow": gettext("the workflow %s"),
        "agent": gettext("the agent %s"),
        "callback": gettext("the callback %s"),
    }
    return words[scope] % repr(name) if name and scope in words else gettext("this row")
