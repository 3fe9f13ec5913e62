"""Texts of the lists in the admin: how long until or since a moment, and messages that begin with a name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from django_ai.automation.queues.admin_fields import as_message, since_text, until_text

NOW = datetime(2031, 3, 3, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (1.9, "1 s"), (59, "59 s"), (60, "1\xa0minute"), (7200, "2\xa0hours")]
)
def test_a_length_below_a_minute_is_in_seconds(seconds, text):
    assert until_text(NOW + timedelta(seconds=seconds), NOW) == text
    assert since_text(NOW - timedelta(seconds=seconds), NOW) == text


def test_a_moment_on_the_other_side_is_no_negative_length():
    assert until_text(NOW - timedelta(seconds=3), NOW) == "0 s"


def test_a_name_at_the_beginning_of_a_message_is_quoted():
    assert as_message("charge #7 has already finished.", "charge #7") == "“charge #7” has already finished."
    assert as_message("There is no charge #7.", "charge #7") == "There is no charge #7."
