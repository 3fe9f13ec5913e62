"""How fast workers carry out a bulk action. On PostgreSQL.

    python bench/bulk_actions.py [--runs 10000] [--json FILE]

Suspended runs are inserted and cancelled by one bulk action, which one process carries out, bite by bite. The figures
are rows per second, the longest bite (other work waits for it), and the time until the request that began it returned.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.run import database  # noqa: E402
from bench.scale import analyze, copy, empty  # noqa: E402

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    with database():
        figures = cancelling(options.runs)
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2))


def cancelling(number: int) -> Figures:
    """Cancel ``number`` suspended runs by one bulk action."""
    from django.utils import timezone

    from django_ai.automation import acting_as, engine
    from django_ai.automation.queues.claim import claim
    from django_ai.automation.queues.models import Action, BulkAction
    from django_ai.automation.workflows.models import WorkflowRun

    empty()
    for model in (Action, BulkAction):
        model.objects.all().delete()
    copy(
        WorkflowRun,
        (
            WorkflowRun(pk=key, name="bulk", version="1", status="suspended", current_step="begin")
            for key in range(1, number + 1)
        ),
    )
    analyze()
    started = time.monotonic()
    with acting_as("system:bench"):
        bulk = engine.bulk("cancel", name="bulk", reason="The season is over.")
    begun = time.monotonic()
    longest = 0.0
    while rows := claim(BulkAction, timezone.now(), 1):
        before = time.monotonic()
        rows[0].perform(timezone.now)
        longest = max(longest, time.monotonic() - before)
    seconds = time.monotonic() - begun
    bulk.refresh_from_db()
    assert (bulk.status, bulk.done) == ("completed", number), bulk.__dict__
    assert Action.objects.filter(done="Cancelled").count() == number
    return {
        "rows per second": number / seconds,
        "longest bite, ms": longest * 1000,
        "time to begin it, ms": (begun - started) * 1000,
    }


if __name__ == "__main__":
    main()
