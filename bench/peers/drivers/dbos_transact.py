"""DBOS Transact: two processes that take workflows from one queue in PostgreSQL."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, urlencode

from dbos import DBOS, DBOSClient, DBOSConfig

from bench.peers.logbook import note
from bench.peers.peer import TEXT, Peer, conninfo, postgresql_rows

QUEUE = "bench"
APP_VERSION = "1"
POLLING_SECONDS = 0.1
"""DBOS polls its queues every second by default, which would make the latency some 500 ms."""
CONCURRENCY = 50
"""Without a limit, which is the default, the first process takes the whole backlog."""


def url() -> str:
    at = conninfo()
    rest = {name: at[name] for name in ("host", "port") if at[name]}
    user = quote(at["user"]) + (f":{quote(at['password'])}" if at["password"] else "")
    return f"postgresql://{user}@/{at['dbname']}?{urlencode(rest)}"


@DBOS.step()
def body(number: int) -> int:
    note(number)
    return number + 1


@DBOS.workflow(name="one")
def one(number: int, text: str) -> None:
    body(number)


@DBOS.workflow(name="five")
def five(number: int, text: str) -> None:
    for _ in range(5):
        number = body(number)


def launch(executor: str) -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url(),
        "application_version": APP_VERSION,
        "executor_id": executor,
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=CONCURRENCY, polling_interval_sec=POLLING_SECONDS)


class Driver(Peer):
    def __init__(self, variant: str, processes: int) -> None:
        super().__init__(variant, processes)
        self._client: DBOSClient | None = None

    @property
    def client(self) -> DBOSClient:
        if self._client is None:
            self._client = DBOSClient(system_database_url=url(), application_name="bench")
        return self._client

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {
                "dbos": version("dbos"),
                "psycopg": version("psycopg"),
                "Python": platform.python_version(),
            },
            "command": f"{self.processes} processes after DBOS.launch(), one queue, worker_concurrency {CONCURRENCY}",
            "settings": f"the queue is polled every {POLLING_SECONDS} s instead of every second; else defaults",
            "notes": "Each step is a @DBOS.step of a @DBOS.workflow, enqueued with DBOSClient. Each process performs "
            "many workflows at the same time in threads.",
        }

    def prepare(self) -> None:
        launch("prepare")
        DBOS.destroy()

    def clear(self) -> None:
        postgresql_rows(
            "TRUNCATE dbos.workflow_status, dbos.workflow_input, dbos.workflow_output, dbos.operation_outputs CASCADE",
            "VACUUM ANALYZE",
        )

    def start(self, number: int) -> None:
        self._enqueue("one", number)

    def start_five(self, number: int) -> None:
        self._enqueue("five", number)

    def _enqueue(self, name: str, number: int) -> None:
        self.client.enqueue({"workflow_name": name, "queue_name": QUEUE, "app_version": APP_VERSION}, number, TEXT)

    def workers(self) -> list[list[str]]:
        command = [sys.executable, "-m", "bench.peers.drivers.dbos_transact"]
        return [[*command, f"worker-{number}"] for number in range(self.processes)]

    def unfinished(self) -> int:
        query = "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('PENDING', 'ENQUEUED')"
        return int(postgresql_rows(query)[0][0])

    def fill(self, number: int) -> None:
        moment = "(extract(epoch FROM now() - interval '30 days' * random()) * 1000)::bigint"
        postgresql_rows(
            "INSERT INTO dbos.workflow_status (workflow_uuid, status, name, created_at, updated_at, completed_at, "
            "started_at_epoch_ms, application_version, queue_name, priority, recovery_attempts, executor_id, "
            "application_name) SELECT gen_random_uuid()::text, 'SUCCESS', 'one', at, at, at, at, "
            f"'{APP_VERSION}', '{QUEUE}', 0, 1, 'worker-0', 'bench' "
            f"FROM (SELECT {moment} AS at FROM generate_series(1, {number})) moments",
            "INSERT INTO dbos.workflow_input (workflow_uuid, inputs, retention_timestamp) "
            f"SELECT workflow_uuid, '{TEXT}', created_at FROM dbos.workflow_status",
            "INSERT INTO dbos.operation_outputs "
            "(workflow_uuid, function_id, function_name, output, retention_timestamp) "
            "SELECT workflow_uuid, 1, 'body', '1', created_at FROM dbos.workflow_status",
            "VACUUM ANALYZE",
        )


if __name__ == "__main__":
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    launch(sys.argv[1])
    stopping.wait()
    os._exit(0)
