"""``Performer``: performs the rows that one ``drain`` has claimed, and settles each of them.

Rows are performed one by one. Those of models with ``claim_batches`` above 1 (events) are performed in one call, and
one by one if that fails. Progress that is kept (``commit_group``) is written together. A row that its worker
continues after that, as a run after a ``goto``, is held again as one that was not started: the heartbeat may release
it, and another thread may take it. A row that the engine itself cannot perform does not stop the others: its lease runs
out, the loss is counted, and after ``MAX_LOSSES`` losses the row is parked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from django.db import connections

from ..conf import conf
from ..db.connections import close_if_broken
from ..db.errors import is_database_failure
from ..db.session import kept_session
from ..db.writer import alias_of
from ..exceptions import LeaseLostError
from ..values.clock import Clock
from ..values.text import trace_of
from . import holding, pauses
from .advance import ENGINE_FAILED
from .attempt import DATABASE_RETRY_DELAY, release_or_expire
from .commit_group import Kept
from .heartbeat import hold
from .held_leases import HeldLeases, is_working
from .interrupt import ShutdownInterrupt
from .lanes import Lane
from .models import Maintenance
from .signals import perform_failed
from .wakeable import Wakeable
from .worker_status import worker_status

W = TypeVar("W", bound=Wakeable)


class Performer:
    """What a ``drain`` has performed so far: rows of work, time ``slices`` of maintenance, and rows that it has
    ``held`` or released from a pause. ``must_stop`` is asked after each row."""

    def __init__(self, leases: HeldLeases, clock: Clock, must_stop: Callable[[], bool]) -> None:
        self.leases = leases
        self.clock = clock
        self.must_stop = must_stop
        self.performed = 0
        self.slices = 0
        self.held = 0
        self._to_resume: deque[Kept] = deque()

    @property
    def done(self) -> int:
        return self.performed + self.slices + self.held

    @contextmanager
    def on(self, rows: Sequence[Wakeable], lane: Lane) -> Iterator[None]:
        """Hold ``rows``, which were just claimed, for the block. At its end write the progress that is kept, release
        the rows that were not started, and report what was performed."""
        before = self.performed
        hold(self.leases, rows)
        try:
            yield
        finally:
            self._end()
            if self.leases.has_heartbeat and self.performed > before:
                worker_status.record_performed(lane.name, self.performed - before)

    def _end(self) -> None:
        self.leases.finish()
        self.leases.commit_group.open(keeps=False)
        self._to_resume.clear()  # they are held, and released
        try:
            self._end_group()
        finally:
            self.leases.release_unstarted()

    def perform_each(self, rows: Sequence[Wakeable]) -> bool:
        """Perform those of ``rows`` that are still held, each to its end. Return whether to stop."""
        group = self.leases.commit_group
        group.open(keeps=self.leases.has_heartbeat and len(rows) > 1)
        for place, row in enumerate(rows):
            if self.leases.start(row):
                self.performed += type(row) is not Maintenance
                self.slices += type(row) is Maintenance
                group.read_ahead(rows, place)
                self._perform(row)
                self._finish()
            if self.must_stop():
                return True
        return self._resume_each()

    def _resume_each(self) -> bool:
        """Go on with the rows whose kept progress is written. Return whether to stop."""
        while True:
            if not self._to_resume:
                self._to_resume += self._end_group()
            if not self._to_resume:
                return False
            kept = self._to_resume.popleft()
            if kept.resume is not None and self.leases.start(kept.row):
                with self._failures_of(kept.row), self._session_of(kept.row):
                    kept.resume()
                self._finish()
            if self.must_stop():
                return True

    def _finish(self) -> None:
        self.leases.finish()
        if self.leases.commit_group.is_due:
            self._to_resume += self._end_group()

    def _end_group(self) -> list[Kept]:
        """Write the progress that is kept. Hold the rows that this worker continues, and return them."""
        found = []
        for kept, is_written in self.leases.commit_group.end():
            with self._failures_of(kept.row):
                if kept.finish(is_written) and kept.resume is not None and kept.row.lease is not None:
                    self.leases.hold_also(kept.row)
                    found.append(kept)
        return found

    def perform_batch(self, rows: list[W]) -> list[W]:
        """Perform ``rows`` of one model in one call. Return those to perform one by one."""
        mine = self.leases.start_batch(rows)
        if not mine:
            return []
        model, lease, before = type(mine[0]), mine[0].lease, {row.pk: row.seq for row in mine}
        connection = connections[alias_of(model)]
        left: list[W] = []
        try:
            with self._session_of(mine[0]):
                model.perform_batch(mine, self.clock)
        except ShutdownInterrupt:
            for row in mine:
                release_or_expire(row, lease, {before[row.pk], row.seq}, self.clock())
            raise
        except Exception:
            # One by one, the row that failed shows. Read again, because the failed batch may have changed rows in
            # memory.
            close_if_broken(connection)
            left = list(model._base_manager.using(connection.alias).filter(pk__in=before, lease=lease).order_by("pk"))
            hold(self.leases, left)
        finally:
            self.leases.finish()
        self.performed += len(mine) - len(left)
        return left

    def hold_paused(self, rows: list[W]) -> tuple[list[W], int]:
        """Hold those of the claimed ``rows`` that are paused. Return the others, and how many are held."""
        targets = holding.paused_among(rows, pauses.current())
        paused = self.leases.start_batch([row for row in rows if row.pk in targets])
        if paused:
            holding.hold(paused, targets, self.clock())
            self.leases.finish()
        self.held += len(paused)
        return [row for row in rows if row.pk not in targets], len(paused)

    def _perform(self, row: Wakeable) -> None:
        with self._failures_of(row):
            if row.losses:
                row.record_loss(self.clock)
                if row.losses >= conf().MAX_LOSSES:
                    known = str(getattr(row, "error", ""))
                    if not known.startswith(ENGINE_FAILED):
                        known = (
                            f"{row.losses} workers in a row died or hung while they performed this row. Find what "
                            "kills them (memory, a crash in C code, a timeout), then resume the row."
                        )
                    row.park(known, self.clock)
                    return
            with self._session_of(row):
                row.perform(self.clock)

    @contextmanager
    def _session_of(self, row: Wakeable) -> Iterator[None]:
        with kept_session(connections[alias_of(type(row))], is_ours=is_working()):
            yield

    @contextmanager
    def _failures_of(self, row: Wakeable) -> Iterator[None]:
        """Release ``row``, which this worker has leased, if the block fails. Other rows are performed all the same."""
        lease, seq, clock = row.lease, row.seq, self.clock
        try:
            yield
        except LeaseLostError:
            pass  # revoked or claimed by another worker meanwhile, which takes care of what comes next
        except ShutdownInterrupt:
            # It may come between two steps, where no attempt releases the row.
            release_or_expire(row, lease, {seq, row.seq}, clock())
            raise
        except Exception as error:
            perform_failed.send_robust(type(row), row=row, error=error)
            if is_database_failure(error, connections[alias_of(type(row))]):
                # Not a fault of the row, so not a loss. What was rolled back may have raised ``seq`` in memory.
                release_or_expire(row, lease, {seq, row.seq}, clock() + DATABASE_RETRY_DELAY)
            else:
                # Keep the traceback as the reason: if the row is parked later, the reason must not be a worker's death.
                reason = f"{ENGINE_FAILED} (report a bug):\n{trace_of(error)}"
                kept = reason if hasattr(row, "error") else None
                release_or_expire(row, lease, {seq, row.seq}, clock() + conf().LEASE, is_loss=True, error=kept)
