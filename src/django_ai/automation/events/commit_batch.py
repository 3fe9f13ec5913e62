"""``CommitBatch``: the fast path. The process that saved the entities makes their events occur right after its commit.

If that process dies, nothing is lost: the rows are due, and a worker claims them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from weakref import WeakKeyDictionary

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from ..queues.claim import claim_rows
from ..queues.notifier import ring_after_commit
from .models import Event
from .occurrence import perform_events


class CommitBatch:
    """The events that become due with the next commit of one connection.

    After the commit it claims them like a worker, all at once, and skips rows that are leased or locked by others.
    Events of a transaction that was rolled back are not due, so claiming them does nothing.
    """

    SIZE = 500

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._due: dict[int, datetime] = {}

    @classmethod
    def of(cls, alias: str) -> CommitBatch:
        """Return the batch of this thread's connection to ``alias``."""
        connection = connections[alias]
        batch = _batches.get(connection)
        if batch is None:
            batch = _batches[connection] = cls(alias)
        return batch

    def has(self, event: Event, captured_in: int | None = None) -> bool:
        """Return whether the open transaction makes ``event`` occur. Rolled back savepoints do not count.

        ``captured_in``: whether it does so for a write that it has captured from that transaction (``Origin``).
        """
        if event.pk not in self._due:
            return False  # the common case: a long transaction has many hooks to search
        hooks = (hook for _, hook, *_ in reversed(connections[self.alias].run_on_commit))
        found = (event.pk, captured_in)
        return any(isinstance(hook, _CommitHook) and hook.batch is self and found in hook.events for hook in hooks)

    def add(self, events: Sequence[Event]) -> None:
        """Make ``events`` occur after the commit of the open transaction, which has made them due."""
        self._due |= {event.pk: event.wake_at for event in events if event.wake_at is not None}
        hook = _CommitHook(self, frozenset((event.pk, event.captured_in) for event in events))
        transaction.on_commit(hook, using=self.alias, robust=True)

    def __call__(self) -> None:
        due, self._due = self._due, {}
        pks = list(due)
        for start in range(0, len(pks), self.SIZE):
            chunk = pks[start : start + self.SIZE]
            # Not before the time of the save: the clock may have been set back since.
            now = max(timezone.now(), *(due[pk] for pk in chunk))
            rows = {row.pk: row for row in claim_rows(Event, chunk, now)}
            if len(rows) < len(chunk):
                ring_after_commit(self.alias, Event)  # for rows locked by a transaction that may roll back
            if rows:
                perform_events([rows[pk] for pk in chunk if pk in rows], timezone.now)


class _CommitHook:
    """The hook that one save registers. The first hook of a commit makes all events of the batch occur."""

    def __init__(self, batch: CommitBatch, events: frozenset[tuple[int, int | None]]) -> None:
        self.batch, self.events = batch, events
        self.__qualname__ = CommitBatch.__name__  # Django logs it if the hook fails

    def __call__(self) -> None:
        self.batch()


_batches: WeakKeyDictionary[BaseDatabaseWrapper, CommitBatch] = WeakKeyDictionary()
