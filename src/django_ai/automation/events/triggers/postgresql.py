"""Triggers on PostgreSQL: one for each kind of statement, which gets all its rows at once.

The function runs with the rights of its owner (SECURITY DEFINER), so that other roles which may write to the table need
no rights on the outbox, and names the outbox with its schema, so that the search path of the writer does not matter,
and neither do the session's formats. It knows no column but the primary key: a migration that adds, removes or renames
another one does not matter to it.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ...db.notifications import CHANNEL
from ..models import CapturedWrite
from . import heard
from .rows import MAX_KEY, PREFIX, Capture, Column, outbox_columns, outbox_table

OPERATIONS = {
    "insert": "NEW TABLE AS new_rows",
    "update": "OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "OLD TABLE AS old_rows",
}


def location_of(connection: BaseDatabaseWrapper, table: str) -> tuple[str, str] | None:
    """Return the schema and the name of ``table``; None: there is no such table in the search path."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT space.nspname, found.relname FROM pg_catalog.pg_class AS found "
            "JOIN pg_catalog.pg_namespace AS space ON space.oid = found.relnamespace "
            "WHERE found.oid = to_regclass(%s) AND found.relkind IN ('r', 'p')",
            [connection.ops.quote_name(table)],
        )
        found: tuple[str, str] | None = cursor.fetchone()
    return found


def qualified(connection: BaseDatabaseWrapper, table: str) -> str:
    """Return the quoted name of ``table`` with its schema. Without it if there is no such table yet (sqlmigrate)."""
    location, quote = location_of(connection, table), connection.ops.quote_name
    return quote(table) if location is None else f"{quote(location[0])}.{quote(location[1])}"


def function_name(capture: Capture, connection: BaseDatabaseWrapper) -> str:
    """Return the quoted name of the function, which is in the schema of the table."""
    location, quote = location_of(connection, capture.table), connection.ops.quote_name
    return quote(capture.name) if location is None else f"{quote(location[0])}.{quote(capture.name)}"


def function_sql(capture: Capture, connection: BaseDatabaseWrapper) -> str:
    """Return the statement that creates the function, or replaces it."""
    return (
        f"CREATE OR REPLACE FUNCTION {function_name(capture, connection)}() RETURNS trigger LANGUAGE plpgsql "
        # Plans are kept by the session. One that was made for a single row must not pair a million rows in a loop.
        f"SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off "
        f"SET intervalstyle = postgres SET bytea_output = hex SET extra_float_digits = 1 "
        f"AS $automation${body(capture, connection)}$automation$"
    )


def install_sql(capture: Capture, connection: BaseDatabaseWrapper) -> list[str]:
    """Return the statements that install the triggers, or replace them."""
    quote, function = connection.ops.quote_name, function_name(capture, connection)
    table = qualified(connection, capture.table)
    statements = [function_sql(capture, connection)]
    for operation, tables in OPERATIONS.items():
        name = quote(f"{PREFIX}{operation}")
        statements += [
            f"DROP TRIGGER IF EXISTS {name} ON {table}",
            f"CREATE TRIGGER {name} AFTER {operation.upper()} ON {table} REFERENCING {tables} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
        ]
    return statements


def remove_sql(capture: Capture, connection: BaseDatabaseWrapper) -> list[str]:
    quote, table = connection.ops.quote_name, qualified(connection, capture.table)
    return [
        *(f"DROP TRIGGER IF EXISTS {quote(f'{PREFIX}{operation}')} ON {table}" for operation in OPERATIONS),
        f"DROP FUNCTION IF EXISTS {function_name(capture, connection)}()",
    ]


def body(capture: Capture, connection: BaseDatabaseWrapper) -> str:
    """Return the body of the function. All columns have the name of their table before them: a captured table may have
    columns with the names of the variables."""
    capture = capture.with_columns(columns_of(connection, capture.table))
    outbox = columns_of(connection, outbox_table())
    column = connection.ops.quote_name(capture.key)
    new_key, old_key = (f"left({row}.{column}::text, {MAX_KEY})" for row in ("n", "o"))
    as_text = "(SELECT jsonb_object_agg(was.key, was.value) FROM jsonb_each_text(to_jsonb({row})) AS was)"
    deleted = as_text.format(row="o")
    changed = (
        "(SELECT coalesce(jsonb_object_agg(was.key, was.value), '{}') FROM jsonb_each_text(pair.old) AS was "
        "WHERE was.value IS DISTINCT FROM pair.new ->> was.key)"
    )
    is_other = f"WHERE NOT EXISTS (SELECT FROM {{other}} WHERE o.{column}::text = n.{column}::text)"
    pairs = (
        f"(SELECT {new_key} AS key, to_jsonb(o) AS old, to_jsonb(n) AS new FROM new_rows AS n "
        f"JOIN old_rows AS o ON o.{column}::text = n.{column}::text OFFSET 0) AS pair"
    )

    def insert(operation: str, key: str, old: str, source: str) -> str:
        extra = {
            "wake_at": "moment",
            "written_at": "moment",
            "transaction": "xact",
            "caused_by": "cause",
            "depth": "deep",
        }
        columns = outbox_columns(capture, connection, outbox, operation, key, old, extra)
        return (
            f"INSERT INTO {qualified(connection, outbox_table())} ({', '.join(columns)}) "
            f"SELECT {', '.join(columns.values())} FROM {source};"
        )

    return f"""
#variable_conflict use_variable
{capture.comment}
DECLARE
    moment timestamptz := clock_timestamp();
    remark text := right(current_query(), {heard.LONGEST_COMMENT});
    heard text[] := regexp_match(remark, '{heard.PATTERN}');
    xact bigint := coalesce(heard[1], pg_current_xact_id()::text)::bigint;
    deep smallint := coalesce(heard[2], '0')::smallint;
    cause text := coalesce(heard[3], '');
    paired bigint;
BEGIN
    IF heard IS NULL THEN
        IF rtrim(remark) LIKE '%{heard.UNCAPTURED}' THEN
            RETURN NULL;
        END IF;
        xact := -xact;
    END IF;
    IF TG_OP = 'INSERT' THEN
        {insert("insert", new_key, "NULL", "new_rows AS n")}
    ELSIF TG_OP = 'DELETE' THEN
        {insert("delete", old_key, deleted, "old_rows AS o")}
    ELSE
        {insert("update", "pair.key", changed, pairs)}
        GET DIAGNOSTICS paired = ROW_COUNT;
        IF paired < (SELECT count(*) FROM new_rows) THEN
            {insert("delete", old_key, deleted, f"old_rows AS o {is_other.format(other='new_rows AS n')}")}
            {insert("insert", new_key, "NULL", f"new_rows AS n {is_other.format(other='old_rows AS o')}")}
        END IF;
    END IF;
    IF FOUND AND heard IS NULL THEN
        PERFORM pg_notify('{CHANNEL}', '{CapturedWrite.kind}');
    END IF;
    RETURN NULL;
END
"""


def installed(connection: BaseDatabaseWrapper, table: str) -> dict[str, str] | None:
    """Return the triggers on ``table``, each with the body of its function. None: there is no such table.

    A trigger that is disabled has no body.
    """
    if location_of(connection, table) is None:
        return None
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT found.tgname, CASE WHEN found.tgenabled IN ('O', 'A') THEN code.prosrc ELSE '' END "
            "FROM pg_catalog.pg_trigger AS found JOIN pg_catalog.pg_proc AS code ON code.oid = found.tgfoid "
            "WHERE found.tgrelid = to_regclass(%s) AND found.tgname LIKE %s",
            [connection.ops.quote_name(table), f"{PREFIX}%"],
        )
        return dict(cursor.fetchall())


def bodies(connection: BaseDatabaseWrapper) -> list[tuple[str, str]]:
    """Return the table and the body of each trigger of captures, of tables in the search path."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT found.relname, code.prosrc FROM pg_catalog.pg_trigger AS trigger "
            "JOIN pg_catalog.pg_class AS found ON found.oid = trigger.tgrelid "
            "JOIN pg_catalog.pg_proc AS code ON code.oid = trigger.tgfoid "
            "WHERE trigger.tgname LIKE %s AND pg_catalog.pg_table_is_visible(found.oid)",
            [f"{PREFIX}%"],
        )
        return list(cursor.fetchall())


def columns_of(connection: BaseDatabaseWrapper, table: str) -> list[Column]:
    """Return the columns of ``table``; none: there is no such table."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT found.attname, EXISTS (SELECT FROM pg_catalog.pg_index AS key WHERE key.indrelid = found.attrelid "
            "AND key.indisprimary AND found.attnum = ANY(key.indkey)) FROM pg_catalog.pg_attribute AS found "
            "WHERE found.attrelid = to_regclass(%s) AND found.attnum > 0 AND NOT found.attisdropped "
            "ORDER BY found.attnum",
            [connection.ops.quote_name(table)],
        )
        return [Column(name, is_key) for name, is_key in cursor.fetchall()]


def expected(capture: Capture, connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return what ``installed`` returns where the triggers are current."""
    code: Any = body(capture, connection)
    return {f"{PREFIX}{operation}": code for operation in OPERATIONS}
