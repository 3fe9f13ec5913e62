"""The pytest fixture ``time_machine``, and the marker that tells it when to begin.

Name it in the conftest at the root of the project, ``pytest_plugins = ["django_ai.automation.testing.plugin"]``, or
import the fixture into any conftest. It is not offered through an entry point: the package time-machine offers a
fixture of the same name through its own, and of two entry points nobody decides which comes last. What a conftest
names or imports comes after both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .machine import TimeMachine


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "time_machine(start=None, raise_errors=False): how the fixture time_machine of django_ai.automation begins",
    )


@pytest.fixture
def time_machine(request: pytest.FixtureRequest) -> Iterator[TimeMachine]:
    """Stop time for the test, and yield the ``TimeMachine`` that moves it.

    It begins at the present moment; ``@pytest.mark.time_machine(start=..., raise_errors=...)`` says otherwise. The
    database is the test's own affair: mark it with ``django_db``, transactional or not.
    """
    from .machine import time_machine as machine

    marker = request.node.get_closest_marker("time_machine")
    with machine(*marker.args, **marker.kwargs) if marker else machine() as found:
        yield found
