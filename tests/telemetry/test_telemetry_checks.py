"""``AUTOMATION["TELEMETRY"]`` and the settings of alerts: what is wrong is reported, what is listed is connected."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from django_ai.automation.contrib.telemetry import alerts, checks, extras
from django_ai.automation.queues.checks import check_apps
from django_ai.automation.queues.signals import row_failed

SHARED = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"}}
GOOD = {"TELEMETRY": ["alerts"], "ALERT_MAIL": True}


def problems(caches: Any = SHARED, admins: Any = ("night@example.com",), **values: Any) -> list[str]:
    with override_settings(AUTOMATION={**GOOD, **values}, CACHES=caches, ADMINS=list(admins)):
        return [f"{each.id} {each.msg} {each.hint}" for each in checks.check_telemetry(None)]


def test_good_settings_have_no_problem():
    assert problems() == []
    assert problems(ALERT_WEBHOOK="https://alerts.example.com/x?y=z") == []
    assert problems(TELEMETRY=[], ALERT_CACHE="nowhere") == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"TELEMETRY": ["alert"]}, ["automation.E401", "'alert'", "Did you mean 'alerts'?"]),
        ({"TELEMETRY": ["x"]}, ["automation.E401", "Known: alerts, prometheus, opentelemetry, sentry"]),
        ({"ALERT_MAIL": False}, ["automation.W403", "ALERT_WEBHOOK"]),
        ({"admins": []}, ["automation.W404", "ADMINS"]),
        ({"ALERT_WEBHOOK": "alerts.example.com"}, ["automation.E405", "https://"]),
        ({"ALERT_WEBHOOK": "ftp://alerts.example.com"}, ["automation.E405"]),
        ({"ALERT_WEBHOOK": "https://alerts.example.com:port/"}, ["automation.E405"]),
        ({"ALERT_CACHE": "defaults"}, ["automation.E408", "Did you mean 'default'?"]),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(values, words):
    found = " ".join(problems(**values))
    assert [word for word in words if word not in found] == []


def test_a_cache_of_one_process_is_reported():
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert "automation.W409" in " ".join(problems(caches))


def test_a_secret_that_cannot_sign_is_reported_without_its_value():
    pytest.importorskip("standardwebhooks")
    (found,) = problems(ALERT_WEBHOOK="https://example.com", ALERT_WEBHOOK_SECRET="x")
    assert "automation.E407" in found
    assert "'x'" not in found


def test_a_secret_without_the_library_is_reported(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    (found,) = problems(ALERT_WEBHOOK="https://example.com", ALERT_WEBHOOK_SECRET="d2h5")
    assert "automation.E406" in found
    assert "[webhooks]" in found


def test_a_library_that_is_missing_is_reported_and_keeps_no_process_from_starting(monkeypatch, caplog):
    missing = extras.Extra("nothing", "a_library_that_is_missing", "a-library")
    monkeypatch.setitem(extras.EXTRAS, "missing", missing)
    with override_settings(AUTOMATION={"TELEMETRY": ["missing"]}):
        extras.connect_listed()
        (found,) = checks.check_telemetry(None)
    assert found.id == "automation.E402"
    assert "a-library is not installed" in caplog.text


def test_only_what_is_listed_is_connected():
    def are_connected() -> bool:
        return any("alert_failed" in str(key) for (key, *_) in [each[0] for each in row_failed.receivers])

    with override_settings(AUTOMATION={}):
        extras.connect_listed()
    assert not are_connected()
    with override_settings(AUTOMATION={"TELEMETRY": ["alerts", "unknown"]}):
        extras.connect_listed()
    assert are_connected()
    alerts.disconnect()
    assert not are_connected()


def test_wrong_settings_are_left_to_the_check_of_settings():
    with override_settings(AUTOMATION={"TELEMETRY": "alerts"}):
        extras.connect_listed()
        assert checks.check_telemetry(None) == []


def test_a_list_without_the_app_is_reported():
    with override_settings(
        AUTOMATION={"TELEMETRY": ["alerts"]},
        INSTALLED_APPS=["django.contrib.contenttypes", "django_ai.automation.queues"],
    ):
        found = [each for each in check_apps(None) if each.id == "automation.W020"]
    assert "django_ai.automation.contrib.telemetry" in found[0].hint
