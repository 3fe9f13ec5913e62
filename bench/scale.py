"""Whether routing stays fast with many agents, claims and waiting runs. On PostgreSQL.

    python bench/scale.py [--sizes 100,10000,1000000] [--probes 200] [--waiters 10000] [--json FILE]

For each size, that number of agents (each with two routes), claims and waiting runs is copied into the tables, each
with its own owner. Then notes of random owners are saved one by one. Measured are the ``save()`` with its commit, the
event's occurrence and its routing, in the saving process, and the number of queries; then the worker's part, which
evaluates the claim and runs the handler. The last lines measure one signal that wakes many runs, and a month in the
time machine. The figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.run import database  # noqa: E402

Figures = dict[str, float]
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sizes", default="100,10000,1000000")
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--waiters", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    table: dict[str, dict[str, float]] = {}
    with database():
        for size in map(int, options.sizes.split(",")):
            for name, value in measure(size, options.probes).items():
                table.setdefault(name, {})[f"{size:,}"] = value
        figures = many_waiters(options.waiters) | month()
    show(table, figures)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"by size": table, "figures": figures}, indent=2))


def measure(size: int, probes: int) -> Figures:
    found: Figures = {}
    for name, fill in (("an agent", agents), ("an agent with a claim", claims), ("a waiting run", waits)):
        print(f"{size:,}: {name} ...", file=sys.stderr, flush=True)
        empty()
        fill(size)
        analyze()
        found |= probe(name, size, probes)
    return found


def empty() -> None:
    from django.apps import apps
    from django.db import connection

    labels = ("automation_agents", "automation_workflows", "automation_events", "load")
    tables = [model._meta.db_table for label in labels for model in apps.get_app_config(label).get_models()]
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")


def analyze() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def copy(model: Any, rows: Iterable[Any]) -> None:
    """Copy unsaved instances into their table with COPY: a million of them takes seconds."""
    from django.db import connection, models

    fields = list(model._meta.concrete_fields)
    columns = ", ".join(f'"{field.column}"' for field in fields)
    with connection.cursor() as cursor, cursor.copy(f"COPY {model._meta.db_table} ({columns}) FROM STDIN") as stream:
        for row in rows:
            values = (getattr(row, field.attname) for field in fields)
            stream.write_row(
                [
                    json.dumps(value) if isinstance(field, models.JSONField) and value is not None else value
                    for field, value in zip(fields, values, strict=True)
                ]
            )


def agents(size: int) -> None:
    """Create ``size`` agents, each with its own owner."""
    from bench.load.automations import Versioned
    from django_ai.automation.agents.models import AgentRoute, AgentRun
    from django_ai.automation.agents.routing import fingerprint, keys_of

    definition = Versioned.__agent__  # type: ignore[attr-defined]
    routing = fingerprint(definition)

    def run(number: int) -> AgentRun:
        return AgentRun(
            pk=number,
            name=definition.name,
            status="active",
            data={"owner": number, "notes": 0},
            created_at=STARTED,
            started_at=STARTED,
            routing=routing,
        )

    def routes() -> Iterator[AgentRoute]:
        pk = 0
        for number in range(1, size + 1):
            row = run(number)
            for key in keys_of(definition, row, Versioned.Context(owner=number)):
                pk += 1
                yield AgentRoute(pk=pk, run_id=number, key=key)

    copy(AgentRun, (run(number) for number in range(1, size + 1)))
    copy(AgentRoute, routes())


def claims(size: int) -> None:
    """Create ``size`` agents, each of which claims the notes of its owner."""
    from django_ai.automation.events.claim_lookup import CLAIMS
    from django_ai.automation.events.claims import _claim
    from django_ai.automation.events.models import EventClaim, RoutingShape

    agents(size)
    RoutingShape.ensure(CLAIMS, "note_taken", "owner")

    def claim(number: int) -> EventClaim:
        made = _claim("note_taken", {"owner": number}, "bench")
        made.pk, made.owner_kind, made.owner_id, made.held_at = number, "agent", number, STARTED
        return made

    copy(EventClaim, (claim(number) for number in range(1, size + 1)))


def waits(size: int) -> None:
    """Create ``size`` runs that wait, each for a note of its own owner."""
    from bench.load.automations import WaitForNote
    from django_ai.automation.events.declarations import sources_of
    from django_ai.automation.events.matching.match import address
    from django_ai.automation.events.models import RoutingShape
    from django_ai.automation.workflows.models import Wait, WorkflowRun
    from django_ai.automation.workflows.wait_keys import WAITS

    definition, sources = WaitForNote.__workflow__, sources_of("note_taken")  # type: ignore[attr-defined]
    RoutingShape.ensure(WAITS, "note_taken", "owner")

    def wait(number: int) -> Wait:
        (key,) = address("note_taken", {"owner": number}, sources).keys
        return waits_for(number, "event:note_taken", key, {"owner": number})

    copy(WorkflowRun, (waiting(definition.name, number) for number in range(1, size + 1)))
    copy(Wait, (wait(number) for number in range(1, size + 1)))


def waits_for(number: int, channel: str, key: str, match: dict[str, Any] | None) -> Any:
    from django_ai.automation.workflows.models import Wait

    return Wait(
        pk=number, run_id=number, visit=1, channel=channel, key=key, match=match, then="listen", on_timeout="listen"
    )


def waiting(name: str, number: int) -> Any:
    from django_ai.automation.workflows.models import WorkflowRun

    return WorkflowRun(
        pk=number,
        name=name,
        status="suspended",
        current_step="listen",
        data={"owner": number},
        created_at=STARTED,
        started_at=STARTED,
    )


def probe(name: str, size: int, probes: int) -> Figures:
    """Save notes of random owners; return the durations of the save and of the worker's part."""
    from django.db import connection

    from bench.load.models import Note
    from django_ai.automation.queues.drain import drain

    generator = random.Random(1)
    routed, queries, worked = [], [], []
    for number in range(probes + 20):
        counted = 0

        def count(execute: Any, *rest: Any) -> Any:
            nonlocal counted
            counted += 1
            return execute(*rest)

        owner = generator.randint(1, size)
        with connection.execute_wrapper(count):
            took = timed(lambda owner=owner: Note.objects.create(owner=owner))  # type: ignore[misc]
        worker_took = timed(drain)
        if number >= 20:  # the first 20 fill the caches
            routed.append(took)
            queries.append(counted)
            worked.append(worker_took)
    check(name, probes + 20)
    return {
        f"route a note to {name}, ms": statistics.median(routed),
        f"route a note to {name}, queries": statistics.median(queries),
        f"a worker's part for {name}, ms": statistics.median(worked),
    }


def check(name: str, expected: int) -> None:
    """Assert that the measured notes were handled."""
    from django_ai.automation.agents.models import HandlerExecution
    from django_ai.automation.workflows.models import StepExecution

    done = HandlerExecution.objects.filter(status="completed").count()
    if name == "a waiting run":
        done = StepExecution.objects.filter(wake_reason="event").count()
        assert done > 0.5 * min(expected, 100), f"{done} runs were woken"
    else:
        assert done == expected, f"{done} handlers ran for {expected} notes"


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def many_waiters(number: int) -> Figures:
    """Wake many runs that wait for one signal, and run them."""
    from django.utils import timezone

    from bench.load.automations import WaitForAll
    from django_ai.automation import engine
    from django_ai.automation.queues.claim import claim
    from django_ai.automation.queues.drain import drain
    from django_ai.automation.workflows.delivery import deliver
    from django_ai.automation.workflows.models import Signal, Wait, WorkflowRun
    from django_ai.automation.workflows.wait_keys import channel_key

    print(f"{number:,} waiters of one signal ...", file=sys.stderr, flush=True)
    empty()
    name = WaitForAll.__workflow__.name  # type: ignore[attr-defined]
    key = channel_key("all")
    copy(WorkflowRun, (waiting(name, each) for each in range(1, number + 1)))
    copy(Wait, (waits_for(each, "all", key, None) for each in range(1, number + 1)))
    analyze()
    engine.signal("all")
    (signal,) = claim(Signal, timezone.now(), 1)
    woken = timed(lambda: deliver(signal, timezone.now))
    assert WorkflowRun.objects.filter(status="running").count() == number
    ran = timed(drain)
    assert WorkflowRun.objects.filter(status="completed").count() == number
    return {
        f"wake {number:,} waiters of one signal, ms": woken,
        f"run the {number:,} that were woken, in one process, ms": ran,
    }


def month() -> Figures:
    """Run a month in the time machine: a note and a reminder every day, and a run that sleeps a day thirty times."""
    from bench.load.models import Note
    from django_ai.automation import engine
    from django_ai.automation.testing import time_machine

    print("a month in the time machine ...", file=sys.stderr, flush=True)
    found = []
    for _ in range(5):
        empty()
        with time_machine(STARTED) as machine:
            started = time.perf_counter()
            engine.start("month", days=30)
            for day in range(30):
                Note.objects.create(owner=1, due_at=machine.now + timedelta(days=day, hours=8))
            machine.advance(days=31)
            found.append((time.perf_counter() - started) * 1000)
            (run,) = machine.runs_of("month")
            assert run.status == "completed", run.error
            machine.assert_occurred("note_due", times=30)
    return {"a month in the time machine (60 timers), ms": statistics.median(found)}


def show(table: dict[str, dict[str, float]], figures: Figures) -> None:
    width = max(map(len, [*table, *figures]))
    sizes = list(next(iter(table.values())))
    print(f"\n{'':<{width}}  " + "  ".join(f"{size:>10}" for size in sizes))
    for name, values in table.items():
        print(f"{name:<{width}}  " + "  ".join(f"{values[size]:>10,.1f}" for size in sizes))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>10,.1f}")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
