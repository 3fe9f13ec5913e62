"""Whether the pages of the admin stay fast with a million runs and a million events. On PostgreSQL.

    python bench/console.py [--runs 1000000] [--events 1000000] [--executions 50000] [--names 100000]
                            [--limit-ms 300] [--limit-queries 30] [--json FILE]

The tables are filled, and a superuser requests each list, each list filtered and searched, the page of a typical and of
an extreme row, and each page of the console: an agent with ``--executions`` executions, and a run with a long history,
are among them. The figures are the median of five requests after one that is not counted, and the number of queries.
With ``--names``, runs and events with that many names more are inserted, as projects have whose names are templates,
and all is measured again. Exits 1 if a page exceeds a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.rows import insert_from  # noqa: E402
from bench.run import database  # noqa: E402

Page = tuple[str, str]
Figures = dict[str, tuple[float, int, int]]
LONG_HISTORY = 5_000
MONTH = "now() - interval '30 days' * random()"
EVENT_NAMES = ("eventful_ready", "eventful_due", "note_taken", "note_due")
TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--executions", type=int, default=50_000)
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--limit-ms", type=float, default=300)
    parser.add_argument("--limit-queries", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.console_settings"
    os.environ["BENCH_RUNTIME"] = "silent"
    with database():
        print(f"{options.runs:,} runs, {options.events:,} events ...", file=sys.stderr, flush=True)
        fill(options.runs, options.events, options.executions)
        found = {"": measure()}
        if options.names:
            print(f"{options.names:,} names more ...", file=sys.stderr, flush=True)
            fill_names(options.names)
            found[f"with {options.names:,} names more"] = measure()
    is_over = [show(title, each, options.limit_ms, options.limit_queries) for title, each in sorted(found.items())]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2))
    sys.exit(any(is_over))


def fill(runs: int, events: int, executions: int) -> None:
    from django_ai.automation.agents.models import AgentRun
    from django_ai.automation.events.models import CallbackExecution, Event, EventClaim
    from django_ai.automation.workflows.models import Signal, StepExecution, Wait, WorkflowRun

    some_time = f"(SELECT at FROM (SELECT {MONTH} AS at WHERE n > 0) AS moment)"
    event_name = f"(ARRAY{list(EVENT_NAMES)})[1 + n %% {len(EVENT_NAMES)}]"
    entity: dict[str, str] = {"entity_type": "'load.note'", "entity_id": "(1 + n / 4)::text"}
    insert_from(
        Event,
        "generate_series(1, %s) AS n",
        events,
        **entity,
        event_name=event_name,
        declared_as=event_name,
        status="CASE n %% 20 WHEN 0 THEN 'pending' ELSE 'processed' END",
        at="now() + interval '60 days' * (random() - CASE n %% 20 WHEN 0 THEN 0 ELSE 1 END)",
        wake_at="CASE n %% 20 WHEN 0 THEN now() + interval '60 days' * (0.001 + random()) END",
        occurred_at=f"CASE n %% 20 WHEN 0 THEN NULL ELSE {MONTH} END",
        event_created_at="now() - interval '30 days'",
        position="n",
        active_key="n::text",
    )
    insert_from(
        CallbackExecution,
        "generate_series(1, %s) AS n",
        int(events * 0.95),
        event_id="n",
        callback="'react'",
        status="CASE WHEN n %% 50 = 0 THEN 'failed' ELSE 'completed' END",
        created_at=MONTH,
        started_at=MONTH,
        finished_at=MONTH,
        error="CASE WHEN n %% 50 = 0 THEN 'ValueError: the value ' || n %% 7 || ' is wrong' ELSE '' END",
        call_key="md5(random()::text)",
        unique_key="n::text",
    )
    # 4 of 5 runs have completed, 6 % failed, 1 % are parked, 6 % wait, and 7 % sleep.
    kind = "n %% 100"
    status = (
        f"CASE WHEN {kind} < 80 THEN 'completed' WHEN {kind} < 86 THEN 'failed' WHEN {kind} < 87 THEN 'parked' "
        f"ELSE 'suspended' END"
    )
    insert_from(
        WorkflowRun,
        "generate_series(1, %s) AS n",
        runs,
        **entity,
        name="(ARRAY['one', 'five', 'timer', 'reaction', 'wait for a note'])[1 + n %% 5]",
        version="'1'",
        status=status,
        current_step="'listen'",
        data="""jsonb_build_object('owner', n, 'note', 'some text of a common length')""",
        error=(
            f"CASE WHEN {kind} BETWEEN 80 AND 86 THEN 'Traceback (most recent call last):' || chr(10) || "
            "repeat('  File \"project/steps.py\", line 3, in charge' || chr(10), 20) || "
            "'ValueError: the value ' || n %% 7 || ' is wrong' ELSE '' END"
        ),
        event_id=f"CASE WHEN n <= {events} THEN n END",
        created_at=f"now() - interval '30 days' * (1 - n::float / {runs})",
        started_at=some_time,
        finished_at=f"CASE WHEN {kind} < 86 THEN {MONTH} END",
        parked_at=f"CASE WHEN {kind} = 86 THEN {MONTH} END",
        seq="3",
        wake_at=f"CASE WHEN {kind} >= 93 THEN now() + interval '30 days' * (0.001 + random()) END",
        call_key="md5(random()::text)",
    )
    insert_from(
        StepExecution,
        "generate_series(1, %s) AS n, generate_series(1, 2) AS visit",
        runs,
        run_id="n",
        step="'listen'",
        visit="visit",
        attempt="1",
        started=MONTH,
        finished="now()",
        outcome="'goto'",
    )
    insert_from(
        StepExecution,
        "generate_series(3, %s) AS n",
        LONG_HISTORY,
        run_id="1",
        step="'listen'",
        visit="n",
        attempt="1",
        started="now()",
        finished="now()",
        outcome="'goto'",
    )
    insert_from(
        Wait,
        "generate_series(1, %s) AS n WHERE n %% 100 BETWEEN 87 AND 92",
        runs,
        run_id="n",
        visit="1",
        channel="'signal:approved'",
        key="md5(n::text)",
        then="'listen'",
        on_timeout="'listen'",
    )
    insert_from(
        Signal,
        "generate_series(1, %s) AS n",
        runs // 10,
        run_id="CASE WHEN n %% 2 = 0 THEN n END",
        name="(ARRAY['approved', 'paid'])[1 + n %% 2]",
        sent_at=MONTH,
        delivered_at="CASE WHEN n %% 10 > 0 THEN now() END",
        consumed_at="CASE WHEN n %% 10 > 3 THEN now() END",
    )
    insert_from(
        AgentRun,
        "generate_series(1, %s) AS n",
        max(runs // 100, 10),
        **entity,
        name="'keeper'",
        status="CASE n %% 10 WHEN 0 THEN 'active' ELSE 'completed' END",
        data="""jsonb_build_object('owner', n, 'notes', 0)""",
        created_at=MONTH,
        started_at=MONTH,
        finished_at=f"CASE n %% 10 WHEN 0 THEN NULL ELSE {MONTH} END",
        singleton="n::text",
        call_key="md5(random()::text)",
    )
    fill_executions(executions)
    insert_from(
        EventClaim,
        "generate_series(1, %s) AS n",
        max(runs // 500, 10),
        event_name="'note_taken'",
        key="md5(n::text)",
        unique_key="n::text",
        match="""jsonb_build_object('owner', n)""",
        owner_kind="'agent'",
        owner_id="n",
        held_at=MONTH,
    )
    vacuum()


def fill_executions(number: int) -> None:
    """Give agent 10 ``number`` executions, and others 30 each."""
    from django_ai.automation.agents.models import HandlerExecution

    for source, run in (("generate_series(1, %s) AS n", "10"), ("generate_series(1, 300000) AS n", "11 + n / 30")):
        insert_from(
            HandlerExecution,
            f"{source} WHERE {run} <= (SELECT max(id) FROM automation_agents_agentrun)",
            *([number] if "%s" in source else []),
            run_id=run,
            event_id="n",
            handler="'keep'",
            status="CASE WHEN n %% 40 = 0 THEN 'failed' WHEN n %% 50 = 0 THEN 'skipped' ELSE 'completed' END",
            due_at=MONTH,
            created_at=MONTH,
            started_at=MONTH,
            finished_at=MONTH,
            error="CASE WHEN n %% 40 = 0 THEN 'ValueError: wrong' ELSE '' END",
            call_key="md5(random()::text)",
            unique_key=f"{run} || ':' || n",
        )


def fill_names(number: int) -> None:
    """Insert runs and events whose names differ, as templated names do."""
    from django_ai.automation.events.models import Event
    from django_ai.automation.workflows.models import WorkflowRun

    insert_from(
        Event,
        "generate_series(1, %s) AS n",
        number,
        entity_type="'load.note'",
        entity_id="n::text",
        event_name="'task ' || n || ' completed'",
        declared_as="'task {id} completed'",
        status="'processed'",
        occurred_at=MONTH,
        event_created_at=MONTH,
        active_key="'name ' || n",
    )
    insert_from(
        WorkflowRun,
        "generate_series(1, %s) AS n",
        number,
        name="'import of customer ' || n",
        version="'1'",
        status="'completed'",
        created_at=MONTH,
        started_at=MONTH,
        finished_at=MONTH,
        call_key="md5(random()::text)",
    )
    vacuum()


def vacuum() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def pages() -> Iterator[Page]:
    """Yield the title and the address of each page that is measured."""
    from django.apps import apps
    from django.contrib import admin
    from django.db.models import Max
    from django.urls import reverse

    from django_ai.automation.app_names import AUTOMATION_APPS

    yield "index", reverse("admin:index")
    for config in apps.get_app_configs():
        if config.name not in AUTOMATION_APPS:
            continue
        for model in config.get_models():
            if not admin.site.is_registered(model):
                continue
            title = f"{config.label.removeprefix('automation_')}.{model._meta.model_name}"
            name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
            url = reverse(f"{name}_changelist")
            yield f"{title} list", url
            if not model._meta.managed:  # a page, not a list of rows
                continue
            for query in queries(model):
                yield f"{title} list ?{query}", f"{url}?{query}"
            first, last = 10, model._default_manager.aggregate(last=Max("pk"))["last"]
            for pk in sorted({1, first, last} - {None}):
                if model._default_manager.filter(pk=pk).exists():
                    yield f"{title} {'last' if pk == last else pk}", reverse(f"{name}_change", args=[pk])
    yield from console_pages()


def queries(model: Any) -> Iterator[str]:
    """Yield query strings of a list: by state, search of a name, of an entity, and of what does not exist."""
    names = {field.name for field in model._meta.get_fields()}
    if "status" in names:
        for status in ("failed", "completed", "parked", "pending", "suspended"):
            if status in dict(model._meta.get_field("status").choices):
                yield f"status__exact={status}"
    for text in ("one", "4711", "load.note 4711", "nothing-like-this"):
        yield f"q={text.replace(' ', '+')}"


def console_pages() -> Iterator[Page]:
    """Yield the pages that have an address without a row."""
    from django.urls import NoReverseMatch, get_resolver, reverse

    for name in sorted(key for key in admin_names(get_resolver()) if "automation_console" in key):
        try:
            url = reverse(f"admin:{name}")
        except NoReverseMatch:  # needs a row
            continue
        if not name.endswith(("_changelist", "_add")):
            yield f"page {name.removeprefix('automation_console_')}", url


def admin_names(resolver: Any) -> Iterator[str]:
    for each in resolver.url_patterns:
        if hasattr(each, "url_patterns"):
            yield from admin_names(each)
        elif each.name:
            yield each.name


def measure() -> Figures:
    """Return the median milliseconds, the number of queries, and the size in bytes of each page."""
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    user, _ = get_user_model().objects.get_or_create(
        username="operator", defaults={"is_superuser": True, "is_staff": True}
    )
    client = Client()
    client.force_login(user)
    found = {}
    for title, url in pages():
        times = []
        for number in range(TIMES + 1):
            began = time.perf_counter()
            with CaptureQueriesContext(connection) as captured:
                response = client.get(url)
            if number:
                times.append((time.perf_counter() - began) * 1000)
            if response.status_code != 200:
                raise SystemExit(f"{url} answered {response.status_code}.")
            if number == 1 and times[0] > 5_000:
                break
        found[title] = (statistics.median(times), len(captured), len(response.content))
        print(f"{title}: {found[title][0]:.0f} ms", file=sys.stderr, flush=True)
    return found


def show(title: str, figures: Figures, most_ms: float, most_queries: int) -> bool:
    """Print a table, and return whether a page exceeds a limit."""
    width = max(map(len, figures))
    print(f"\n{title or 'page':<{width}}  {'ms':>7}  queries       kB")
    is_over = False
    for name, (milliseconds, queries, size) in figures.items():
        over = milliseconds > most_ms or queries > most_queries
        is_over |= over
        print(f"{name:<{width}}  {milliseconds:>7,.0f}  {queries:>7}  {size / 1000:>7,.0f}{'  OVER' if over else ''}")
    return is_over


if __name__ == "__main__":
    main()
