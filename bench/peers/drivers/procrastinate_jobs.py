"""Procrastinate: jobs in PostgreSQL, two worker processes that perform one job at a time, woken by NOTIFY."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Any

import psycopg
from procrastinate import App, PsycopgConnector

from bench.peers.logbook import note
from bench.peers.peer import TEXT, Peer, postgresql_rows

app = App(connector=PsycopgConnector())
"""What the workers import. The environment names the database."""


@app.task(name="one")
def one(number: int, text: str) -> None:
    note(number)


class Driver(Peer):
    def __init__(self, variant: str, processes: int) -> None:
        super().__init__(variant, processes)
        app.open()  # with the connector for synchronous callers
        self.connection = psycopg.connect(autocommit=True)

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {
                "procrastinate": version("procrastinate"),
                "psycopg": version("psycopg"),
                "Python": platform.python_version(),
            },
            "command": f"procrastinate worker (concurrency 1), {self.processes} processes",
            "settings": "defaults: LISTEN/NOTIFY, finished jobs stay in the table",
            "notes": "A synchronous task, started by a synchronous caller.",
        }

    def prepare(self) -> None:
        app.schema_manager.apply_schema()

    def clear(self) -> None:
        postgresql_rows("TRUNCATE procrastinate_jobs, procrastinate_events CASCADE", "VACUUM ANALYZE")

    def start(self, number: int) -> None:
        one.defer(number=number, text=TEXT)

    def backlog(self, numbers: range, *, five: bool = False) -> None:
        one.batch_defer(*({"number": number, "text": TEXT} for number in numbers))

    def workers(self) -> list[list[str]]:
        command = ["-m", "procrastinate", "--app", "bench.peers.drivers.procrastinate_jobs.app", "worker"]
        return [[sys.executable, *command] for _ in range(self.processes)]

    def unfinished(self) -> int:
        query = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        row = self.connection.execute(query).fetchone()
        return int(row[0]) if row else 0

    def fill(self, number: int) -> None:
        postgresql_rows(
            "ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER",
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, attempts) "
            f"SELECT 'default', 'one', jsonb_build_object('number', n, 'text', '{TEXT}'), 'succeeded', 1 "
            f"FROM generate_series(1, {number}) n",
            "INSERT INTO procrastinate_events (job_id, type) SELECT id, kind::procrastinate_job_event_type "
            "FROM procrastinate_jobs, unnest(ARRAY['deferred', 'started', 'succeeded']) kind",
            "ALTER TABLE procrastinate_jobs ENABLE TRIGGER USER",
            "VACUUM ANALYZE",
        )
