"""One attempt of user code under a row's lease: run it, and commit its progress exactly once.

Steps, callbacks and handlers all go through ``attempt``. The work runs in one ``atomic`` block together with its fenced
progress write. With ``atomic=False`` it runs outside any transaction, and the progress is a write of its own. How the
attempt ends decides what is kept:

* a result: the user's writes, the progress and the history commit together;
* an exception: the user's writes are rolled back; the progress that ``rescue`` returns (a retry, a failure) is
  committed;
* a database failure: the row is released, and the attempt is not counted;
* a lost lease: everything is rolled back, and another worker has the row;
* the end of the process (``SystemExit``): the row is released immediately, and a loss is counted, as if the worker had
  been killed. Otherwise a step that calls ``sys.exit()`` would end one worker after another. No loss is counted when a
  worker that must stop interrupts the attempt (``ShutdownInterrupt``).

After a commit whose answer was lost, nothing is written twice: the commit raised ``seq``, and every later write of this
worker is fenced on the old value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import Error as AnyDatabaseError
from django.db import connections, models, transaction
from django.db.models import F

from ..db.connection_slots import frees_connection
from ..db.connections import close_if_broken, is_untouched_transaction, was_closed
from ..db.errors import is_database_failure, is_from_other_connection
from ..db.session import Session
from ..db.writer import alias_of
from ..exceptions import AttemptTimeoutError, ControlFlowError, LeaseLostError
from ..values.clock import Clock
from .advance import advance
from .causation import CurrentRun, current_cause, running
from .commit_group import SHORT_SECONDS, CommitGroup, Kept
from .held_leases import (
    bounded,
    commit_group,
    disarm_deadline,
    is_working,
    keep_lease_for,
    was_interrupted,
)
from .interrupt import ShutdownInterrupt
from .lease import release
from .observing import current_subject, has_observers, observed, resumed
from .signals import attempt_finished, row_failed
from .wakeable import Wakeable

DATABASE_RETRY_DELAY = timedelta(seconds=1)
"""How long after a database failure a row is due again."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What an attempt commits: ``changes`` of its row, a history row (``record``), other new rows (``inserts``), and
    functions that write more in the same transaction (``writes``)."""

    changes: Mapping[str, Any]
    record: models.Model | None = None
    writes: tuple[Callable[[], None], ...] = field(default=())
    failed: tuple[models.Model, str] | None = None
    """The row that fails permanently with this commit, and why: ``row_failed`` is sent for it."""
    inserts: tuple[models.Model, ...] = ()
    prepares: bool = False
    """Whether it only prepares the attempt that follows, so that ``attempt_finished`` is not sent for it."""

    @property
    def is_plain(self) -> bool:
        """Whether it changes its own row and adds to its history, and nothing else."""
        return not (self.inserts or self.writes or self.failed or self.prepares)

    @property
    def records(self) -> tuple[models.Model, ...]:
        return self.inserts if self.record is None else (*self.inserts, self.record)


def commit(row: Wakeable, progress: Progress) -> None:
    """Write ``progress`` under the fence, in one transaction. Raises ``LeaseLostError``; then nothing is written."""
    connection = connections[alias_of(type(row))]
    one_statement = not progress.writes and (not progress.records or connection.vendor == "postgresql")
    if one_statement:
        _write(row, progress)
    else:
        with transaction.atomic(using=connection.alias):
            _write(row, progress)


def _write(row: Wakeable, progress: Progress) -> None:
    advance(row, _changes(row, progress), progress.records)
    for write in progress.writes:
        write()


def _changes(row: Wakeable, progress: Progress) -> Mapping[str, Any]:
    current = current_cause()
    if (
        current is not None
        and current.started_trace is not None
        and current.row is row
        and hasattr(row, "trace_context")
    ):
        return {**progress.changes, "trace_context": current.started_trace}
    return progress.changes


def attempt(
    row: Wakeable,
    work: Callable[[], Progress],
    rescue: Callable[[Exception], Progress],
    *,
    current: CurrentRun,
    atomic: bool,
    timeout: timedelta,
    clock: Clock,
    may_wait: bool = False,
    resume: Callable[[], None] | None = None,
) -> bool:
    """Run ``work`` once under the lease of ``row`` and commit its progress. Return whether anything was committed.

    ``rescue`` turns an exception of ``work`` into the progress that is committed instead. ``may_wait``: whether its
    progress may be kept for a common write (``commit_group``); then this returns true, and the caller does nothing more
    with the row. ``resume``: what is done next with the row, once that is written, if it keeps its lease.
    """
    group = commit_group() if may_wait and atomic else None
    if group is not None and has_observers():
        group = None  # an observer surrounds the attempt with its commit
    with observed(row, current):
        return _Attempt(row, work, rescue, current, atomic, timeout, clock, group, resume).perform()


@dataclass(eq=False)
class _Attempt:
    """One attempt, from the call of the code to the report of its end."""

    row: Wakeable
    work: Callable[[], Progress]
    rescue: Callable[[Exception], Progress]
    current: CurrentRun
    atomic: bool
    timeout: timedelta
    clock: Clock
    group: CommitGroup | None
    resume: Callable[[], None] | None
    failure: Exception | None = None
    made: Progress | None = None
    rescued: Progress | None = None

    def __post_init__(self) -> None:
        self.connection = connections[alias_of(type(self.row))]
        is_closed = not self.atomic and frees_connection(self.connection)
        self.session = Session(self.connection, is_closed=is_closed)
        keep_lease_for(self.timeout)
        self.started = time.monotonic()
        self.before = dict(self.row.__dict__)
        self.lease, self.seq = self.row.lease, self.row.seq

    def perform(self) -> bool:
        """Call the code and commit its progress, or keep it for a common write. Return whether it was not in vain."""
        return self._settle(self._call_and_commit)

    def _call_and_commit(self) -> bool:
        """Return whether the progress is kept."""
        try:
            self.failure, progress = _run(self.row, self._make, self.connection.alias, self.atomic)
        finally:
            self.session.settle(is_ours=is_working(), is_interrupted=was_interrupted())
        seconds = time.monotonic() - self.started
        if (
            self.group is not None
            and progress is not None
            and progress.is_plain
            and self.failure is None
            and seconds <= SHORT_SECONDS
            and (self.group.may_resume or "lease" in progress.changes)
        ):
            self._keep(self.group, progress, seconds)
            return True
        return self._commit(progress)

    def _make(self) -> Progress:
        try:
            with self.session.watched(), bounded(self.timeout, self.connection):
                self.made = self.work()
        except (Exception, SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # It must end the attempt, but not the worker.
            raise ControlFlowError(f"User code raised {type(error).__name__}: {error}") from error
        finally:
            disarm_deadline()
        return self.made

    def _keep(self, group: CommitGroup, progress: Progress, seconds: float) -> None:
        subject = current_subject()

        def finish(is_written: bool) -> bool:
            with resumed(subject):
                if not is_written:
                    return self._settle(lambda: self._commit(progress)) or self._was_written_together()
                attempt_finished.send_robust(type(self.row), row=self.row, error=None, seconds=seconds)
                return True

        group.add(Kept(self.row, _changes(self.row, progress), progress.record, finish, self.resume))

    def _was_written_together(self) -> bool:
        """Return whether the common write has been committed though its answer was lost, and this worker still has the
        row. If so, reload it."""
        mine = type(self.row)._base_manager.using(self.connection.alias)
        if not mine.filter(pk=self.row.pk, lease=self.lease, seq=self.seq + 1).exists():
            return False
        self.row.refresh_from_db()
        return True

    def _commit(self, progress: Progress | None) -> bool:
        """Commit what is not committed yet: the progress, or what ``rescue`` makes of the failure. Return False."""
        row = self.row
        if self.failure is None and progress is not None:
            self.failure = _commit_or_error(row, progress)
        if isinstance(self.failure, AttemptTimeoutError) and not self.connection.in_atomic_block:
            # The cancel request may reach the database late, and must not hit a statement of the engine.
            self.connection.close()
        if self.failure is not None:
            # The rollback did not change the row in memory. And if only a hook after the commit raised, so that
            # nothing was rolled back, the old ``seq`` prevents that the commit is overwritten.
            self._reset_row()
            self.rescued = self.rescue(self.failure)
            commit(row, self.rescued)
        return False

    def _reset_row(self) -> None:
        self.row.__dict__.clear()
        self.row.__dict__.update(self.before)

    def _settle(self, commits: Callable[[], bool]) -> bool:
        """End the attempt with what ``commits`` does, and report it, unless that returns that progress is kept. Return
        whether anything is committed or kept."""
        row, connection = self.row, self.connection
        try:
            with running(self.current):
                if commits():
                    return True
        except LeaseLostError:
            if self.failure is None or not _was_committed(row, self.seq):
                self._reset_row()
                return False
            self.rescued = None
        except BaseException as error:
            if not isinstance(error, Exception) or is_database_failure(error, connection):
                pause = DATABASE_RETRY_DELAY if isinstance(error, Exception) else timedelta(0)
                is_loss = not isinstance(error, Exception | ShutdownInterrupt)
                release_or_expire(row, self.lease, [self.seq], self.clock() + pause, is_loss=is_loss)
            if isinstance(error, Exception) and is_database_failure(error, connection):
                self._report(error)
                return False
            raise
        committed = self.rescued or self.made
        if committed is None or not committed.prepares:
            self._report(None if getattr(self.failure, "is_expected", False) else self.failure)
        if committed is not None and committed.failed is not None:
            failed_row, reason = committed.failed
            row_failed.send_robust(type(failed_row), row=failed_row, reason=reason)
        return True

    def _report(self, error: Exception | None) -> None:
        seconds = time.monotonic() - self.started
        attempt_finished.send_robust(type(self.row), row=self.row, error=error, seconds=seconds)


def _run(
    row: Wakeable, work: Callable[[], Progress], alias: str, atomic: bool
) -> tuple[Exception | None, Progress | None]:
    """Return the exception of ``work``, or the progress that must still be committed."""
    connection = connections[alias]
    closed, session = False, connection.connection
    try:
        if not atomic:
            return None, work()
        with transaction.atomic(using=alias):
            try:
                progress = work()
                # Nothing was sent to the database: leave the block first, so that the progress needs neither BEGIN
                # nor COMMIT.
                if is_untouched_transaction(connection):
                    return None, progress
                _write(row, progress)
            finally:
                closed = was_closed(connection)
            return None, None
    except LeaseLostError:
        raise
    except Exception as error:
        if closed:
            error.add_note("User code closed its database connection inside the transaction of its attempt.")
        elif is_database_failure(error, connection) and not is_from_other_connection(error, connection, session):
            raise
        close_if_broken(connection)
        return error, None


def _commit_or_error(row: Wakeable, progress: Progress) -> Exception | None:
    """Commit the progress of the work. Return the error of the commit, unless it is a database failure."""
    try:
        commit(row, progress)
    except LeaseLostError:
        raise
    except Exception as error:
        if is_database_failure(error, connections[alias_of(type(row))]):
            raise
        return error
    return None


def _was_committed(row: Wakeable, seq: int) -> bool:
    """Return whether the progress of this attempt was committed although it ended with an exception. If so, reload the
    row."""
    model = type(row)
    if not model._base_manager.using(alias_of(model)).filter(pk=row.pk, seq=seq + 1).exists():
        return False
    row.refresh_from_db()
    return True


def release_or_expire(
    row: Wakeable,
    lease: str | None,
    seqs: Collection[int],
    wake_at: datetime,
    *,
    is_loss: bool = False,
    error: str | None = None,
) -> None:
    """Release the row, which has one of ``seqs``; if the database cannot be reached, let its lease expire.

    ``is_loss``: count a lost lease. ``error``: the reason to write to the row.
    """
    reason = {} if error is None else {"error": error}
    connection = connections[alias_of(type(row))]
    row.lease = lease
    try:
        close_if_broken(connection)
        for row.seq in seqs:
            if release(row, wake_at, losses=F("losses") + int(is_loss), **reason):
                return
    except AnyDatabaseError:
        connection.close()
