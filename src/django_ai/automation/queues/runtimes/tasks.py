"""The tasks that a queue runs: the doorbell and the three schedules. A project need not call them.

Each of them ends in ``drain``. The doorbell takes a task queue (``task_queues``) and names of lanes, and the others
nothing, so a forged or stale message can only perform rows that are due.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime

from django.db import Error as DatabaseFailure
from django.db import connections
from django.utils import timezone

from ...conf import conf
from ...db.errors import is_database_failure
from ...db.writer import alias_of
from ..drain import drain
from ..due import ForetoldDue, next_due
from ..lanes import Selection
from ..maintenance import run_soon
from ..notifier import get_notifier, is_ringing
from ..periodic_tasks import PRUNE, RECONCILE, run_all
from ..registry import due_lanes, wakeables
from .q2 import within_timeout
from .q2_schedules import skip_missed
from .task_queues import served_by

logger = logging.getLogger("django_ai.automation")


def drain_due(task_queue: str = "", due: str = "") -> int:
    """Answer a doorbell: perform due rows for ``AUTOMATION["DRAIN_BUDGET"]``, and ring again if more are due.

    ``task_queue``: perform rows of the queues that ``AUTOMATION["QUEUES"]`` gives to it; by default, of those that it
    gives to none. ``due``: names of doorbells for lanes that are due, which are claimed from at once.

    A database that does not answer does not fail the task: a warning is logged, and the next doorbell retries.
    """
    budget, started = conf().DRAIN_BUDGET, time.monotonic()
    served = served_by(task_queue)
    try:
        # A task queue that executes tasks immediately does so in a web process, which must not be ended.
        foretold = ForetoldDue(due.split(",")) if due else None
        performed = drain(budget=budget, heartbeat=True, expendable=not is_ringing(), poller=foretold, **served)
        is_used_up = time.monotonic() - started >= budget.total_seconds()
        if is_used_up and (left := due_lanes(timezone.now(), next_due(), Selection.of(**served))):
            get_notifier().ring(alias_of(wakeables()[0]), {lane.name for lane in left} if conf().QUEUES else ())
    except DatabaseFailure as error:
        if not is_database_failure(error, connections[alias_of(wakeables()[0])]):
            raise
        logger.warning("The database does not answer; due rows are performed when it does: %s", error)
        return 0
    return performed


def process_scheduled() -> int:
    """Perform the rows that are due. Scheduled every minute: with a broker of Q2's own, this is what fires timers.

    After an outage one run replaces all that were missed; the same holds for the other schedules.
    """
    skip_missed(timezone.now())
    performed = drain_due()
    if conf().QUEUES:  # other clusters have no schedule of ours
        others = Selection.of(queues=list(conf().QUEUES))
        if due := due_lanes(timezone.now(), next_due(), others):
            get_notifier().ring(alias_of(wakeables()[0]), {lane.name for lane in due})
    return performed


def poll_due(now: datetime | None = None) -> int:
    """Reconcile events with writes that bypass Django's signals (``QuerySet.update``, raw SQL), and perform due rows.

    Workers do both automatically; this does it at once. Returns the number of rows reconciled or performed.
    """
    reconciled = reconcile(now)
    return reconciled + (drain_due() if now is None else drain(now))


def reconcile(now: datetime | None = None) -> int:
    """Reconcile events with writes that bypass Django's signals, and perform nothing. Returns the number of rows."""
    return run_all(RECONCILE, now or timezone.now())


def cleanup_old(now: datetime | None = None) -> int:
    """Delete finished rows that are older than ``AUTOMATION["RETENTION"]`` or the retention of their model.

    Rows that guarantee once-only execution stay. Workers delete the same rows in time slices; this does it at once, in
    short transactions, and stops after ``AUTOMATION["CLEANUP_BUDGET"]``. Returns the number of deleted rows.
    """
    until = time.monotonic() + within_timeout(conf().CLEANUP_BUDGET).total_seconds()
    return run_all(PRUNE, now or timezone.now(), until)


def reconcile_soon() -> int:
    """Make the reconciliation due now, and perform the rows that are due. Scheduled every five minutes."""
    run_soon(RECONCILE, timezone.now())
    return drain_due()


def prune_soon() -> int:
    """Make pruning due now, and perform the rows that are due. Scheduled daily."""
    run_soon(PRUNE, timezone.now())
    return drain_due()
