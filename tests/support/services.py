"""Services that some tests need: whether each is available, how to start it, and whether a missing one skips or fails.

``AUTOMATION_REQUIRE`` (comma-separated: ``redis,rabbitmq``) names those that must be available, as in CI. A test calls
``needs("redis")``. If the service is missing, the test is skipped with a reason that says how to start it. If
``AUTOMATION_REQUIRE`` names the service, the test fails instead.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.browser import CHROMIUM
from tests.support.databases import REDIS_URL

RABBITMQ_URL = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")
_PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
PGBOUNCER = shutil.which("pgbouncer", path=_PLACES)
REDIS_SERVER = shutil.which("redis-server", path=_PLACES)


def _listens(url: str, port: int) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", parts.port or port), timeout=2).close()
    except OSError:
        return False
    return True


def _imports(*packages: str) -> bool:
    return all(find_spec(name) is not None for name in packages)


@dataclass(frozen=True)
class Service:
    """A service: whether it is available, and how to start it."""

    is_there: Callable[[], bool]
    start: str


SERVICES = {
    "redis": Service(
        lambda: _listens(REDIS_URL, 6379), "`apt-get install redis-server` or `docker run -p 6379:6379 redis`"
    ),
    "rabbitmq": Service(
        lambda: _listens(RABBITMQ_URL, 5672), "`apt-get install rabbitmq-server` or `docker run -p 5672:5672 rabbitmq`"
    ),
    "pgbouncer": Service(lambda: PGBOUNCER is not None, "`apt-get install pgbouncer`; the tests start it themselves"),
    "redis-server": Service(
        lambda: REDIS_SERVER is not None, "`apt-get install redis-server`; the tests start it themselves"
    ),
    "celery": Service(lambda: find_spec("celery") is not None, "`pip install celery`"),
    "tasks": Service(lambda: find_spec("django_tasks_db") is not None, "`pip install django-tasks django-tasks-db`"),
    "pyright": Service(lambda: find_spec("basedpyright") is not None, "`pip install basedpyright`"),
    "chromium": Service(
        lambda: CHROMIUM is not None and _imports("playwright", "axe_playwright_python"),
        "`apt-get install chromium` and `pip install playwright axe-playwright-python`; the tests start it themselves",
    ),
    "psycopg-pool": Service(lambda: find_spec("psycopg_pool") is not None, "`pip install psycopg-pool`"),
}


def required() -> set[str]:
    """Return the names in ``AUTOMATION_REQUIRE``."""
    return {name.strip() for name in os.environ.get("AUTOMATION_REQUIRE", "").split(",") if name.strip()}


def missing(name: str) -> str:
    """Return why ``name`` cannot be used and how to start it, or an empty string if it is available."""
    service = SERVICES[name]
    return "" if service.is_there() else f"no {name} here: {service.start}"


def needs(*names: str) -> None:
    """Skip the calling test if one of ``names`` is missing, or fail it if that one is required."""
    for name in names:
        if reason := missing(name):
            if name in required():
                pytest.fail(f"{reason} (AUTOMATION_REQUIRE names it)")
            pytest.skip(reason)


@contextlib.contextmanager
def private_redis(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a separate Redis server, which the test may stop."""
    assert REDIS_SERVER is not None
    process = subprocess.Popen(
        [REDIS_SERVER, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_port(port)
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_port(port: int, seconds: float = 20) -> None:
    """Wait until a process listens on a port of this machine."""
    deadline = time.monotonic() + seconds
    while not _listens(f"//127.0.0.1:{port}", port):
        assert time.monotonic() < deadline, f"no process listens on port {port}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
