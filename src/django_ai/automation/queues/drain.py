"""``drain`` is the only loop: claim what is due, perform it, until nothing is due or the budget is spent.

Every runtime calls it, and so do the tests; there is no second path. In each round it asks once which models have due
rows (timers first), claims a batch of each, from the lane that comes first (``lanes``), and performs it row by row. A
doorbell that names lanes saves the first question: they are claimed from, unless anything is paused. Models with
``claim_batches`` above 1 (events) perform a batch in one call; a batch that fails is performed row by row.
Maintenance gets one time slice in a round without work, or when it has waited for too long. A row that the engine
itself cannot perform does not stop the others: its lease runs out, the loss is counted, and after ``MAX_LOSSES`` losses
the row is parked. Claimed rows that are paused are held (``pauses``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from django.db import Error as AnyDatabaseError
from django.db import connections

from ..conf import conf
from ..db.connections import close_if_broken
from ..db.errors import is_database_failure
from ..db.session import kept_session
from ..db.writer import alias_of
from ..exceptions import LeaseLostError
from ..values.clock import Clock, clock_at
from ..values.text import trace_of
from . import holding, pauses
from .acting import acting_as
from .advance import ENGINE_FAILED
from .attempt import DATABASE_RETRY_DELAY, release_or_expire
from .claim import claim
from .commit_group import CommitGroup
from .due import DuePoller, next_due, scan_start
from .heartbeat import hold, set_leases
from .held_leases import HeldLeases, is_working
from .interrupt import ShutdownInterrupt
from .lanes import Lane, Selection, lane_of
from .maintenance import MAX_WAIT, ensure_rows
from .models import Maintenance
from .registry import due_lanes, due_times, wakeables
from .signals import perform_failed, rows_claimed
from .wakeable import Wakeable
from .worker_status import worker_status

W = TypeVar("W", bound=Wakeable)

_state = threading.local()
# A child that is forked inside ``drain`` is not in it.
os.register_at_fork(after_in_child=lambda: _state.__dict__.clear())


def draining(names: Collection[str] = ()) -> bool:
    """Return whether this thread is inside a ``drain`` of the rows that a doorbell of these names rings for (empty: of
    all rows): its next round finds what becomes due now."""
    if not getattr(_state, "draining", False):
        return False
    selection: Selection = _state.selection
    return all(map(selection.covers, names)) if names else selection.has_all(wakeables())


def _never() -> bool:
    return False


class Beside(Protocol):
    """What ``drain`` asks the other threads of its process (``runtimes.threads``)."""

    def places(self) -> int:
        """Return how many rows may be claimed, so that each of them has a thread that could start it at once."""

    def gives_way(self) -> bool:
        """Return whether this thread should claim nothing more, because enough others are at work."""

    def suspended(self, leases: HeldLeases) -> None:
        """Give the rows behind the started one, whose coroutine waits, to another thread."""


def drain(
    now: datetime | None = None,
    budget: timedelta | None = None,
    *,
    heartbeat: bool = False,
    models: Collection[type[Wakeable]] | None = None,
    queues: Collection[str] | None = None,
    except_queues: Collection[str] = (),
    stop: Callable[[], bool] = _never,
    expendable: bool = False,
    beside: Beside | None = None,
    claimed: Sequence[Wakeable] = (),
    poller: DuePoller | None = None,
) -> int:
    """Perform everything that is due, and return how many rows of work were performed; maintenance is not counted.

    ``now``: a fixed moment (tests, replays); default: the wall clock. ``budget``: stop after this time (default: when
    nothing is due). ``heartbeat``: a thread renews the leases of slow work (workers). ``models``: only rows of these
    models (default: all work; with ``heartbeat`` and the wall clock also maintenance). ``queues``: only rows of these
    queues (default: all); ``except_queues``: no rows of these. Events, signals and maintenance belong to the queue
    "default". ``stop``: called between two rows; once it returns true, no other row is started and claimed rows are
    released. ``expendable``: the process may be ended if user code cannot be interrupted after its timeout, because a
    supervisor starts another one (workers). ``beside``: the other threads of this process that perform rows, too.
    ``claimed``: rows that one of them has claimed and not started, which are performed first.
    ``poller``: knows perhaps what is due, and is told when nothing is, so that what was read is not read again.

    Must not be called inside a transaction of a live system. A nested call returns 0 immediately.

    If the query for due rows fails, its error is raised. Call again after a pause: the next call connects again, and
    rows that were leased are performed when their lease has run out, if not before.
    """
    if getattr(_state, "draining", False):
        return 0
    clock = clock_at(now)
    leases = HeldLeases(has_heartbeat=heartbeat, clock=clock, expendable=expendable)
    leases.on_suspended = None if beside is None else beside.suspended
    deadline = time.monotonic() + budget.total_seconds() if budget else float("inf")
    selection = _state.selection = Selection.of(models, queues, except_queues)
    _state.draining = True
    set_leases(leases)
    try:
        with acting_as(None):  # an inline notifier may have been rung by a request
            return _drain(
                clock,
                leases,
                selection,
                stop,
                deadline,
                beside,
                claimed,
                poller,
                is_live=heartbeat and now is None,
            )
    except AnyDatabaseError:
        close_if_broken(connections[alias_of(wakeables()[0])])
        raise
    finally:
        set_leases(None)
        _state.draining = False


def _drain(
    clock: Clock,
    leases: HeldLeases,
    selection: Selection,
    stop: Callable[[], bool],
    deadline: float,
    beside: Beside | None,
    claimed_before: Sequence[Wakeable],
    poller: DuePoller | None,
    *,
    is_live: bool,
) -> int:

    def must_stop() -> bool:
        return stop() or time.monotonic() >= deadline

    performed, slices, held = 0, 0, 0

    def perform_each(rows: Sequence[Wakeable]) -> bool:
        """Perform those of ``rows`` that are still held. Return whether to stop."""
        nonlocal performed, slices
        leases.commit_group.open(keeps=leases.has_heartbeat and len(rows) > 1)
        for place, row in enumerate(rows):
            if leases.start(row):
                performed += type(row) is not Maintenance
                slices += type(row) is Maintenance
                leases.commit_group.read_ahead(rows, place)
                _perform(row, clock)
                leases.finish()
                if leases.commit_group.is_due:
                    _end_group(leases.commit_group, clock)
            if must_stop():
                return True
        return False

    def end(lane_name: str, performed_before: int) -> None:
        _end_batch(leases, clock)
        if leases.has_heartbeat and performed > performed_before:
            worker_status.record_performed(lane_name, performed - performed_before)

    if claimed_before:
        leases.may_be_more = True
        hold(leases, claimed_before)
        try:
            if must_stop() or perform_each(claimed_before):
                return performed
        finally:
            end(lane_of(claimed_before[0]).name, 0)
        if beside is not None and beside.gives_way():
            return performed
    maintains = (is_live or selection.models is not None) and Lane(Maintenance) in selection
    known = poller.take_known() if poller else None
    while True:
        before = performed + slices + held
        if maintains and is_live:
            ensure_rows(clock())
        is_foretold = known is not None and not known.is_complete
        if known is not None:
            times, known = known.times, None
        else:
            if poller:
                poller.before_look()
            times = next_due() if is_live else due_times(maintenance=maintains)
        held += sum(map(holding.release_held, pauses.take_ended()))
        due = _in_order(due_lanes(clock(), times, selection), times, clock())
        if poller and not due and not is_foretold:
            poller.note_idle(times)
        for lane in due:
            model, performed_before = lane.model, performed
            if stop():
                return performed
            since = scan_start(*lane) if is_live else None
            size = _batch_size(model)
            if beside is not None and model.claim_batches == 1:
                size = min(size, beside.places())
            rows = claim(model, clock(), size, since, lane.queue, lane.priority, unless_paused=is_foretold)
            started, claimed = time.monotonic(), len(rows)
            if rows and rows_claimed.receivers:
                late = (clock() - times[lane]).total_seconds()
                rows_claimed.send_robust(model, queue=lane.queue, count=claimed, lateness=late)
            leases.may_be_more = claimed == size
            hold(leases, rows)
            try:
                if pauses.current().holds_rows:
                    rows, count = _hold_paused(rows, leases, clock)
                    held += count
                    if count and must_stop():
                        return performed
                if model.claim_batches > 1 and len(rows) > 1:
                    count, rows = _perform_batch(rows, leases, clock)
                    performed += count
                    if must_stop():
                        return performed
                if perform_each(rows):
                    return performed
            finally:
                end(lane.name, performed_before)
            if claimed:
                seconds = (time.monotonic() - started) / claimed
                _seconds_per_row[model] = seconds if beside is None else min(seconds, MAX_SECONDS_BESIDE)
            if beside is not None and beside.gives_way():
                return performed
        if performed + slices + held == before and not is_foretold:
            return performed


def _in_order(due: list[Lane], times: Mapping[Lane, datetime], now: datetime) -> list[Lane]:
    """Leave maintenance out while work is due. Once it has waited for ``MAX_WAIT`` it gets one time slice, first of
    all: a budget may be spent before the work ends."""
    if len(due) < 2 or due[-1].model is not Maintenance:
        return due
    *work, maintenance = due
    return work if times[maintenance] > now - MAX_WAIT else [maintenance, *work]


BATCH_SECONDS = 0.25
"""How long the rows of one claim should take, about."""
MAX_SECONDS_BESIDE = 0.02
"""How long a row delays those that were claimed with it, where other threads begin these once its code waits."""
_seconds_per_row: dict[type[Wakeable], float] = {}
"""How many seconds one row of the model took in the last batch of this process."""


def _batch_size(model: type[Wakeable]) -> int:
    """Return how many rows to claim: about ``BATCH_SECONDS`` of work, so that other workers get some of it. One row of
    maintenance: work may become due meanwhile."""
    if model is Maintenance:
        return 1
    most = conf().BATCH * model.claim_batches
    return max(1, min(most, int(BATCH_SECONDS / max(_seconds_per_row.get(model, 0.05), 1e-6))))


def _hold_paused(rows: list[W], leases: HeldLeases, clock: Clock) -> tuple[list[W], int]:
    """Hold those of the claimed ``rows`` that are paused. Return the others, and how many are held."""
    targets = holding.paused_among(rows, pauses.current())
    paused = leases.start_batch([row for row in rows if row.pk in targets])
    if paused:
        holding.hold(paused, targets, clock())
        leases.finish()
    return [row for row in rows if row.pk not in targets], len(paused)


def _perform_batch(rows: list[W], leases: HeldLeases, clock: Clock) -> tuple[int, list[W]]:
    """Perform ``rows`` of one model in one call. Return how many were performed, and those to perform one by one."""
    mine = leases.start_batch(rows)
    if not mine:
        return 0, []
    model, lease, before = type(mine[0]), mine[0].lease, {row.pk: row.seq for row in mine}
    connection = connections[alias_of(model)]
    try:
        with kept_session(connection, is_ours=is_working()):
            model.perform_batch(mine, clock)
        return len(mine), []
    except ShutdownInterrupt:
        for row in mine:
            release_or_expire(row, lease, {before[row.pk], row.seq}, clock())
        raise
    except Exception:
        # One by one, the row that failed shows. Read again, because the failed batch may have changed rows in memory.
        close_if_broken(connection)
        left = list(model._base_manager.using(connection.alias).filter(pk__in=before, lease=lease).order_by("pk"))
        hold(leases, left)
        return len(mine) - len(left), left
    finally:
        leases.finish()


def _end_batch(leases: HeldLeases, clock: Clock) -> None:
    """Write the progress that is kept, and release the rows that were not started."""
    leases.finish()
    leases.commit_group.open(keeps=False)
    try:
        _end_group(leases.commit_group, clock)
    finally:
        leases.release_unstarted()


def _end_group(group: CommitGroup, clock: Clock) -> None:
    for kept, is_written in group.end():
        with _failures_of(kept.row, clock):
            kept.finish(is_written)


def _perform(row: Wakeable, clock: Clock) -> None:
    with _failures_of(row, clock):
        if row.losses:
            row.record_loss(clock)
            if row.losses >= conf().MAX_LOSSES:
                known = str(getattr(row, "error", ""))
                if not known.startswith(ENGINE_FAILED):
                    known = (
                        f"{row.losses} workers in a row died or hung while they performed this row. Find what kills "
                        "them (memory, a crash in C code, a timeout), then resume the row."
                    )
                row.park(known, clock)
                return
        with kept_session(connections[alias_of(type(row))], is_ours=is_working()):
            row.perform(clock)


@contextmanager
def _failures_of(row: Wakeable, clock: Clock) -> Iterator[None]:
    """Release ``row``, which this worker has leased, if the block fails. Other rows are performed all the same."""
    lease, seq = row.lease, row.seq
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
