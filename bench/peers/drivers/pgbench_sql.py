"""pgbench: what the database itself can do for a queue that claims one row at a time. No peer, a yardstick.

A start is one INSERT; performing a call is one UPDATE that claims a row with SKIP LOCKED and one that finishes it, each
in a transaction of its own. A claim that finds nothing, because the other client was faster, is not repeated.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.peers.peer import TEXT, MissingError, Peer, postgresql_rows

START = f"""INSERT INTO calls (payload) VALUES ('{{"number": 1, "text": "{TEXT}"}}');\n"""
PERFORM = """\
\\set id 0
UPDATE calls SET lease = 'x', wake_at = now() + interval '10 s' WHERE id = (SELECT id FROM calls \
WHERE wake_at <= now() ORDER BY wake_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id \\aset
UPDATE calls SET lease = NULL, wake_at = NULL, finished = now() WHERE id = :id;
"""


class Driver(Peer):
    def __init__(self, variant: str, processes: int) -> None:
        super().__init__(variant, processes)
        if not shutil.which("pgbench"):
            raise MissingError("the program pgbench is not on PATH; on Debian it is part of the package postgresql")

    def describe(self) -> dict[str, Any]:
        found = subprocess.run(["pgbench", "--version"], check=True, capture_output=True, text=True).stdout
        return {
            "versions": {"pgbench": found.strip()},
            "command": f"pgbench --client 1 (starts), --client {self.processes} --jobs {self.processes} (others)",
            "settings": "simple protocol",
            "notes": "One INSERT a start; two UPDATEs in two transactions a call, the first with SKIP LOCKED.",
        }

    def prepare(self) -> None:
        postgresql_rows(
            "CREATE TABLE calls (id bigserial PRIMARY KEY, payload jsonb NOT NULL, lease text, finished timestamptz, "
            "wake_at timestamptz DEFAULT clock_timestamp())",
            "CREATE INDEX ON calls (wake_at, id) WHERE wake_at IS NOT NULL",
        )

    def clear(self) -> None:
        postgresql_rows("TRUNCATE calls", "VACUUM ANALYZE calls")

    def measure(self, measurement: str, number: int) -> dict[str, Any]:
        self.clear()
        if measurement == "starts":
            return {"per second": run(START, 1, number)}
        if measurement == "drain":
            rows = f"SELECT '{{}}' FROM generate_series(1, {number})"
            postgresql_rows(f"INSERT INTO calls (payload) {rows}", "ANALYZE calls")
            return {"per second": run(PERFORM, self.processes, number)}
        return {"per second": run(START + PERFORM, self.processes, number)}


def run(script: str, clients: int, number: int) -> float:
    """Return the executions of the script per second, ``number`` of them by ``clients`` connections."""
    with tempfile.TemporaryDirectory(prefix="pgbench-") as folder:
        file = Path(folder) / "script.sql"
        file.write_text(script)
        count = ["--client", str(clients), "--jobs", str(clients), "--transactions", str(number // clients)]
        command = ["pgbench", "--no-vacuum", *count, "--file", str(file)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"tps = ([0-9.]+)", printed)
    if found is None:
        raise RuntimeError(f"pgbench printed no tps:\n{printed}")
    return float(found[1])
