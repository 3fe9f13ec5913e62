"""Types of the tools for tests."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_type

from django_ai.automation.testing import TimeMachine, assert_not_occurred, assert_occurred, runs_of, time_machine


def the_time_machine_has_types() -> None:
    with time_machine("2031-03-01T08:00+00:00", raise_errors=True) as machine:
        assert_type(machine, TimeMachine)
        assert_type(machine.now, datetime)
        assert_type(machine.errors, list[Exception])
        assert_type(machine.process(), int)
        assert_type(machine.advance(timedelta(days=1)), int)
        assert_type(machine.advance(days=1), int)
        assert_type(machine.advance_to("2031-03-09T08:00+00:00"), int)
        machine.assert_occurred("parcel_lost", times=1)
        machine.advance(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_occurred("parcel_lost")
    assert_not_occurred("parcel_lost")
    assert_type(runs_of("print catalogue"), list[Any])
