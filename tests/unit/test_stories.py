"""What the pages of the console show of errors and durations, without a database."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation.console.failures import MAX_TEXT, failure_of
from django_ai.automation.console.story import SIGNS, Moment, Tone, duration_text
from django_ai.automation.workflows import run_session

TRACE = f'''Traceback (most recent call last):
  File "{run_session.__file__}", line 12, in enter
    outcome = call(step)
  File "/srv/shop/billing/automations.py", line 34, in charge
    bank.charge(order.cents)
  File "/usr/lib/python3/site-packages/bank/client.py", line 9, in charge
    raise Refused(card)
bank.Refused: card 4242 was refused
'''


def test_the_frames_of_the_project_are_told_from_those_of_libraries_and_of_the_engine():
    failure = failure_of(TRACE)
    assert failure.summary == "bank.Refused: card 4242 was refused"
    assert len(failure.frames) == 3
    (ours,) = failure.project_frames
    assert (ours.where, ours.code) == ("shop/billing/automations.py:34 charge", "bank.charge(order.cents)")
    assert failure.text == TRACE


@pytest.mark.parametrize("text", ["", "  \n"])
def test_no_error_is_no_failure(text):
    assert failure_of(text) is None


def test_a_reason_without_a_traceback_has_no_frames():
    failure = failure_of("The card was refused.")
    assert (failure.summary, failure.frames) == ("The card was refused.", [])


def test_a_traceback_that_is_cut_in_the_middle_of_a_frame():
    failure = failure_of('  File "/srv/shop/a.py", line 3, in one\n  File "/srv/shop/b.py", line 4, in two\n')
    assert [(frame.where, frame.code) for frame in failure.frames] == [
        ("srv/shop/a.py:3 one", ""),
        ("srv/shop/b.py:4 two", ""),
    ]


def test_a_huge_error_keeps_its_beginning_and_its_end():
    failure = failure_of("first " + "x" * MAX_TEXT + " last")
    assert len(failure.text) < MAX_TEXT + 10
    assert failure.text.startswith("first ")
    assert failure.text.endswith(" last")


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(0), "0 ms"),
        (timedelta(milliseconds=38), "38 ms"),
        (timedelta(seconds=-3), "0 ms"),
        (timedelta(seconds=59.9), "59 s"),
        (timedelta(minutes=2, seconds=5), "2 min 5 s"),
        (timedelta(hours=1), "1 h"),
        (timedelta(days=40, hours=3, minutes=9), "40 d 3 h"),
        (timedelta(days=1, minutes=9), "1 d"),
    ],
)
def test_durations_have_two_units_at_most(length, text):
    assert duration_text(length) == text


def test_each_tone_has_a_sign_of_its_own():
    assert len(set(SIGNS.values())) == len(Tone)


def test_only_several_attempts_are_counted():
    assert Moment("one", None, tries=[Moment("attempt 1", None)]).tries_text == ""
    assert Moment("one", None, tries=[Moment("attempt 1", None)] * 3).tries_text == "attempts: 3"
