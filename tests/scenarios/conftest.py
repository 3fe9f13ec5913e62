"""Servers that a scenario may stop at once, a gate in its step, and rows to fight for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection

from tests.apps.reservations.models import Reservation
from tests.support.blocking_steps import Gate
from tests.support.servers import (
    MariaDB,
    NoBinariesError,
    PostgreSQL,
    Server,
    in_use,
    private_mariadb,
    private_postgresql,
)


@pytest.fixture(scope="session")
def _private_server() -> Iterator[Server]:
    try:
        with private_mariadb() if connection.vendor == "mysql" else private_postgresql() as running:
            yield running
    except NoBinariesError as error:
        pytest.skip(str(error))


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQL | MariaDB]:
    """A server of the kind that the suite runs on, for this test to stop, kill and restart; Django is pointed at it."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server that could stop")
    running = request.getfixturevalue("_private_server")
    with in_use(running):
        yield running
        if not running.answers():
            running.restart()


@pytest.fixture
def gate() -> Iterator[Gate]:
    found = Gate()
    yield found
    found.opened.set()


@pytest.fixture
def two_rows() -> tuple[int, int]:
    return Reservation.objects.create(note="a").pk, Reservation.objects.create(note="b").pk
