"""Settings are typed and read lazily; the error for an unknown setting suggests the nearest name."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import override_settings

from django_ai.automation.conf import Conf, conf, problems
from django_ai.automation.exceptions import SettingsError
from django_ai.automation.queues.notifier import InlineNotifier, SilentNotifier, get_notifier
from django_ai.automation.queues.runtimes.q2 import Q2Notifier


def test_defaults_without_any_setting():
    with override_settings(AUTOMATION={}):
        assert conf() == Conf()
    lease = conf().LEASE
    assert lease == timedelta(seconds=10)


def test_settings_are_read_when_they_change():
    with override_settings(AUTOMATION={"GRACE": timedelta(hours=1)}):
        assert conf() == Conf(GRACE=timedelta(hours=1))
    assert conf().GRACE == Conf().GRACE


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"LEESE": timedelta(1)}, "Did you mean 'LEASE'"),
        ({"QQQQ": 1}, "Known: RUNTIME"),
        ({"LEASE": 10}, "must be a timedelta, not int (10)"),
        ({"BATCH": "20"}, "must be a int, not str ('20')"),
        ({"BATCH": True}, "must be a int, not bool"),
        ({"BATCH": 0}, "at least 1"),
        ({"LEASE": timedelta(0)}, "must be positive"),
        ({"LEASE": timedelta(seconds=5), "HEARTBEAT": timedelta(seconds=3)}, "at most half"),
        ([], "must be a dict"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(values, words):
    assert words in " ".join(problems(values))
    with override_settings(AUTOMATION=values), pytest.raises(SettingsError) as raised:
        conf()
    assert words in str(raised.value)


def test_all_problems_are_reported_at_once():
    assert len(problems({"LEESE": 1, "BATCH": "x", "GRACE": None})) == 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("inline", InlineNotifier),
        ("silent", SilentNotifier),
        ("q2", Q2Notifier),
        ("", Q2Notifier),
        ("django_ai.automation.queues.notifier.InlineNotifier", InlineNotifier),
    ],
)
def test_the_executor_is_a_setting(name, kind):
    with override_settings(AUTOMATION={"RUNTIME": name}):
        assert type(get_notifier()) is kind
    assert type(get_notifier()) is SilentNotifier


@pytest.mark.parametrize("name", ["celery?", "nowhere.Executor", "tests.settings.Nothing"])
def test_an_executor_that_is_not_there_is_named(name):
    with override_settings(AUTOMATION={"RUNTIME": name}), pytest.raises(SettingsError, match="RUNTIME"):
        get_notifier()
