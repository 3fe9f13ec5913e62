"""Sentry: the scope of each attempt, its exceptions, and check-ins of what ``@schedule`` starts.

Everything that is captured while a step, callback or handler runs has its names and ids. A failed attempt is an event
of the level *warning* while another attempt follows, and *error* when the row has failed or is parked.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import sentry_sdk
from django.apps import apps
from sentry_sdk.crons import capture_checkin
from sentry_sdk.integrations.logging import ignore_logger

from ...queues.causation import CurrentRun
from ...queues.observing import forget_observer, observe_attempts, subject_of
from ...queues.signals import attempt_finished, perform_failed, row_failed, row_parked
from ...queues.wakeable import Wakeable
from ...values.text import last_line, one_line
from .facts import Facts, facts_of

OBSERVER = "sentry"
LOGGER = "django_ai.automation"
ENDED_WELL = ("completed", "cancelled")

_captured: set[int] = set()
"""The attempts whose exception was captured, by the identity of their ``CurrentRun``."""


def connect() -> None:
    ignore_logger(LOGGER)  # what it logs as an error is captured here, with its exception
    observe_attempts(OBSERVER, AttemptScope)
    attempt_finished.connect(_on_attempt, dispatch_uid="automation.sentry_attempt")
    row_failed.connect(_on_failed, dispatch_uid="automation.sentry_failed")
    row_parked.connect(_on_parked, dispatch_uid="automation.sentry_parked")
    perform_failed.connect(_on_perform_failed, dispatch_uid="automation.sentry_perform_failed")


def disconnect() -> None:
    forget_observer(OBSERVER)
    attempt_finished.disconnect(dispatch_uid="automation.sentry_attempt")
    row_failed.disconnect(dispatch_uid="automation.sentry_failed")
    row_parked.disconnect(dispatch_uid="automation.sentry_parked")
    perform_failed.disconnect(dispatch_uid="automation.sentry_perform_failed")


class AttemptScope(AbstractContextManager[None]):
    """An isolation scope around one attempt, and the check-ins of a schedule before and after it."""

    def __init__(self, row: Wakeable, current: CurrentRun) -> None:
        self.current, self.facts = current, facts_of(current.row, current)

    def __enter__(self) -> None:
        self._scope = sentry_sdk.isolation_scope()
        scope = self._scope.__enter__()
        describe(scope, self.facts, self.current.key)
        scope.set_transaction_name(f"{self.facts.name} {self.facts.part}".rstrip(), source="task")
        if self.current.attempt == 1 and getattr(self.current.row, "visit", 1) == 1:
            _check_in(self.current.row, "in_progress")

    def __exit__(self, *error: object) -> None:
        try:
            if str(getattr(self.current.row, "status", "")) in ENDED_WELL:
                _check_in(self.current.row, "ok")
        finally:
            _captured.discard(id(self.current))
            self._scope.__exit__(None, None, None)


def describe(scope: Any, facts: Facts, key: str = "") -> None:
    """Give ``scope`` the names of a row as tags, which can be searched for, and its ids as a context."""
    for name in ("kind", "name", "part", "queue"):
        if value := getattr(facts, name):
            scope.set_tag(f"automation.{name}", value)
    values = {
        "row": facts.label,
        "attempt": facts.attempt,
        "run": facts.run,
        "entity": facts.entity,
        "causes": list(facts.causes),
        "idempotency_key": key,
    }
    scope.set_context("automation", {name: value for name, value in values.items() if value})


def _on_attempt(sender: Any, row: Any, error: Exception | None, **kwargs: Any) -> None:
    if error is None:
        return
    subject = subject_of(row)
    own = subject.row if subject is not None else row
    with sentry_sdk.new_scope() as scope:
        if subject is None or subject.current is None:  # a condition or name that raised in a save
            describe(scope, facts_of(row))
        else:
            _captured.add(id(subject.current))
        scope.set_level("error" if str(getattr(own, "status", "")) in ("failed", "parked") else "warning")
        sentry_sdk.capture_exception(error)


def _on_failed(sender: Any, row: Any, reason: str, **kwargs: Any) -> None:
    _message(row, "has failed for good", reason)


def _on_parked(sender: Any, row: Any, reason: str, **kwargs: Any) -> None:
    _message(row, "is parked", reason)


def _message(row: Any, what: str, reason: str) -> None:
    _check_in(row, "error")
    subject = subject_of(row)
    if subject is not None and id(subject.current) in _captured:
        return  # its exception says more
    with sentry_sdk.new_scope() as scope:
        facts = facts_of(row)
        describe(scope, facts)
        scope.fingerprint = ["automation", facts.kind, facts.name, what]
        sentry_sdk.capture_message(f"{one_line(row)} {what}: {last_line(reason)}", level="error")


def _on_perform_failed(sender: Any, row: Any, error: Exception, **kwargs: Any) -> None:
    with sentry_sdk.new_scope() as scope:
        describe(scope, facts_of(row))
        sentry_sdk.capture_exception(error)


# -- check-ins ---------------------------------------------------------------------------------------------------------


def _schedule_of(row: Any) -> str:
    """Return the name of the schedule that has started ``row``, or an empty string."""
    if getattr(row, "event_id", None) is None or hasattr(row, "handler"):
        return ""
    payload = row.event.payload
    if (
        not isinstance(payload, dict)
        or "scheduled_at" not in payload
        or not row.event.event_name.startswith("schedule:")
    ):
        return ""
    return str(payload.get("schedule", ""))


def _check_in(row: Any, status: str) -> None:
    """Tell Sentry what became of ``row``, if a schedule has started it."""
    monitor = _schedule_of(row)
    if not monitor:
        return
    # The worker that ends a run may not be the one that has begun it: both find the same id.
    check_in = uuid5(NAMESPACE_URL, f"{row._meta.label}:{row.call_key}").hex
    capture_checkin(monitor_slug(monitor), check_in_id=check_in, status=status, monitor_config=_config(monitor))


def monitor_slug(name: str) -> str:
    """Return the name of a schedule as Sentry accepts it for a monitor."""
    found = "".join(each if each.isascii() and (each.isalnum() or each in "-_") else "-" for each in name.lower())
    return found.strip("-")[:50]


@lru_cache(maxsize=256)
def _config(name: str) -> Any:
    """Return the timetable of a schedule for Sentry; None if Sentry knows none like it."""
    row = apps.get_model("automation_events", "Schedule")._base_manager.filter(name=name).first()
    if row is None:
        return None
    if row.cron:
        times: dict[str, Any] = {"type": "crontab", "value": row.cron}
    elif row.every is not None and not row.every % timedelta(minutes=1):
        times = {"type": "interval", "value": row.every // timedelta(minutes=1), "unit": "minute"}
    else:
        return None
    return {"schedule": times, **({"timezone": row.timezone} if row.timezone else {})}
