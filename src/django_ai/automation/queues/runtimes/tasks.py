"""The tasks that a queue runs: doorbells and the three schedules. Nobody needs to call them in production.

All of them end in ``drain``. They take no arguments, so a forged or stale message can do no more than look at the
clock.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime

from django.db import Error as DatabaseTrouble
from django.db import connections
from django.utils import timezone

from ...conf import conf
from ...db.errors import is_database_failure
from ...db.writer import alias_of
from ..drain import drain
from ..due import look
from ..maintenance import PRUNE, RECONCILE, run_all, run_soon
from ..notifier import get_notifier
from ..registry import due_models, wakeables
from .q2 import within_timeout
from .q2_schedules import skip_missed

logger = logging.getLogger("django_ai.automation")


def drain_due() -> int:
    """Answer a doorbell: perform what is due for one share of time, and ring again if there is more.

    A database that does not answer is no failure of the task: it is logged, and the next doorbell tries again.
    """
    budget, started = conf().DRAIN_BUDGET, time.monotonic()
    try:
        performed = drain(budget=budget, heartbeat=True, expendable=True)
        is_used_up = time.monotonic() - started >= budget.total_seconds()
        if is_used_up and due_models(timezone.now(), look()):
            get_notifier().ring(alias_of(wakeables()[0]))
    except DatabaseTrouble as error:
        if not is_database_failure(error, connections[alias_of(wakeables()[0])]):
            raise
        logger.warning("The database does not answer; what is due is done when it does: %s", error)
        return 0
    return performed


def process_scheduled() -> int:
    """Perform what is due; the floor for timers where no broker of ours watches. Scheduled each minute.

    After an outage this one run makes up for all that were missed, and so do those of the other schedules."""
    skip_missed(timezone.now())
    return drain_due()


def poll_due(now: datetime | None = None) -> int:
    """Put right what changed behind Django's back (dates set with ``QuerySet.update`` or raw SQL), and perform what is
    due, at once. Workers do both by themselves. Returns the number of rows put right or performed."""
    found = put_right(now)
    return found + (drain_due() if now is None else drain(now))


def put_right(now: datetime | None = None) -> int:
    """Put right what changed behind Django's back, and perform nothing. Returns the number of rows put right."""
    return run_all(RECONCILE, now or timezone.now())


def cleanup_old(now: datetime | None = None) -> int:
    """Remove what is finished and older than ``AUTOMATION["RETENTION"]`` (or what that is for its kind), but nothing
    that once-only needs: at once, where workers do it bite by bite.

    Short transactions; stops after ``AUTOMATION["CLEANUP_BUDGET"]``. Returns the number of removed rows.
    """
    until = time.monotonic() + within_timeout(conf().CLEANUP_BUDGET).total_seconds()
    return run_all(PRUNE, now or timezone.now(), until)


def reconcile_soon() -> int:
    """Let workers put right now what changed behind Django's back, without waiting for their own time; perform what is
    due. Scheduled each five minutes."""
    run_soon(RECONCILE, timezone.now())
    return drain_due()


def prune_soon() -> int:
    """Let workers remove now what is old, without waiting for their own time; perform what is due. Scheduled daily."""
    run_soon(PRUNE, timezone.now())
    return drain_due()
