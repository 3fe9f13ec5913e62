"""``drain`` is the only loop: take what is due, perform it, until nothing is due or the budget is spent.

Every runtime calls it, and so do the tests; there is no second path. Per round it asks once which models have due rows
(timers first), claims a batch of each, and performs row by row, or together what says that it can be (events); a batch
that fails is performed row by row, too. Maintenance has one bite in a round without work, or when it has waited for too
long. A row that the engine itself cannot perform does not stop the others: its lease runs out, the loss is counted, and
after three losses it is parked.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from django.db import Error as DatabaseTrouble
from django.db import connections

from ..conf import conf
from ..db.connections import close_if_broken
from ..db.errors import is_database_failure
from ..db.session import kept_session
from ..db.writer import alias_of
from ..exceptions import LeaseLostError
from ..values.clock import Clock, clock_at
from ..values.text import trace_of
from .attempt import DATABASE_PAUSE, ShutdownInterrupt, give_back
from .due import beginning, look
from .heartbeat import HeldLeases, hold_leases, is_working
from .lease import ENGINE_FAILED, claim
from .maintenance import PATIENCE, ensure_rows
from .models import Maintenance, Wakeable
from .registry import due_models, due_times, wakeables
from .signals import perform_failed
from .worker_status import worker_status

W = TypeVar("W", bound=Wakeable)

_state = threading.local()
# A child that is forked inside ``drain`` is not in it.
os.register_at_fork(after_in_child=lambda: _state.__dict__.clear())


def draining() -> bool:
    """Say whether this thread is inside a ``drain`` of everything: what becomes due now is seen by its next round."""
    return getattr(_state, "draining", False) and not getattr(_state, "partly", False)


def _never() -> bool:
    return False


def drain(
    now: datetime | None = None,
    budget: timedelta | None = None,
    *,
    heartbeat: bool = False,
    models: Collection[type[Wakeable]] | None = None,
    stop: Callable[[], bool] = _never,
    expendable: bool = False,
) -> int:
    """Perform everything that is due, and return how many rows of work were performed; maintenance is not counted.

    ``now``: a fixed moment to work at (tests, replays); default: the wall clock. ``budget``: stop after this time
    (default: when nothing is due). ``heartbeat``: keep leases of slow work alive in a thread (workers do). ``models``:
    only rows of these kinds (default: all work, and with ``heartbeat`` and the wall clock maintenance, too). ``stop``:
    asked between two rows; once it says true, nothing more is begun and what was claimed goes back. ``expendable``: the
    process may end where user code cannot be interrupted after its timeout, because something starts another (workers).

    Must not be called inside a transaction of a live system; a nested call returns 0
    at once.

    When the database cannot be asked what is due, its error is raised. Call again after a pause: a connection that
    broke is made anew then, and what was in hand is done when its lease has run out, if not before.
    """
    if getattr(_state, "draining", False):
        return 0
    clock = clock_at(now)
    hands = HeldLeases(beating=heartbeat, clock=clock, expendable=expendable)
    deadline = time.monotonic() + budget.total_seconds() if budget else float("inf")
    _state.draining, _state.partly = True, models is not None and not set(wakeables()) <= set(models)
    hold_leases(hands)
    try:
        return _drain(clock, hands, models, lambda: stop() or time.monotonic() >= deadline, heartbeat and now is None)
    except DatabaseTrouble:
        close_if_broken(connections[alias_of(wakeables()[0])])
        raise
    finally:
        hold_leases(None)
        _state.draining = False


def _drain(
    clock: Clock,
    hands: HeldLeases,
    models: Collection[type[Wakeable]] | None,
    enough: Callable[[], bool],
    watching: bool,
) -> int:
    performed, bites = 0, 0
    maintains = watching if models is None else Maintenance in models
    while True:
        before = performed + bites
        if maintains and watching:
            ensure_rows(clock())
        times = look() if watching else due_times(maintenance=maintains)
        for model in _in_turn(due_models(clock(), times, models), times, clock()):
            begun = performed
            rows = claim(model, clock(), _share(model), beginning(model) if watching else None)
            started, claimed = time.monotonic(), len(rows)
            hands.hold(list(rows))
            try:
                if model.together > 1 and len(rows) > 1:
                    together, rows = _perform_together(rows, hands, clock)
                    performed += together
                    if enough():
                        return performed
                for row in rows:
                    if hands.start(row):
                        performed += model is not Maintenance
                        bites += model is Maintenance
                        _perform(row, clock)
                        hands.finish()
                    if enough():
                        return performed
            finally:
                hands.finish()
                hands.drop()
                if hands.beating and performed > begun:
                    worker_status.worked(model.queue, performed - begun)
            if claimed:
                _pace[model] = (time.monotonic() - started) / claimed
        if performed + bites == before:
            return performed


def _in_turn(
    due: list[type[Wakeable]], times: Mapping[type[Wakeable], datetime], now: datetime
) -> list[type[Wakeable]]:
    """Leave maintenance out while there is work. When it has waited for ``PATIENCE`` it has one bite, before a budget
    is spent on what never ends."""
    if len(due) < 2 or due[-1] is not Maintenance:
        return due
    *work, maintenance = due
    return work if times[Maintenance] > now - PATIENCE else [maintenance, *work]


_pace: dict[type[Wakeable], float] = {}
"""Seconds that a row of the model took in the last batch of this process."""


def _share(model: type[Wakeable]) -> int:
    """Return how many rows to claim: as many as take about a quarter of a second, so that other workers get some. Of
    maintenance it is one: work may become due meanwhile."""
    if model is Maintenance:
        return 1
    most = conf().BATCH * model.together
    return max(1, min(most, int(0.25 / max(_pace.get(model, 0.05), 1e-6))))


def _perform_together(rows: list[W], hands: HeldLeases, clock: Clock) -> tuple[int, list[W]]:
    """Perform ``rows`` of one kind in one go; return how many were, and those that are to be performed one by one."""
    mine = hands.start_together(rows)
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
            give_back(row, lease, {before[row.pk], row.seq}, clock())
        raise
    except Exception:
        # Each by itself says who is to blame. Read again, for this may have changed them in memory.
        close_if_broken(connection)
        left = list(model._base_manager.using(connection.alias).filter(pk__in=before, lease=lease).order_by("pk"))
        hands.hold(list(left))
        return len(mine) - len(left), left
    finally:
        hands.finish()


def _perform(row: Wakeable, clock: Clock) -> None:
    lease, seq = row.lease, row.seq
    try:
        if row.losses:
            row.record_loss(clock)
            if row.losses >= conf().MAX_LOSSES:
                known = str(getattr(row, "error", ""))
                if not known.startswith(ENGINE_FAILED):
                    known = (
                        f"{row.losses} workers in a row died or hung with this row in hand. Look for what kills them "
                        "(memory, a crash in C code, a timeout), then resume it."
                    )
                row.park(known, clock)
                return
        with kept_session(connections[alias_of(type(row))], is_ours=is_working()):
            row.perform(clock)
    except LeaseLostError:
        pass  # moved, cancelled or taken over meanwhile: whoever did that has seen to what comes next
    except ShutdownInterrupt:
        # Between two steps, perhaps: then nobody else has given the row back.
        give_back(row, lease, {seq, row.seq}, clock())
        raise
    except Exception as error:
        perform_failed.send_robust(type(row), row=row, error=error)
        if is_database_failure(error, connections[alias_of(type(row))]):
            # Nobody's fault, so it is no loss either. What was rolled back may have raised ``seq`` in memory.
            give_back(row, lease, {seq, row.seq}, clock() + DATABASE_PAUSE)
        else:
            # The traceback is the reason: a row that is parked for it later must not blame a worker's death.
            reason = f"{ENGINE_FAILED} (report a bug):\n{trace_of(error)}"
            kept = reason if hasattr(row, "error") else None
            give_back(row, lease, {seq, row.seq}, clock() + conf().LEASE, is_loss=True, error=kept)
