"""How long ``automation plan --check`` takes with a million live rows of each kind, and how much memory. On PostgreSQL.

    python bench/deployment.py [--rows 1000000] [--history 1000000] [--names 10000] [--json FILE]

Live are ``--rows`` runs, events, agents and callback executions, half as many waits, and as many pending executions of
agents; beside them are ``--history`` finished runs and events. Of the runs ``--names`` have each a name of its own,
which the code does not declare. The dates of the events lie within 60 days, and a subscriber with an offset is new, so
the events near it are looked at one by one. The command runs three times in a process of its own, with ``--json``; the
figures are its median duration, its greatest memory (beyond that of a process that has only loaded Django), and the
slowest statement.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.rows import insert_from  # noqa: E402
from bench.run import database  # noqa: E402

Figures = dict[str, float]
TIMES = 3
DATE = "now() + interval '60 days' * (n::float / {rows} - 0.5)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--history", type=int, default=1_000_000)
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=("check", "load"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.console_settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    if options.child:
        child(options.child)
        return
    with database():
        print(f"{options.rows:,} rows of each kind ...", file=sys.stderr, flush=True)
        fill(options.rows, options.history, options.names)
        figures = measure()
    for name, value in figures.items():
        print(f"{name}: {value:,.1f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2))


def fill(rows: int, history: int, names: int) -> None:
    from bench.load.models import Note
    from django_ai.automation.agents.models import AgentRun, HandlerExecution
    from django_ai.automation.events.models import CallbackExecution, Event, active_key
    from django_ai.automation.workflows.models import Wait, WorkflowRun

    series = "generate_series(1, %s) AS n"
    date = DATE.format(rows=rows)
    insert_from(Note, series, rows, owner="n", due_at=date)
    is_over = f"n < {rows} / 2"
    insert_from(
        Event,
        series,
        rows,
        entity_type="'load.note'",
        entity_id="n::text",
        event_name="'note_due'",
        declared_as="'note_due'",
        status=f"CASE WHEN {is_over} THEN 'processed' ELSE 'pending' END",
        at=date,
        # Offsets of earlier subscribers are ahead.
        wake_at=f"CASE WHEN {is_over} THEN now() + interval '30 days' * random() ELSE {date} END",
        occurred_at=f"CASE WHEN {is_over} THEN {date} END",
        armed="true",
        timezone="'UTC'",
        planned_for="'others'",
        position="n",
    )
    set_active_keys(lambda pk: active_key("load.note", pk, "note_due"))
    insert_from(
        Event,
        series,
        history,
        entity_type="'load.note'",
        entity_id="n::text",
        event_name="'note_taken'",
        declared_as="'note_taken'",
        status="'processed'",
        occurred_at="now()",
        position="n",
    )
    insert_from(
        WorkflowRun,
        series,
        history,
        name="'one'",
        version="'1'",
        status="'completed'",
        finished_at="now() - interval '30 days' * random()",
        call_key="md5(random()::text)",
    )
    waits = "n % 2 = 0".replace("%", "%%")
    insert_from(
        WorkflowRun,
        series,
        rows,
        name=f"CASE WHEN n <= {names} THEN 'import of customer ' || n WHEN {waits} THEN 'wait for a note' "
        "ELSE 'one' END",
        version="'1'",
        status=f"CASE WHEN {waits} THEN 'suspended' ELSE 'waiting' END",
        current_step=f"CASE WHEN {waits} THEN 'listen' ELSE 'only' END",
        data="jsonb_build_object('owner', n, 'number', n)",
        wake_at=f"CASE WHEN {waits} THEN NULL ELSE now() + interval '30 days' * random() END",
        started_at="now()",
        visit="1",
        call_key="md5(random()::text)",
    )
    insert_from(
        Wait,
        "automation_workflows_workflowrun AS run WHERE run.status = 'suspended'",
        run_id="run.id",
        visit="1",
        channel="'event'",
        key="md5(run.id::text)",
        then="'listen'",
    )
    insert_from(
        AgentRun,
        series,
        rows,
        name="'keeper'",
        version="'1'",
        status="'active'",
        data="jsonb_build_object('owner', n, 'notes', 0)",
        started_at="now()",
        singleton="n::text",
        call_key="md5(random()::text)",
    )
    insert_from(
        HandlerExecution,
        series,
        rows,
        run_id="n",
        event_id="n",
        handler="'remind'",
        status="'pending'",
        due_at="now()",
        call_key="md5(random()::text)",
        unique_key="n::text",
    )
    insert_from(
        CallbackExecution,
        series,
        rows,
        event_id="n",
        callback="'bench.load.automations.read_it'",
        status="'pending'",
        wake_at="now()",
        call_key="md5(random()::text)",
        unique_key="n::text",
    )
    execute("VACUUM ANALYZE")


def set_active_keys(key_of) -> None:  # type: ignore[no-untyped-def]
    """Give each event of a note the key by which it is found; SQL has no such digest."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM load_note")
        (rows,) = cursor.fetchone()
        cursor.execute("CREATE TEMPORARY TABLE active_keys (entity_id text, key text)")
        with cursor.copy("COPY active_keys FROM STDIN") as copy:
            for pk in range(1, rows + 1):
                copy.write_row((str(pk), key_of(pk)))
        cursor.execute("ANALYZE active_keys")
        cursor.execute(
            "UPDATE automation_events_event SET active_key = key FROM active_keys "
            "WHERE automation_events_event.entity_id = active_keys.entity_id"
        )


def execute(statement: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(statement)


def measure() -> Figures:
    empty = start("load")["memory"]
    found = [start("check") for _ in range(TIMES)]
    return {
        "seconds": statistics.median(each["seconds"] for each in found),
        "memory, MB": max(each["memory"] for each in found) - empty,
        "statements": found[-1]["statements"],
        "slowest statement, s": statistics.median(each["slowest"] for each in found),
        "findings": found[-1]["findings"],
        "rows whose offset fires": found[-1]["fires"],
    }


def start(what: str) -> Figures:
    arguments = [sys.executable, str(Path(__file__)), "--child", what]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    done = subprocess.run(arguments, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    print(figures, file=sys.stderr, flush=True)
    return figures


def peak_memory() -> float:
    """Return the greatest memory that this process has held, in MB. (``getrusage`` counts that of its parent, too.)"""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def child(what: str) -> None:
    """Run the command, and print its figures as JSON."""
    import io

    import django

    django.setup()
    from datetime import timedelta

    from django.core.management import CommandError, call_command
    from django.db import connection

    from django_ai.automation import on_event

    @on_event("note_due", offset=timedelta(days=1), name="the new subscriber")
    def follow_up(event: object) -> None:
        pass

    times: list[tuple[float, str]] = []

    def timed(execute, sql, params, many, context):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            times.append((time.perf_counter() - began, sql))

    out, began = io.StringIO(), time.perf_counter()
    if what == "check":
        with connection.execute_wrapper(timed):
            try:
                call_command("automation", "plan", "--check", "--json", stdout=out)
            except CommandError as refused:
                print(refused, file=sys.stderr)
    seconds = time.perf_counter() - began
    document = json.loads(out.getvalue() or "{}")
    parts = ("parks", "versions", "fires", "vanishes")
    for took, sql in sorted(times, reverse=True)[:3]:
        print(f"{took:.2f} s: {sql[:600]}", file=sys.stderr)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "memory": peak_memory(),
                "statements": len(times),
                "slowest": max(times, default=(0.0, ""))[0],
                "findings": sum(len(document.get(part, [])) for part in parts),
                "fires": sum(each["count"] for each in document.get("fires", [])),
            }
        )
    )


if __name__ == "__main__":
    main()
