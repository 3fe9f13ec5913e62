"""Life-cycle signals of the engine, for logs, metrics and traces.

``attempt_finished(sender=model, row, error, seconds)``: user code of a row ran; ``error`` is its exception or None. For
functions of an event definition (condition, name, namespace, payload) it is sent only after an exception; for an
exception in a save it is sent before the commit.
``row_failed(sender=model, row, reason)``: a run, callback or handler has failed for good: no attempt follows. Sent
after the commit; connect alerts here.
``row_parked(sender=model, row, reason)``: a row needs an operator, or code that this worker does not have.
``rows_claimed(sender=model, queue, count, lateness)``: a worker has claimed rows of one lane; ``lateness`` is for how
many seconds the first of them had been due.
``perform_failed(sender=model, row, error)``: the engine itself failed on a row. Its lease will run out; after a
database failure the row was released.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

from ..values.text import last_line, one_line
from .observing import about

attempt_finished = Signal()
row_failed = Signal()
row_parked = Signal()
rows_claimed = Signal()
perform_failed = Signal()

logger = logging.getLogger("django_ai.automation")


def log_attempt(sender: Any, row: Any, error: Exception | None, seconds: float, **kwargs: Any) -> None:
    if error is not None:
        with about(row):
            logger.warning(
                "%s failed after %.3f s: %s: %s", one_line(row), seconds, type(error).__name__, one_line(error)
            )


def log_failed(sender: Any, row: Any, reason: str, **kwargs: Any) -> None:
    with about(row):
        logger.error("%s has failed for good: %s", one_line(row), last_line(reason))


def log_parked(sender: Any, row: Any, reason: str, **kwargs: Any) -> None:
    with about(row):
        logger.error("%s is parked: %s", one_line(row), last_line(reason))


def log_perform_failed(sender: Any, row: Any, error: Exception, **kwargs: Any) -> None:
    with about(row):
        logger.error("%s could not be performed: %s", one_line(row), one_line(error), exc_info=error)


def connect_logging() -> None:
    attempt_finished.connect(log_attempt, dispatch_uid="automation.log_attempt")
    row_failed.connect(log_failed, dispatch_uid="automation.log_failed")
    row_parked.connect(log_parked, dispatch_uid="automation.log_parked")
    perform_failed.connect(log_perform_failed, dispatch_uid="automation.log_perform_failed")
