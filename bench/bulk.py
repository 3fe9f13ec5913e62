"""The cost of many rows that are due soon, or at once. On PostgreSQL.

    python bench/bulk.py [--rows 10000] [--only reconcile,due,waits,doorbells,capture] [--json FILE]

- ``reconcile``: one pass of the reconciliation over ``--rows`` entities whose events are up to date.
- ``due``: ``--rows`` events are due at once, and one process makes them occur.
- ``waits``: ten times as many events have occurred since a run started, and its wait searches them; none matches.
- ``doorbells``: one-step runs are started one by one, at most 270 per second, while five workers LISTEN, all for
  runs or only one. All transactions of the database are counted: starting a run, its doorbell and its step need about
  eight.
- ``capture``: ``bulk_create`` and ``update`` of ten times ``--rows`` rows, with triggers that capture them and without;
  and how fast one process performs what was captured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.rows import insert_from  # noqa: E402
from bench.run import database  # noqa: E402
from bench.scale import analyze, empty, timed  # noqa: E402

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--only", default="reconcile,due,waits,doorbells,capture")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "worker" if options.only == "doorbells" else "silent"
    figures: Figures = {}
    with database():
        for name in options.only.split(","):
            empty()
            figures |= MEASUREMENTS[name](options.rows)
    for name, value in figures.items():
        print(f"{name}: {value:,.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2))


def save(number: int, minutes: float) -> None:
    """Save ``number`` entities whose date is ``minutes`` ahead, with their events."""
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
    """Return the duration of a pass that finds nothing to change, the second of two."""
    from django.utils import timezone

    from django_ai.automation.events.recording.reconcile import reconcile_dates

    save(number, minutes=10)
    reconcile_dates(timezone.now())
    return {f"seconds to reconcile {number:,} unchanged rows": timed(lambda: reconcile_dates(timezone.now())) / 1000}


def due(number: int) -> Figures:
    """Return how many events per second one process makes occur."""
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
    return {f"events per second, of {number:,} that are due at once": number / (took / 1000)}


def waits(number: int) -> Figures:
    """Return the duration of a search for events of ten entities, and of 2,000; no event matches."""
    from bench.growth import execute
    from django_ai.automation.events.declarations import sources_of
    from django_ai.automation.events.matching.lookback import occurred_matching
    from django_ai.automation.events.matching.match import address
    from django_ai.automation.events.models import Event

    execute(
        """INSERT INTO load_note (owner)
        SELECT CASE WHEN n <= 2000 THEN 1 WHEN n <= 2010 THEN 2 ELSE n END FROM generate_series(1, %s) AS n""",
        number * 10 + 2010,
    )
    Event.objects.all().delete()
    insert_from(
        Event,
        "load_note WHERE owner > 2",
        entity_type="'load.note'",
        entity_id="id::text",
        event_name="'note_taken'",
        declared_as="'note_taken'",
        status="'processed'",
        event_created_at="now()",
        armed="true",
        position="id",
        fired_position="id",
        active_key="'k' || id",
    )
    analyze()
    found, sources = {}, sources_of("note_taken")
    for owner, matching in ((2, "ten"), (1, "2,000")):
        values = {"owner": owner}
        where = address("note_taken", values, sources)
        took = timed(lambda: list(occurred_matching(Event.objects.all(), sources, "note_taken", values, where)))  # noqa: B023
        found[f"ms to search {number * 10:,} events for those of {matching} matching entities"] = took
    return found


RUNS_PER_SECOND = 270
DURATION_SECONDS = 5


def doorbells(number: int) -> Figures:
    """Return the number of transactions per run, for runs that are started one by one."""
    from django_ai.automation.queues.notifier import WorkerNotifier, set_notifier

    set_notifier(WorkerNotifier())
    try:
        return {
            "transactions per run, five workers for all kinds": transactions_per_run(["", "", "", "", ""]),
            "transactions per run, one worker for runs and four for agents": transactions_per_run(
                ["workflows", "agents", "agents", "agents", "agents"]
            ),
        }
    finally:
        set_notifier(None)


def transactions_per_run(kinds: list[str]) -> float:
    from django_ai.automation.workflows.core import engine
    from django_ai.automation.workflows.models import WorkflowRun

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    command = [sys.executable, "-m", "django", "automation_worker", "--no-maintenance"]
    workers = [
        subprocess.Popen([*command, *(["--kinds", each] if each else [])], env=environment, cwd=ROOT) for each in kinds
    ]
    try:
        time.sleep(5)
        before, started = transactions(), time.monotonic()
        for n in range(RUNS_PER_SECOND * DURATION_SECONDS):
            time.sleep(max(0.0, started + n / RUNS_PER_SECOND - time.monotonic()))
            engine.start("one", number=n)
        while WorkflowRun.objects.unfinished().exists():
            time.sleep(0.2)
        return (transactions() - before) / (RUNS_PER_SECOND * DURATION_SECONDS)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(30)


def transactions() -> float:
    from django.db import connection

    time.sleep(1.5)  # PostgreSQL reports the statistics of a session with a delay
    with connection.cursor() as cursor:
        cursor.execute("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
        return float(cursor.fetchone()[0])


ROUNDS = 5


def capture(number: int) -> Figures:
    """Return the duration of bulk writes with and without capture, and how many captured writes are performed per
    second."""
    from datetime import timedelta

    from bench.load.models import Eventful
    from django_ai.automation.events.models import CapturedWrite
    from django_ai.automation.queues.drain import drain

    rows = number * 10
    took: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for title, installs in (("without", False), ("with", True)):
            prepare_capture(installs)
            new = [Eventful(name=f"e{n}") for n in range(rows)]
            took.setdefault(f"bulk_create {title}", []).append(timed(lambda: Eventful.objects.bulk_create(new)))  # noqa: B023
            took.setdefault(f"update {title}", []).append(timed(lambda: Eventful.objects.update(name="x")))
    found = {f"seconds to {name} capture, {rows:,} rows": statistics.median(each) / 1000 for name, each in took.items()}
    for name in ("bulk_create", "update"):
        pairs = zip(took[f"{name} with"], took[f"{name} without"], strict=True)
        found[f"{name} with capture, times as long"] = statistics.median(one / other for one, other in pairs)
    analyze()
    before, budget = CapturedWrite.objects.count(), timedelta(seconds=20)
    took_ms = timed(lambda: drain(heartbeat=True, budget=budget))
    found["captured writes performed per second"] = (before - CapturedWrite.objects.count()) / (took_ms / 1000)
    prepare_capture(False)
    return found


def prepare_capture(installs: bool) -> None:
    """Empty the tables, and let the writes to ``Eventful`` be captured, or no longer."""
    from django.db import connection

    from bench.load.models import Eventful
    from django_ai.automation.events import capture as captures
    from django_ai.automation.events.models import CapturedWrite
    from django_ai.automation.events.recording.model_signals import connect_model
    from django_ai.automation.events.triggers.installation import install, remove
    from django_ai.automation.events.triggers.rows import Capture

    for definition in Eventful.events:
        definition._capture = installs
    captures.forget()
    connect_model(Eventful)
    with connection.schema_editor() as editor:
        (install if installs else remove)(Capture.of(Eventful), editor)
    empty()
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {CapturedWrite._meta.db_table}, {Eventful._meta.db_table}")
        cursor.execute("CHECKPOINT")


MEASUREMENTS = {"reconcile": reconcile, "due": due, "waits": waits, "doorbells": doorbells, "capture": capture}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
