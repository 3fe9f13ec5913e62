"""``manage.py check`` reports settings, drivers and models of a project that automations do not support."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from django.core.checks import ERROR, WARNING, run_checks
from django.db import connection, models
from django.test import override_settings
from django.test.utils import isolate_apps

from django_ai.automation.events import checks
from django_ai.automation.events.definitions import EventDefinition

pytestmark = pytest.mark.django_db


def found(number: str) -> list[tuple[int, str, str]]:
    return [(each.level, each.msg, each.hint or "") for each in run_checks() if each.id == f"automation.{number}"]


def test_52_naive_moments_are_refused():
    assert found("E013") == []
    with override_settings(USE_TZ=False):
        ((level, said, hint),) = found("E013")
    assert (level, hint[:18]) == (ERROR, "Set USE_TZ = True.")
    assert said.startswith("USE_TZ is False")


@pytest.mark.parametrize("vendor", ["postgresql", "sqlite", "mysql"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_52_psycopg2_is_refused(monkeypatch, vendor, driver):
    monkeypatch.setattr(connection, "vendor", vendor)
    monkeypatch.setattr(connection, "Database", SimpleNamespace(__name__=driver))
    problems = found("E014")
    assert len(problems) == (vendor == "postgresql" and driver == "psycopg2")
    for level, said, hint in problems:
        assert level == ERROR
        assert "'default'" in said
        assert "psycopg[binary]" in hint


@pytest.mark.parametrize("is_on", [True, False])
def test_52_atomic_requests_on_sqlite_are_warned_of(monkeypatch, is_on):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", is_on)
    problems = found("W015")
    assert len(problems) == (is_on and connection.vendor == "sqlite")
    for level, said, hint in problems:
        assert level == WARNING
        assert "write lock" in said
        assert "non_atomic_requests" in hint


@isolate_apps("tests.apps.reservations")
def test_52_a_composite_primary_key_is_refused(monkeypatch):
    class Seat(models.Model):
        pk = models.CompositePrimaryKey("hall", "number")
        hall = models.IntegerField()
        number = models.IntegerField()

        events = [EventDefinition("seat_taken")]

        class Meta:
            app_label = "app"

    monkeypatch.setattr(checks, "declaring_models", lambda: [Seat])
    (problem,) = [each for each in checks.check_definitions(None) if each.id == "automation.E111"]
    assert (problem.level, problem.obj) == (ERROR, Seat)
    assert problem.msg.startswith("app.Seat declares events and has a CompositePrimaryKey")
    assert "UniqueConstraint" in problem.hint
