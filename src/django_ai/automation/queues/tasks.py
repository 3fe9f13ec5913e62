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

from ..conf import conf
from .database import is_database_failure
from .drain import drain
from .executor import get_executor
from .lease import alias_of
from .lookout import look
from .q2 import within_timeout
from .registry import cleaners, due_models, reconcilers, wakeables
from .schedules import skip_missed

logger = logging.getLogger("django_ai.automation")


def drain_due() -> int:
    """Answer a doorbell: perform what is due for one share of time, and ring again if there is more.

    A database that does not answer is no failure of the task: it is logged, and the next doorbell tries again.
    """
    try:
        performed = drain(budget=conf().DRAIN_BUDGET, heartbeat=True, expendable=True)
        if performed and due_models(timezone.now(), look()):
            get_executor().ring(alias_of(wakeables()[0]))
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
    """Put right what changed behind Django's back (dates set with ``QuerySet.update`` or raw SQL), then perform what
    is due. Scheduled each five minutes. Returns the number of rows put right or performed."""
    found = put_right(now)
    return found + (drain_due() if now is None else drain(now))


def put_right(now: datetime | None = None) -> int:
    """Put right what changed behind Django's back, and perform nothing. Returns the number of rows put right."""
    moment = now or timezone.now()
    return sum(reconcile(moment) for reconcile in reconcilers())


def cleanup_old(now: datetime | None = None) -> int:
    """Remove what is finished and older than ``AUTOMATION["RETENTION"]`` (or what that is for its kind), but nothing
    that once-only needs. Scheduled daily.

    Short transactions; stops after ``AUTOMATION["CLEANUP_BUDGET"]``, and the next one goes on. Returns the number of
    removed rows.
    """
    moment, removed = now or timezone.now(), 0
    until = time.monotonic() + within_timeout(conf().CLEANUP_BUDGET).total_seconds()
    todo = list(cleaners())
    while todo:
        # Each gets its part of the time that is left, so that none can use up all of it day after day.
        part = max(until - time.monotonic(), 0.0) / len(todo)
        removed += todo.pop(0)(moment, time.monotonic() + part)
    return removed
