"""Which errors are one problem: those that differ in ids only. A number that says what has happened is no id."""

from __future__ import annotations

import pytest

from django_ai.automation.queues.problems import MAX_END_OF_ERROR, pattern_of, problem_key


def key(error: str, kind: str = "workflow", name: str = "charge", state: str = "failed") -> str:
    return problem_key(kind, name, state, error)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ValueError: order 17 is gone", "ValueError: order 18 is gone"),
        ("KeyError: 'a7f-22'", "KeyError: 'b8e-31'"),
        ("Traceback:\n  File x, line 3\nTimeoutError: after 3.2 s", "Other:\nTimeoutError: after 4.1 s"),
        ("shop.errors.Refused: card 4242 at 12:30:01", "shop.errors.Refused: card 1881 at 09:01:59"),
        ("ValueError: no id 5\n", "ValueError: no id 6"),
    ],
)
def test_errors_that_differ_in_ids_are_one_problem(one, other):
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HTTPError: HTTP 404 for order 7", "HTTPError: HTTP 500 for order 7"),
        ("HTTPError: 404 Client Error: Not Found for url", "HTTPError: 503 Client Error: Not Found for url"),
        ("ApiError: status code: 429", "ApiError: status code: 500"),
        ("ApiError: status=429", "ApiError: status=500"),
        ("OSError: [Errno 2] x", "OSError: [Errno 13] x"),
        ("Error42: x", "Error43: x"),
        ("ValueError: order 17 is gone", "TypeError: order 17 is gone"),
        ("ValueError: order 17 is gone", "ValueError: order 17 is late"),
        ("CalledProcessError: exit status 1", "CalledProcessError: exit status 137"),
    ],
)
def test_other_errors_are_other_problems(one, other):
    assert key(one) != key(other)


def test_kind_name_and_state_count():
    assert len({key("x"), key("x", kind="agent"), key("x", name="book"), key("x", state="parked")}) == 4


def test_the_end_of_a_long_error_decides():
    """Readers take the end of an error from the database, others have it whole."""
    line = "ValueError: " + "a" * 600
    assert key(f"Traceback\n{line}") == key(f"Traceback\n{line}"[-MAX_END_OF_ERROR:])


def test_the_pattern_keeps_what_is_no_id():
    line = "requests.HTTPError: 503 Server Error for order-17 in 2.5 s (HTTP 503, Errno 111)"
    assert pattern_of(line) == "requests.HTTPError: 503 Server Error for # in #.# s (HTTP 503, Errno 111)"
    assert pattern_of("x\x00 7") == "x\x00 #"
