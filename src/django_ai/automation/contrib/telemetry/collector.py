"""``DatabaseCollector``: what Prometheus reads of the tables when it scrapes. A few look-ups in indexes, whatever the
number of rows; counts stop at 10,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily

from ...queues.due_query import count_due
from ...queues.lanes import DEFAULT_QUEUE, Lane, LanedWakeable, declared_queues, shown_name
from ...queues.operations.failed_and_parked import failed_keys, parked_keys
from ...queues.operations.health import MAX_COUNTED_ROWS, check_health
from ...queues.operations.resume import resumable_kinds
from ...queues.problems import kind_of
from ...queues.registry import due_times, wakeables


class DatabaseCollector:
    """Reads depth and age by kind and queue, failed and parked rows by kind, and workers, at each scrape."""

    def describe(self) -> list[Any]:
        """Return nothing, so that the collector can be registered without a query."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metrics. Raises the database's error if it cannot be queried."""
        now = timezone.now()
        yield from self._due(now)
        yield from self._failed_and_parked()
        yield from self._workers(now)

    def _due(self, now: datetime) -> Iterator[Any]:
        counts: dict[tuple[str, str], int] = {}
        ages: dict[tuple[str, str], float] = {}
        for model in wakeables():  # zeros, too: a series that comes and goes cannot be alerted on
            for queue in declared_queues() if issubclass(model, LanedWakeable) else [DEFAULT_QUEUE]:
                counts[kind_of(model), queue], ages[kind_of(model), queue] = 0, 0.0
        for lane, due_at in due_times().items():
            if due_at <= now:
                at = kind_of(lane.model), shown_name(lane.queue)
                counts[at] = min(counts.get(at, 0) + _count(lane, now), MAX_COUNTED_ROWS)
                ages[at] = max(ages.get(at, 0.0), (now - due_at).total_seconds())
        depth = GaugeMetricFamily(
            "automation_due_rows",
            f"Rows that are due, also those that are leased no longer; at most {MAX_COUNTED_ROWS} are counted",
            labels=["kind", "queue"],
        )
        age = GaugeMetricFamily(
            "automation_oldest_due_seconds", "For how long the oldest due row has been due", labels=["kind", "queue"]
        )
        for at, count in counts.items():
            depth.add_metric(at, count)
            age.add_metric(at, ages[at])
        yield from (depth, age)

    def _failed_and_parked(self) -> Iterator[Any]:
        failed = GaugeMetricFamily("automation_failed_rows", "Rows that have failed for good, capped", labels=["kind"])
        parked = GaugeMetricFamily("automation_parked_rows", "Rows that are parked, capped", labels=["kind"])
        for kind in resumable_kinds().values():
            name = kind_of(kind.model)
            for family, keys in ((failed, failed_keys(kind)), (parked, parked_keys(kind))):
                if keys is not None:
                    family.add_metric([name], keys[:MAX_COUNTED_ROWS].count())
        yield from (failed, parked)

    def _workers(self, now: datetime) -> Iterator[Any]:
        health = check_health(now)
        alive = GaugeMetricFamily("automation_workers", "Workers that are alive")
        alive.add_metric([], health.workers)
        polling = GaugeMetricFamily("automation_queue_workers", "Workers that poll the queue", labels=["queue"])
        for queue, count in health.workers_by_queue.items():
            polling.add_metric([queue], count)
        healthy = GaugeMetricFamily(
            "automation_healthy", "1 unless work is overdue while no worker makes progress, as automation_health says"
        )
        healthy.add_metric([], int(health.is_healthy))
        pauses = GaugeMetricFamily("automation_paused", "How many things are paused, single rows left out")
        pauses.add_metric([], len(health.paused))
        yield from (alive, polling, healthy, pauses)


def _count(lane: Lane, now: datetime) -> int:
    return count_due(lane, now, MAX_COUNTED_ROWS)
