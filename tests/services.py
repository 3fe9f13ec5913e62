"""Servers that some tests need: which answers, how to start the others, and whether a missing one skips or fails.

``AUTOMATION_REQUIRE`` (a list with commas: ``redis,rabbitmq``) names those that must be there, as in CI. A test calls
``needs("redis")``: where the server is missing it is skipped, with a reason that says how to start it; or it fails,
where the server is required.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.databases import REDIS_URL

RABBITMQ_URL = os.environ.get("TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")


def _listens(url: str, port: int) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", parts.port or port), timeout=2).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Service:
    """One server: whether it is there, and how a person starts it."""

    is_there: Callable[[], bool]
    start: str


SERVICES = {
    "redis": Service(
        lambda: _listens(REDIS_URL, 6379), "`apt-get install redis-server` or `docker run -p 6379:6379 redis`"
    ),
    "rabbitmq": Service(
        lambda: _listens(RABBITMQ_URL, 5672), "`apt-get install rabbitmq-server` or `docker run -p 5672:5672 rabbitmq`"
    ),
    "pgbouncer": Service(
        lambda: shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None,
        "`apt-get install pgbouncer`; the tests start it themselves",
    ),
}


def required() -> set[str]:
    """Return the names in ``AUTOMATION_REQUIRE``."""
    return {name.strip() for name in os.environ.get("AUTOMATION_REQUIRE", "").split(",") if name.strip()}


def missing(name: str) -> str:
    """Return why ``name`` cannot be used and how to start it, or an empty text if it is there."""
    service = SERVICES[name]
    return "" if service.is_there() else f"no {name} here: {service.start}"


def needs(name: str) -> None:
    """Skip the test that calls this where ``name`` is missing; fail it where it is required."""
    if reason := missing(name):
        if name in required():
            pytest.fail(f"{reason} (AUTOMATION_REQUIRE names it)")
        pytest.skip(reason)
