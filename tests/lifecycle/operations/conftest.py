"""A time machine that starts at noon, in a database that commits and in one that never does."""

from __future__ import annotations

import pytest

from django_ai.automation.testing import time_machine as machine_at
from tests.support.time_machine import NOON


# Marks, not fixtures asked for by name: pytest-django makes the databases that the marks of the chosen tests need.
@pytest.fixture(
    params=[
        pytest.param("commits", marks=pytest.mark.django_db(transaction=True)),
        pytest.param("never commits", marks=pytest.mark.django_db),
    ]
)
def machine(request):
    with machine_at(NOON) as found:
        yield found
