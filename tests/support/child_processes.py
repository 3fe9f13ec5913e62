"""Real processes for a test: started on the test's database, observed, and always stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from django.db import connection

from tests.support.polling import until

ROOT = Path(__file__).resolve().parents[2]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a process that uses the database of this test."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "TEST_LIVE_NAME": str(connection.settings_dict["NAME"]),
        "TEST_RUNTIME": "q2",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


def run_script(code: str, before: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a separate process, as a web process would. ``before`` runs before Django is set up."""
    script = f"{before}\nimport django\ndjango.setup()\n{code}"
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment(**extra), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


WORKER = """
import django, time
from datetime import timedelta
django.setup()
from django.db import Error
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.heartbeat import register_worker
register_worker("test")
while True:
    try:
        drain(budget=timedelta(seconds=1), heartbeat=True)
    except Error:
        pass
    time.sleep(0.02)
"""


def start_worker(**extra: str) -> subprocess.Popen[bytes]:
    """Start a process that only drains. The caller must kill it."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=ROOT, env=environment(**extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def spawn(log: Path, /, *command: str, **extra: str) -> subprocess.Popen[bytes]:
    """Start a process on the database of this test, in its own session. The caller must ``stop`` it."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT, env=environment(**extra), stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def automation_worker(log: Path, *options: str, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``manage.py automation_worker`` until the block ends."""
    process = spawn(log, "manage.py", "automation_worker", *options, **{"TEST_RUNTIME": "worker", **extra})
    try:
        yield process
    finally:
        stop(process)


@contextlib.contextmanager
def qcluster(log: Path, **extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a cluster with two workers until the block ends."""
    log.write_bytes(b"")
    process = spawn(log, "manage.py", "qcluster", **extra)
    try:
        until(lambda: log.read_text().count("ready for work at") >= 2, 30, "The cluster's start", log)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a cluster as an operator would, and kill the processes that remain after eight seconds."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        pass
    for session in {process.pid, *children_of(process.pid)}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
    process.wait(5)


def children_of(pid: int) -> list[int]:
    """Return the child processes of ``pid`` that still exist."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def group_of(leader: int) -> list[int]:
    """Return the processes in the process group of ``leader``, without the leader."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            if int(rest[2]) == leader and pid != leader and rest[0] != "Z":
                found.append(pid)
    return found


def kill_group(leader: subprocess.Popen[bytes]) -> None:
    """Kill the process group of ``leader``, and wait until the leader has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait(20)
