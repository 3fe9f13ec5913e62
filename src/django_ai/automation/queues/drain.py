"""``drain`` is the only loop: claim what is due, perform it, until nothing is due or the budget is spent.

Every runtime calls it, and so do the tests; there is no second path. In each round it asks once which models have due
rows (timers first), claims a batch of each, from the lane that comes first (``lanes``), and performs it
(``performing``). A doorbell that names lanes saves the first question: they are claimed from, unless anything is
paused. Maintenance gets one time slice in a round without work, or when it has waited for too long. Claimed rows that
are paused are held (``pauses``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from django.db import Error as AnyDatabaseError
from django.db import connections

from ..conf import conf
from ..db.connections import close_if_broken
from ..db.writer import alias_of
from ..values.clock import Clock, clock_at
from . import holding, pauses
from .acting import acting_as
from .claim import claim
from .due import DuePoller, next_due, scan_start
from .heartbeat import set_leases
from .held_leases import HeldLeases
from .lanes import Lane, Selection, lane_of
from .maintenance import MAX_WAIT, ensure_rows
from .models import Maintenance
from .performing import Performer
from .registry import due_lanes, due_times, wakeables
from .signals import rows_claimed
from .wakeable import Wakeable

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
    # Beside other threads code waits all the time, and a row that its thread continues would wait behind it.
    leases.commit_group.may_resume = beside is None
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
    work = Performer(leases, clock, lambda: stop() or time.monotonic() >= deadline)
    if claimed_before:
        leases.may_be_more = True
        with work.on(claimed_before, lane_of(claimed_before[0])):
            if work.must_stop() or work.perform_each(claimed_before):
                return work.performed
        if beside is not None and beside.gives_way():
            return work.performed
    maintains = (is_live or selection.models is not None) and Lane(Maintenance) in selection
    known = poller.take_known() if poller else None
    claimed = 0
    while True:
        before = work.done
        if poller and 0 < claimed < SMALL_CLAIM and poller.hears_more():
            time.sleep(GATHER_SECONDS)
        claimed = 0
        if maintains and is_live:
            ensure_rows(clock())
        is_foretold = known is not None and not known.is_complete
        if known is not None:
            times, known = known.times, None
        else:
            if poller:
                poller.before_look()
            times = next_due() if is_live else due_times(maintenance=maintains)
        work.held += sum(map(holding.release_held, pauses.take_ended()))
        due = _in_order(due_lanes(clock(), times, selection), times, clock())
        if poller and not due and not is_foretold:
            poller.note_idle(times)
        for lane in due:
            model = lane.model
            if stop():
                return work.performed
            since = scan_start(*lane) if is_live else None
            size = _batch_size(model)
            if beside is not None and model.claim_batches == 1:
                size = min(size, beside.places())
            rows = claim(model, clock(), size, since, lane.queue, lane.priority, unless_paused=is_foretold)
            started, count = time.monotonic(), len(rows)
            claimed += count
            if rows and rows_claimed.receivers:
                late = (clock() - times[lane]).total_seconds()
                rows_claimed.send_robust(model, queue=lane.queue, count=count, lateness=late)
            leases.may_be_more = count == size
            with work.on(rows, lane):
                if pauses.current().holds_rows:
                    rows, number = work.hold_paused(rows)
                    if number and work.must_stop():
                        return work.performed
                if model.claim_batches > 1 and len(rows) > 1:
                    rows = work.perform_batch(rows)
                    if work.must_stop():
                        return work.performed
                if work.perform_each(rows):
                    return work.performed
            if count:
                seconds = (time.monotonic() - started) / count
                _seconds_per_row[model] = seconds if beside is None else min(seconds, MAX_SECONDS_BESIDE)
            if beside is not None and beside.gives_way():
                return work.performed
        if work.done == before and not is_foretold:
            return work.performed


def _in_order(due: list[Lane], times: Mapping[Lane, datetime], now: datetime) -> list[Lane]:
    """Leave maintenance out while work is due. Once it has waited for ``MAX_WAIT`` it gets one time slice, first of
    all: a budget may be spent before the work ends."""
    if len(due) < 2 or due[-1].model is not Maintenance:
        return due
    *work, maintenance = due
    return work if times[maintenance] > now - MAX_WAIT else [maintenance, *work]


SMALL_CLAIM = 5
"""If fewer rows were claimed while others became due, a worker gathers more before it claims again: progress of rows
that are claimed together is written together, and each claim costs as much as performing a row."""
GATHER_SECONDS = 0.005
"""How long it gathers. It does so above some hundred rows a second; below, none becomes due meanwhile."""
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
