"""Retry: pure arithmetic."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation.exceptions import AutomationError, DefinitionError
from django_ai.automation.values.retry import Retry

SECOND = timedelta(seconds=1)


def delays(retry: Retry) -> list[timedelta | None]:
    return [retry.delay(attempt) for attempt in range(1, retry.max_attempts + 1)]


def test_defaults_are_three_tries_that_double_from_one_second():
    retry = Retry()
    assert (retry.max_attempts, retry.base_delay, retry.max_delay) == (3, SECOND, timedelta(minutes=5))
    assert delays(retry) == [SECOND, 2 * SECOND, None]


def test_one_attempt_is_no_retry():
    assert Retry(max_attempts=1).delay(1) is None


def test_the_longest_wait_is_max_delay():
    retry = Retry(max_attempts=6, base_delay=10 * SECOND, max_delay=60 * SECOND, backoff_factor=3)
    assert delays(retry) == [10 * SECOND, 30 * SECOND, 60 * SECOND, 60 * SECOND, 60 * SECOND, None]


def test_a_factor_of_one_waits_evenly():
    assert delays(Retry(max_attempts=3, backoff_factor=1)) == [SECOND, SECOND, None]


def test_a_fractional_factor_counts():
    assert Retry(backoff_factor=1.5).delay(2) == timedelta(seconds=1.5)


@pytest.mark.parametrize("attempt", [40, 2000, 100_000])
def test_huge_powers_end_at_max_delay(attempt):
    assert Retry(max_attempts=10**6).delay(attempt) == timedelta(minutes=5)


def test_no_delay_stays_no_delay():
    assert Retry(base_delay=timedelta(0)).delay(1) == timedelta(0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"max_attempts": -1}, "max_attempts=-1"),
        ({"max_attempts": 2.0}, "max_attempts=2.0"),
        ({"max_attempts": True}, "max_attempts=True"),
        ({"base_delay": 2}, "base_delay=2"),
        ({"base_delay": timedelta(seconds=-1)}, "base_delay="),
        ({"max_delay": None}, "max_delay=None"),
        ({"backoff_factor": 0.5}, "backoff_factor=0.5"),
        ({"backoff_factor": float("inf")}, "backoff_factor=inf"),
        ({"backoff_factor": float("nan")}, "backoff_factor=nan"),
        ({"backoff_factor": "2"}, "backoff_factor='2'"),
    ],
)
def test_nonsense_is_refused_with_its_name_and_value(wrong, named):
    with pytest.raises(DefinitionError) as raised:
        Retry(**wrong)
    assert named in str(raised.value)
    assert isinstance(raised.value, AutomationError | ValueError)


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        Retry().max_attempts = 5  # type: ignore[misc]


def test_a_base_delay_beyond_the_usual_longest_is_kept():
    retry = Retry(max_attempts=4, base_delay=timedelta(hours=1))
    assert [retry.delay(attempt) for attempt in (1, 2, 3, 4)] == [timedelta(hours=1)] * 3 + [None]


def test_a_max_delay_below_the_base_delay_is_refused():
    with pytest.raises(DefinitionError, match="max_delay= must not be shorter"):
        Retry(base_delay=timedelta(minutes=10), max_delay=timedelta(minutes=1))
