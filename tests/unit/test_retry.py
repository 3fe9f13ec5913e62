"""Retry: pure arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from django_ai.automation.exceptions import AutomationError, DefinitionError, NaiveDatetimeError
from django_ai.automation.values.failures import NextAttempt, Raised
from django_ai.automation.values.retry import GiveUp, Retry, RetryAfter

SECOND = timedelta(seconds=1)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


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
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"jitter": 1.1}, "jitter=1.1"),
        ({"jitter": True}, "jitter=True"),
        ({"jitter": float("nan")}, "jitter=nan"),
        ({"jitter": SECOND}, "jitter=datetime.timedelta"),
        ({"retry_on": "ValueError"}, "retry_on='ValueError'"),
        ({"retry_on": ValueError()}, "retry_on=ValueError()"),
        ({"retry_on": ()}, "retry_on=()"),
        ({"retry_on": (ValueError, KeyboardInterrupt)}, "KeyboardInterrupt"),
        ({"give_up_on": [int]}, "<class 'int'> is not a subclass of Exception"),
        ({"give_up_on": None}, "give_up_on=None"),
        ({"retry_on": TimeoutError, "give_up_on": OSError}, "TimeoutError would never be retried"),
        ({"retry_on": (KeyError, OSError), "give_up_on": OSError}, "OSError would never be retried"),
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


# -- which errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "retried", "given_up"),
    [
        ({}, [ValueError, OSError], []),
        ({"retry_on": OSError}, [OSError, TimeoutError], [ValueError]),
        ({"retry_on": [KeyError, OSError]}, [OSError, KeyError], [LookupError, IndexError]),
        ({"give_up_on": (OSError,)}, [ValueError], [OSError, TimeoutError]),
        ({"retry_on": OSError, "give_up_on": FileNotFoundError}, [TimeoutError], [FileNotFoundError, ValueError]),
    ],
)
def test_the_class_of_an_error_decides_whether_it_is_retried(options, retried, given_up):
    retry = Retry(**options)
    assert [each for each in [*retried, *given_up] if retry.retries(each())] == retried
    for each in [*retried, *given_up]:
        expected = NextAttempt(SECOND) if each in retried else None
        assert Raised(each(), "the trace").next_attempt(retry, 1, "key", NOW) == expected


def test_a_policy_with_classes_is_a_value_like_any_other():
    assert Retry(retry_on=[OSError]) == Retry(retry_on=OSError) == Retry(retry_on=(OSError,))
    assert len({Retry(give_up_on={OSError}), Retry(give_up_on=OSError)}) == 1


# -- jitter ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.2, 0.5, 1])
def test_a_jitter_shortens_each_pause_by_up_to_its_share(jitter):
    retry = Retry(max_attempts=9, base_delay=10 * SECOND, max_delay=60 * SECOND, jitter=jitter)
    plain = Retry(max_attempts=9, base_delay=10 * SECOND, max_delay=60 * SECOND)
    for attempt in range(1, 9):
        longest = plain.delay(attempt)
        found = [retry.delay(attempt, f"workflow:{number}") for number in range(2000)]
        assert longest * (1 - jitter) <= min(found) < longest * (1 - 0.95 * jitter)
        assert longest * (1 - 0.05 * jitter) < max(found) <= longest
        mean = sum(found, timedelta(0)) / len(found)
        assert abs(mean - longest * (1 - jitter / 2)) < longest * jitter * 0.03


def test_the_jitter_of_one_attempt_of_one_row_is_always_the_same():
    retry = Retry(max_attempts=5, base_delay=SECOND, backoff_factor=1, jitter=1)
    assert retry.delay(1, "one") == Retry(max_attempts=5, base_delay=SECOND, backoff_factor=1, jitter=1).delay(1, "one")
    assert len({retry.delay(attempt, key) for attempt in (1, 2, 3, 4) for key in ("", "one", "other")}) == 12
    assert retry.delay(5, "one") is None


def test_without_jitter_the_key_has_no_effect():
    assert Retry().delay(2, "one") == Retry().delay(2, "other") == 2 * SECOND


# -- RetryAfter and GiveUp ---------------------------------------------------------------------------------------------

ONCE, TWICE = Retry(max_attempts=1), Retry(max_attempts=2)


@pytest.mark.parametrize(
    ("when", "delay"),
    [
        (30 * SECOND, 30 * SECOND),
        (timedelta(days=40), timedelta(days=40)),
        (NOW + 90 * SECOND, 90 * SECOND),
        (timedelta(0), SECOND),
        (-SECOND, SECOND),
        (NOW - timedelta(days=1), SECOND),
        (SECOND / 2, SECOND),
    ],
)
def test_retry_after_says_when_and_costs_no_attempt(when, delay):
    """At least a second passes, so that an endless loop cannot occupy a worker."""
    raised = Raised(RetryAfter(when), "the trace")
    for attempt in (1, 2, 99):
        assert raised.next_attempt(ONCE, attempt, "key", NOW) == NextAttempt(delay, counts=False)


@pytest.mark.parametrize(
    ("when", "delay"), [(timedelta(0), timedelta(0)), (-SECOND, timedelta(0)), (NOW + SECOND / 2, SECOND / 2)]
)
def test_a_counted_retry_after_uses_up_attempts_and_has_no_shortest_pause(when, delay):
    raised = Raised(RetryAfter(when, counts=True), "the trace")
    assert raised.next_attempt(TWICE, 1, "key", NOW) == NextAttempt(delay)
    assert raised.next_attempt(TWICE, 2, "key", NOW) is None


def test_retry_after_and_give_up_decide_whatever_the_policy_says():
    never = Retry(max_attempts=5, retry_on=ValueError, jitter=1)
    assert Raised(RetryAfter(30 * SECOND), "").next_attempt(never, 1, "key", NOW) == NextAttempt(
        30 * SECOND, counts=False
    )
    always = Retry(max_attempts=5, retry_on=Exception)
    assert Raised(GiveUp("stolen"), "").next_attempt(always, 1, "key", NOW) is None


def test_their_message_is_the_reason():
    assert str(RetryAfter(SECOND, "HTTP 429")) == "HTTP 429"
    assert str(RetryAfter(SECOND)) == "The code asked to be retried later."
    assert str(GiveUp("The card is blocked.")) == "The card is blocked."
    assert str(GiveUp()) == "The code gave up."
    assert Raised(GiveUp("blocked"), "the trace").text == "GiveUp: blocked\n\nthe trace"


@pytest.mark.parametrize("wrong", ["30", 30, None, NOW.date()])
def test_retry_after_refuses_what_is_no_time(wrong):
    with pytest.raises(DefinitionError, match=r"RetryAfter\(.*give a timedelta"):
        RetryAfter(wrong)


def test_retry_after_refuses_a_date_without_a_time_zone():
    with pytest.raises(NaiveDatetimeError, match=r"RetryAfter\(\.\.\.\) is .*no time zone"):
        RetryAfter(datetime(2030, 1, 1))  # noqa: DTZ001
