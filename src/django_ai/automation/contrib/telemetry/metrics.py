"""Metrics that workers keep in memory: attempts, durations, lateness, failures. The library ``prometheus_client`` keeps
them; with ``PROMETHEUS_MULTIPROC_DIR`` in files, which any process of the machine can expose (``metrics_view``).

Labels are names that the code declares, so their number is bounded, whatever names rows are given.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Histogram

from ...queues.lanes import shown_name
from ...queues.observing import subject_of
from ...queues.problems import kind_of
from ...queues.signals import attempt_finished, perform_failed, row_failed, row_parked, rows_claimed
from .facts import Facts, facts_of

LATENESS_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
DURATION_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)

LATENESS = Histogram(
    "automation_claim_lateness_seconds",
    "How late the oldest row of each claim was",
    ["kind", "queue"],
    buckets=LATENESS_BUCKETS,
)
CLAIMED = Counter("automation_claimed_rows", "Rows that workers have claimed", ["kind", "queue"])
SECONDS = Histogram(
    "automation_attempt_seconds",
    "How long attempts of user code took, with their commit",
    ["kind", "name", "part"],
    buckets=DURATION_BUCKETS,
)
ATTEMPTS = Counter("automation_attempts", "Attempts of user code that have ended", ["kind", "name", "part", "outcome"])
FAILED = Counter("automation_failed", "Rows that have failed for good", ["kind", "name"])
PARKED = Counter("automation_parked", "Rows that were parked", ["kind", "name"])
ENGINE_ERRORS = Counter("automation_engine_errors", "Rows on which the engine itself has failed", ["kind"])


def connect() -> None:
    rows_claimed.connect(_on_claimed, dispatch_uid="automation.metrics_claimed")
    attempt_finished.connect(_on_attempt, dispatch_uid="automation.metrics_attempt")
    row_failed.connect(_on_failed, dispatch_uid="automation.metrics_failed")
    row_parked.connect(_on_parked, dispatch_uid="automation.metrics_parked")
    perform_failed.connect(_on_perform_failed, dispatch_uid="automation.metrics_perform_failed")


def disconnect() -> None:
    rows_claimed.disconnect(dispatch_uid="automation.metrics_claimed")
    attempt_finished.disconnect(dispatch_uid="automation.metrics_attempt")
    row_failed.disconnect(dispatch_uid="automation.metrics_failed")
    row_parked.disconnect(dispatch_uid="automation.metrics_parked")
    perform_failed.disconnect(dispatch_uid="automation.metrics_perform_failed")


def _on_claimed(sender: Any, queue: str, count: int, lateness: float, **kwargs: Any) -> None:
    labels = kind_of(sender), shown_name(queue)
    CLAIMED.labels(*labels).inc(count)
    LATENESS.labels(*labels).observe(max(lateness, 0.0))


def _on_attempt(sender: Any, row: Any, error: Exception | None, seconds: float, **kwargs: Any) -> None:
    subject = subject_of(row)
    facts = facts_of(row, None) if subject is None else facts_of(subject.row, subject.current)
    name = declared_name(facts, row)
    SECONDS.labels(facts.kind, name, facts.part).observe(seconds)
    ATTEMPTS.labels(facts.kind, name, facts.part, "success" if error is None else "error").inc()


def _on_failed(sender: Any, row: Any, **kwargs: Any) -> None:
    facts = facts_of(row)
    FAILED.labels(facts.kind, declared_name(facts, row)).inc()


def _on_parked(sender: Any, row: Any, **kwargs: Any) -> None:
    facts = facts_of(row)
    PARKED.labels(facts.kind, declared_name(facts, row)).inc()


def _on_perform_failed(sender: Any, **kwargs: Any) -> None:
    ENGINE_ERRORS.labels(kind_of(sender)).inc()


def declared_name(facts: Facts, row: Any) -> str:
    """Return the name of ``row`` that the code declares: of an event its template, of a signal, which has none, an
    empty string."""
    if facts.kind == "signal":
        return ""
    return str(getattr(row, "declared_as", "")) or facts.name
