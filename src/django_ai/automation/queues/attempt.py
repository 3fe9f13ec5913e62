"""One try of user code under a row's lease: run it, and commit what came of it, once.

Steps, callbacks and handlers all go through ``attempt``. The work runs in one ``atomic`` block together with its fenced
progress write (or, with ``atomic=False``, outside any transaction, and only the progress is a write of its own). What
ends the try decides what is kept:

* a result: the user's writes, the progress and the history commit together;
* an exception: the user's writes are rolled back; the progress that ``rescue`` makes of it (a retry, a failure) is
  committed;
* trouble of the database: the row is given back and costs no try;
* a lost lease: everything is rolled back, and somebody else has the row;
* the end of the process (``SystemExit``): the row is given back at once. That is a loss, as if the worker had been
  killed, or a step that calls ``sys.exit()`` would end worker after worker; but none where a worker that is told to
  stop breaks off what it has in hand (``ShutdownInterrupt``).

After a commit whose answer was lost nothing can be written by mistake: the commit raised ``seq``, and every later
write of this worker is fenced on the old one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import Error as DatabaseTrouble
from django.db import connections, models, transaction
from django.db.models import F

from ..db.connections import close_if_broken, is_untouched_transaction, was_closed
from ..db.errors import comes_from_elsewhere, is_database_failure
from ..db.session import Session
from ..db.writer import alias_of
from ..exceptions import AttemptTimeoutError, ControlFlowError, LeaseLostError
from ..values.clock import Clock
from .causation import CurrentRun, running
from .heartbeat import bounded, is_working, keep_lease_for
from .lease import advance, release
from .models import Wakeable
from .signals import attempt_finished, row_failed

DATABASE_PAUSE = timedelta(seconds=1)
"""After trouble of the database a row is due again in so long."""


class ShutdownInterrupt(SystemExit):
    """Raised inside user code by a worker that is told to stop and has waited long enough."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a try wants to commit: ``changes`` of its row, a ``record`` of history and other new rows (``inserts``), and
    writes that go ``together`` with them."""

    changes: Mapping[str, Any]
    record: models.Model | None = None
    together: tuple[Callable[[], None], ...] = field(default=())
    failed: tuple[models.Model, str] | None = None
    """The row that fails for good with this commit, and why: ``row_failed`` is sent for it."""
    inserts: tuple[models.Model, ...] = ()

    @property
    def records(self) -> tuple[models.Model, ...]:
        return self.inserts if self.record is None else (*self.inserts, self.record)


def commit(row: Wakeable, progress: Progress) -> None:
    """Write ``progress`` under the fence, in one transaction. Raises ``LeaseLostError``; then nothing is written."""
    connection = connections[alias_of(type(row))]
    one_statement = not progress.together and (not progress.records or connection.vendor == "postgresql")
    if one_statement:
        _write(row, progress)
    else:
        with transaction.atomic(using=connection.alias):
            _write(row, progress)


def _write(row: Wakeable, progress: Progress) -> None:
    advance(row, progress.changes, progress.records)
    for write in progress.together:
        write()


def attempt(
    row: Wakeable,
    work: Callable[[], Progress],
    rescue: Callable[[Exception], Progress],
    *,
    current: CurrentRun,
    atomic: bool,
    timeout: timedelta,
    clock: Clock,
) -> bool:
    """Run ``work`` once under the lease of ``row`` and commit its progress; say whether anything was committed.

    ``rescue`` turns an exception of ``work`` into the progress to commit instead.
    """
    connection = connections[alias_of(type(row))]
    session = Session(connection)
    keep_lease_for(timeout)
    started = time.monotonic()
    before = dict(row.__dict__)
    lease, seq = row.lease, row.seq
    failure: Exception | None = None
    made: Progress | None = None
    rescued: Progress | None = None

    def make() -> Progress:
        nonlocal made
        try:
            with session.watched(), bounded(timeout, connection):
                made = work()
        except (Exception, SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # It must end the attempt, and not the worker.
            raise ControlFlowError(f"User code raised {type(error).__name__}: {error}") from error
        return made

    try:
        with running(current):
            try:
                failure, progress = _run(row, make, connection.alias, atomic)
            finally:
                session.settle(is_ours=is_working())
            if failure is None and progress is not None:
                failure = _committed(row, progress)
            if isinstance(failure, AttemptTimeoutError) and not connection.in_atomic_block:
                # What cancelled its statement may reach the database late, and must not hit one of ours.
                connection.close()
            if failure is not None:
                # What was rolled back is not so in memory. And if it was not rolled back, because only a hook after
                # the commit raised, the old ``seq`` makes sure that nothing is written over it.
                row.__dict__.clear()
                row.__dict__.update(before)
                rescued = rescue(failure)
                commit(row, rescued)
    except LeaseLostError:
        if failure is None or not _went_through(row, seq):
            row.__dict__.clear()
            row.__dict__.update(before)
            return False
        rescued = None
    except BaseException as error:
        if not isinstance(error, Exception) or is_database_failure(error, connection):
            pause = DATABASE_PAUSE if isinstance(error, Exception) else timedelta(0)
            is_loss = not isinstance(error, Exception | ShutdownInterrupt)
            give_back(row, lease, [seq], clock() + pause, is_loss=is_loss)
        if isinstance(error, Exception) and is_database_failure(error, connection):
            attempt_finished.send_robust(type(row), row=row, error=error, seconds=time.monotonic() - started)
            return False
        raise
    told = None if getattr(failure, "is_expected", False) else failure
    attempt_finished.send_robust(type(row), row=row, error=told, seconds=time.monotonic() - started)
    kept = rescued or made
    if kept is not None and kept.failed is not None:
        ended, reason = kept.failed
        row_failed.send_robust(type(ended), row=ended, reason=reason)
    return True


def _run(
    row: Wakeable, work: Callable[[], Progress], alias: str, atomic: bool
) -> tuple[Exception | None, Progress | None]:
    """Return the exception of ``work``, or the progress that is still to be committed."""
    connection = connections[alias]
    closed, session = False, connection.connection
    try:
        if not atomic:
            return None, work()
        with transaction.atomic(using=alias):
            try:
                progress = work()
                # Nothing was sent to the database: leave the block first, and the progress needs neither BEGIN nor
                # COMMIT.
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
        elif is_database_failure(error, connection) and not comes_from_elsewhere(error, connection, session):
            raise
        close_if_broken(connection)
        return error, None


def _committed(row: Wakeable, progress: Progress) -> Exception | None:
    """Commit what the work came to, and return what refused it, if that is not the database's trouble."""
    try:
        commit(row, progress)
    except LeaseLostError:
        raise
    except Exception as error:
        if is_database_failure(error, connections[alias_of(type(row))]):
            raise
        return error
    return None


def _went_through(row: Wakeable, seq: int) -> bool:
    """Say whether the progress of this try was committed although it ended with an exception; the row is then as in
    the database."""
    model = type(row)
    if not model._base_manager.using(alias_of(model)).filter(pk=row.pk, seq=seq + 1).exists():
        return False
    row.refresh_from_db()
    return True


def give_back(
    row: Wakeable,
    lease: str | None,
    seqs: Collection[int],
    wake_at: datetime,
    *,
    is_loss: bool = False,
    error: str | None = None,
) -> None:
    """Release the row as it was when it was claimed, or as one of ``seqs`` has it; if the database cannot be reached,
    its lease runs out. ``is_loss``: count it as a lease that was lost. ``error``: what to keep on the row as the
    reason."""
    kept = {} if error is None else {"error": error}
    connection = connections[alias_of(type(row))]
    row.lease = lease
    try:
        close_if_broken(connection)
        for row.seq in seqs:
            if release(row, wake_at, losses=F("losses") + int(is_loss), **kept):
                return
    except DatabaseTrouble:
        connection.close()
