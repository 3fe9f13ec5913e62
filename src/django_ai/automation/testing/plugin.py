"""The pytest fixture ``time_machine``, and the marker with its arguments.

Name it in the conftest at the root of the project, ``pytest_plugins = ["django_ai.automation.testing.plugin"]``, or
import the fixture into any conftest. It has no entry point: the package time-machine has one with a fixture of the same
name, and the order of two entry points is undefined. A plugin that a conftest names or imports overrides both.
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
        "time_machine(start=None, raise_errors=False, schedules=False): arguments of the fixture time_machine of "
        "django_ai.automation",
    )


@pytest.fixture
def time_machine(request: pytest.FixtureRequest) -> Iterator[TimeMachine]:
    """Stop time for the test, and yield the ``TimeMachine`` that moves it.

    The arguments of the marker ``time_machine`` are those of ``testing.time_machine``; without the marker, time stands
    at the present. The test itself needs the marker ``django_db``, transactional or not.

    Args:
        request: The fixture ``request`` of pytest.

    Yields:
        The ``TimeMachine``.

    Example:
        An invoice is overdue after 30 days::

            @pytest.mark.django_db
            @pytest.mark.time_machine(start="2031-03-01T08:00+00:00", raise_errors=True)
            def test_overdue(time_machine):
                invoice = Invoice.objects.create(due_on=time_machine.now + timedelta(days=30))
                time_machine.advance(days=30)
                time_machine.assert_occurred("invoice_overdue", invoice)
    """
    from .machine import time_machine as machine

    marker = request.node.get_closest_marker("time_machine")
    with machine(*marker.args, **marker.kwargs) if marker else machine() as found:
        yield found
