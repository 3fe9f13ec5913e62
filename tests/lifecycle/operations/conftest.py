"""A time machine that starts at noon (each test runs once with commits and once without), and workflows to pause."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection

from django_ai.automation.testing import time_machine as machine_at
from tests.support import pauses
from tests.support.time_machine import NOON


# Marks, not fixtures requested by name: pytest-django creates the databases that the marks of selected tests need.
@pytest.fixture(
    params=[
        pytest.param("commits", marks=pytest.mark.django_db(transaction=True)),
        pytest.param("never commits", marks=pytest.mark.django_db),
    ]
)
def machine(request):
    with machine_at(NOON) as found:
        yield found


@pytest.fixture
def naps() -> type:
    """A workflow that leaves its word, sleeps for an hour, and leaves it again."""
    return pauses.naps()


@pytest.fixture
def other() -> type:
    """A workflow of one step, in the default queue."""
    return pauses.other()


@pytest.fixture
def waits_for_the_disk() -> Iterator[None]:
    """Let commits wait for the disk, as on servers that are not configured for tests (PostgreSQL)."""
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
    yield
    with connection.cursor() as cursor:
        cursor.execute("RESET synchronous_commit")
