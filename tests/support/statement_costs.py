"""What one operation costs in the database, counted instead of timed: statements, rows, bytes of log.

``counted`` counts the statements and the commits of a block on any database. What the rest costs is counted where the
database tells it for one session, whatever others do on the server:

* PostgreSQL: before each statement its EXPLAIN (ANALYZE, WAL) is executed and rolled back. It tells the records and
  bytes of the write-ahead log, the rows that were read, and the tables that were read as a whole.
* MariaDB: the counters ``Handler_read_%`` of the session tell the rows that were read.
* SQLite: EXPLAIN QUERY PLAN tells the tables that are read as a whole.

``fill`` fills the tables, so that the planner has a choice, and ``least`` repeats an operation: what a database does
now and then (splitting a page, logging the image of one after a checkpoint, pruning) only ever adds. Not counted: what
a COMMIT does, such as the deferred checks of foreign keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.db import connection, transaction

from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.models import Arrival
from django_ai.automation.queues.positions import allocate
from django_ai.automation.values.digests import new_call_key
from django_ai.automation.workflows.models import Signal, StepExecution, Wait, WorkflowRun
from tests.apps.reservations.models import Effect, Ticket

NUMBER = 2000
"""How many finished rows each table gets."""
FILLED = (Event, CallbackExecution, WorkflowRun, StepExecution, Signal, Wait, Arrival, Ticket, Effect)
_NEVER = datetime(2200, 1, 1, tzinfo=UTC)
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_ARRIVALS = Arrival._meta.db_table
_EXPLAINED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


@dataclass
class Statement:
    """One statement, and what it costs.

    ``updates`` and ``hot``: rows that were updated, and those without new entries in indexes. ``scanned``: the filled
    tables that were read as a whole.
    """

    sql: str
    rows: int = 0
    records: int = 0
    size: int = 0
    updates: int = 0
    hot: int = 0
    scanned: set[str] = field(default_factory=set)


@dataclass
class Cost:
    """What a block costs."""

    commits: int = 0
    statements: list[Statement] = field(default_factory=list)

    def total(self, name: str) -> int:
        """Return the sum of one column of ``Statement``."""
        return sum(getattr(each, name) for each in self.statements)

    @property
    def scanned(self) -> set[str]:
        return set().union(*(each.scanned for each in self.statements))


def fill() -> None:
    """Insert ``NUMBER`` rows into each table of ``FILLED``, and let the planner know.

    From then on the database does not clean these tables by itself: rows in pages that were full cost more.
    """
    with transaction.atomic():
        allocate(NUMBER)
    _insert_ended(NUMBER)
    with connection.cursor() as cursor:
        for model in FILLED:
            table = connection.ops.quote_name(model._meta.db_table)
            if connection.vendor == "postgresql":
                cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
                cursor.execute(f"ANALYZE {table}")
            elif connection.vendor == "mysql":
                cursor.execute(f"ANALYZE TABLE {table}")
                cursor.fetchall()


def _insert_ended(number: int) -> None:
    """Insert ``number`` rows that have ended into each table of ``FILLED`` but the arrivals."""
    ended: dict[str, Any] = {"status": "completed", "finished_at": _LONG_AGO, "created_at": _LONG_AGO}
    event = {"event_name": "ended", "declared_as": "ended", "status": "processed", "position": 1}
    attempt = {"step": "first", "visit": 1, "attempt": 1, "finished": _LONG_AGO, "outcome": "complete"}
    keys = [new_call_key() for _ in range(number)]
    with transaction.atomic():
        Ticket.objects.bulk_create([Ticket(title=key) for key in keys])
        Effect.objects.bulk_create([Effect(name=key) for key in keys])
        events = _create([Event(**event, entity_id=key, entity_type="app.ticket") for key in keys])
        _create([CallbackExecution(**ended, event=of, unique_key=key) for of, key in zip(events, keys, strict=True)])
        runs = _create([WorkflowRun(**ended, name="ended", origin_key=key) for key in keys])
        _create([StepExecution(**attempt, run=run) for run in runs])
        _create([Wait(visit=1, run=run, key=key) for run, key in zip(runs, keys, strict=True)])
        _create([Signal(name="ended", position=1) for _ in keys])


def _create(rows: Sequence[Any]) -> list[Any]:
    """Insert ``rows``. None is due, and one in two will never be."""
    for row in rows[::2]:
        row.wake_at = _NEVER
    return list(type(rows[0])._base_manager.bulk_create(rows, batch_size=500))


def least(operation: Callable[[], Any], prepare: Callable[[], Any], times: int = 2, among: int = 0) -> Cost:
    """Return what each statement of ``operation`` costs at least, in ``times`` executions, each after ``prepare``.

    The first is not counted, because it fills caches. Tables that are read as a whole at least once are in ``scanned``.
    ``among``: how many other rows are inserted before each execution, so that it finds pages filled to another degree.
    """
    costs = []
    for number in range(times):
        if among:
            _insert_ended(among)
        prepare()
        with counted() as cost:
            operation()
        if number:
            costs.append(cost)
    fewest = min(len(cost.statements) for cost in costs)
    same = [cost.statements for cost in costs if len(cost.statements) == fewest]
    return Cost(min(cost.commits for cost in costs), [_least(alike) for alike in zip(*same, strict=True)])


def _least(alike: Sequence[Statement]) -> Statement:
    """Return what a statement costs where it finds room in each page and index."""
    found = Statement(alike[0].sql, scanned=set().union(*(each.scanned for each in alike)))
    for name in ("rows", "records", "size", "updates"):
        setattr(found, name, min(getattr(each, name) for each in alike))
    found.hot = max(each.hot for each in alike)  # an update whose page is full is not HOT
    return found


@contextmanager
def counted() -> Iterator[Cost]:
    """Count what the block costs on the connection of this thread."""
    cost = Cost()
    commit, failures = connection._commit, list[Exception]()
    explain = {"postgresql": _explain_on_postgresql, "sqlite": _explain_on_sqlite}.get(connection.vendor)

    def count(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        verb = str(sql).split(None, 1)[0].upper()
        if verb == "BEGIN":  # SQLite
            return execute(sql, params, many, context)
        statement = Statement(str(sql))
        cost.statements.append(statement)
        cost.commits += verb != "SELECT" and connection.get_autocommit()
        if explain is not None and verb in _EXPLAINED and not many:
            try:
                explain(statement, params)
            except Exception as error:  # Django logs an error in a hook of a commit, and continues
                failures.append(error)
                raise
        before = _handler_reads()
        result = execute(sql, params, many, context)
        statement.rows += _handler_reads() - before
        return result

    def counting_commit() -> None:
        cost.commits += connection.vendor != "postgresql" or bool(connection.connection.pgconn.transaction_status)
        commit()

    connection.ensure_connection()
    connection._commit = counting_commit
    try:
        with connection.execute_wrapper(count):
            yield cost
    finally:
        del connection._commit
    assert not failures, failures


def _handler_reads() -> int:
    if connection.vendor != "mysql":
        return 0
    with connection.connection.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(value) for _, value in cursor.fetchall())


def _explain_on_sqlite(statement: Statement, params: Any) -> None:
    with closing(connection.create_cursor()) as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {statement.sql}", params or ())
        details = [row[3] for row in cursor.fetchall()]
    names = {model._meta.db_table for model in FILLED}
    statement.scanned |= {name for name in names for each in details if re.fullmatch(rf"SCAN {name}( AS \w+)?", each)}


def _explain_on_postgresql(statement: Statement, params: Any) -> None:
    """Execute the statement and undo it. What it reads and writes is then done again."""
    raw = connection.connection
    begin, end = "BEGIN", "ROLLBACK"
    if not raw.autocommit or raw.pgconn.transaction_status:
        begin, end = "SAVEPOINT explained", "ROLLBACK TO SAVEPOINT explained; RELEASE SAVEPOINT explained"
    with connection.create_cursor() as cursor:
        cursor.execute(begin)
        try:
            updates, hot = _updates(cursor)
            allocated = _allocated(cursor)
            cursor.execute(f"EXPLAIN (ANALYZE, WAL, TIMING OFF, FORMAT JSON) {statement.sql}", params)
            (found,) = cursor.fetchone()
            more_updates, more_hot = _updates(cursor)
            cursor.execute(f"SELECT setval(pg_get_serial_sequence('{_ARRIVALS}', 'id'), %s)", [allocated])
        finally:
            cursor.execute(end)
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    nodes = list(_nodes(plan))
    statement.records += _total(nodes, "WAL Records")
    statement.size += _total(nodes, "WAL Bytes")
    statement.updates += more_updates - updates
    statement.hot += more_hot - hot
    names = {model._meta.db_table for model in FILLED}
    for node in nodes:
        if node["Node Type"].endswith("Scan") and node.get("Relation Name") in names:
            removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            statement.rows += round((node["Actual Rows"] + removed) * node["Actual Loops"])
            if node["Node Type"] == "Seq Scan" and node["Actual Loops"]:
                statement.scanned.add(node["Relation Name"])


def _total(nodes: Sequence[dict[str, Any]], name: str) -> int:
    """Return the sum of what each node wrote itself.

    A node counts what its children write, too. A CTE is executed by the node that scans it, which then counts it, or
    after the whole plan, which then does not.
    """
    total = 0
    for node in nodes:
        if node["Node Type"] != "CTE Scan":
            children = [each for each in node.get("Plans", ()) if not each.get("Subplan Name", "").startswith("CTE ")]
            total += node.get(name, 0) - sum(each.get(name, 0) for each in children)
    return total


def _updates(cursor: Any) -> tuple[int, int]:
    cursor.execute("SELECT coalesce(sum(n_tup_upd), 0), coalesce(sum(n_tup_hot_upd), 0) FROM pg_stat_xact_user_tables")
    updates, hot = cursor.fetchone()
    return int(updates), int(hot)


def _allocated(cursor: Any) -> int:
    """Return the last position. What is undone leaves a gap in them, which the engine would look into."""
    cursor.execute(f"SELECT pg_sequence_last_value(pg_get_serial_sequence('{_ARRIVALS}', 'id'))")
    return int(cursor.fetchone()[0])


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)
