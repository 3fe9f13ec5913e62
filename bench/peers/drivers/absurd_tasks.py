"""Absurd: two processes that claim tasks from one queue in PostgreSQL. Its schema comes with the package absurdctl."""

from __future__ import annotations

import platform
import signal
import sys
from importlib.metadata import version
from typing import Any

import psycopg
from absurd_sdk import Absurd

from bench.peers.logbook import note
from bench.peers.peer import TEXT, Peer, postgresql_rows

QUEUE = "bench"
POLLING_SECONDS = 0.1
"""Absurd polls its queue every 0.25 s by default; DBOS, which polls as well, has the same interval here."""

BATCH = 10
"""Absurd claims one task at a time by default, which halves its rate from a backlog."""


def application() -> Absurd:
    app = Absurd(psycopg.connect(autocommit=True), queue_name=QUEUE)

    @app.register_task(name="one")
    def one(params: Any, ctx: Any) -> None:
        ctx.step("only", lambda: note(params["number"]))

    @app.register_task(name="five")
    def five(params: Any, ctx: Any) -> None:
        number = params["number"]
        for name in ("first", "second", "third", "fourth", "fifth"):
            number = ctx.step(name, lambda number=number: body(number))

    return app


def body(number: int) -> int:
    note(number)
    return number + 1


class Driver(Peer):
    def __init__(self, variant: str, processes: int) -> None:
        super().__init__(variant, processes)
        self.connection = psycopg.connect(autocommit=True)
        self.app = application()

    def describe(self) -> dict[str, Any]:
        return {
            "versions": {
                "absurd-sdk": version("absurd-sdk"),
                "absurdctl": version("absurdctl"),
                "Python": platform.python_version(),
            },
            "command": f"{self.processes} processes with start_worker(), concurrency 1, batch_size {BATCH}",
            "settings": f"polled every {POLLING_SECONDS} s instead of every 0.25 s; else defaults",
            "notes": "Each step is a ctx.step(); each checkpoint, claim and end is a commit of its own.",
        }

    def prepare(self) -> None:
        import absurdctl

        self.connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
        self.app.create_queue(QUEUE)

    def clear(self) -> None:
        self.app.drop_queue(QUEUE)
        self.app.create_queue(QUEUE)
        postgresql_rows("VACUUM ANALYZE")

    def start(self, number: int) -> None:
        self.app.spawn("one", {"number": number, "text": TEXT})

    def start_five(self, number: int) -> None:
        self.app.spawn("five", {"number": number, "text": TEXT})

    def workers(self) -> list[list[str]]:
        return [[sys.executable, "-m", "bench.peers.drivers.absurd_tasks"] for _ in range(self.processes)]

    def unfinished(self) -> int:
        # By an index: the tasks themselves have none on their state, and reading all finished ones would be measured.
        query = f"SELECT count(*) FROM absurd.r_{QUEUE} WHERE state IN ('pending', 'running', 'sleeping')"
        row = self.connection.execute(query).fetchone()
        return int(row[0]) if row else 0

    def fill(self, number: int) -> None:
        postgresql_rows(
            f"INSERT INTO absurd.t_{QUEUE} (task_id, task_name, params, state, attempts, enqueue_at, first_started_at) "
            f"SELECT gen_random_uuid(), 'one', jsonb_build_object('number', n, 'text', '{TEXT}'), "
            "'completed', 1, at, at "
            f"FROM (SELECT n, now() - interval '30 days' * random() AS at FROM generate_series(1, {number}) n) moments",
            f"INSERT INTO absurd.r_{QUEUE} (run_id, task_id, attempt, state, available_at, started_at, completed_at) "
            "SELECT gen_random_uuid(), task_id, 1, 'completed', enqueue_at, enqueue_at, enqueue_at "
            f"FROM absurd.t_{QUEUE}",
            f"INSERT INTO absurd.c_{QUEUE} (task_id, checkpoint_name, state) "
            f"SELECT task_id, 'only', 'null' FROM absurd.t_{QUEUE}",
            "VACUUM ANALYZE",
        )


if __name__ == "__main__":
    worker = application()
    signal.signal(signal.SIGTERM, lambda *_: worker.stop_worker())
    worker.start_worker(poll_interval=POLLING_SECONDS, batch_size=BATCH)
