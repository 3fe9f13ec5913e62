"""The fourth benchmark: what many rows cost that are near, or due, at once. On PostgreSQL.

    python bench/bulk.py [--rows 10000] [--only reconcile,due] [--json FILE]

``reconcile``: so many entities with a date that is near are in line with their events, and a pass of ``poll_due`` looks
at them. ``due``: so many events are due at once, and one process makes them occur.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.run import database  # noqa: E402
from bench.scale import analyze, empty, timed  # noqa: E402

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--only", default="reconcile,due")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_EXECUTOR"] = "silent"
    figures: Figures = {}
    with database():
        for name in wanted.only.split(","):
            empty()
            figures |= {"reconcile": reconcile, "due": due}[name](wanted.rows)
    for name, value in figures.items():
        print(f"{name}: {value:,.2f}")
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps(figures, indent=2))


def save(number: int, minutes: float) -> None:
    """Save so many entities whose date is ``minutes`` ahead, with their events."""
    from datetime import timedelta

    from django.db import transaction
    from django.utils import timezone

    from bench.load.models import Eventful

    at = timezone.now() + timedelta(minutes=minutes)
    with transaction.atomic():
        for n in range(number):
            Eventful.objects.create(name=f"e{n}", due_at=at)
    analyze()


def reconcile(number: int) -> Figures:
    """Return the seconds of a pass that finds nothing, the second of two."""
    from django.utils import timezone

    from django_ai.automation.events.reconcile import reconcile_dates

    save(number, minutes=10)
    reconcile_dates(timezone.now())
    return {f"seconds to reconcile {number:,} unchanged rows": timed(lambda: reconcile_dates(timezone.now())) / 1000}


def due(number: int) -> Figures:
    """Return how many events one process makes occur in a second."""
    from datetime import timedelta

    from django.utils import timezone

    from django_ai.automation.events.models import Event
    from django_ai.automation.queues.drain import drain

    save(number, minutes=10)
    late = timezone.now() - timedelta(seconds=1)
    from bench.load.models import Eventful

    Eventful.objects.update(due_at=late)
    Event.objects.filter(declared_as="eventful_due").update(at=late, wake_at=late)
    analyze()
    took = timed(lambda: drain(heartbeat=True))
    assert Event.objects.filter(declared_as="eventful_due", status="processed").count() == number
    return {f"events a second, of {number:,} that are due at once": number / (took / 1000)}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
