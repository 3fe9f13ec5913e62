"""The check for ``django-health-check`` answers as ``automation_health`` does."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.test import AsyncRequestFactory
from pydantic import BaseModel

from django_ai.automation import complete, engine, fail, step, workflow

pytest.importorskip("health_check.base", reason="the extra [health-check] is not installed")

from health_check.exceptions import ServiceUnavailable, ServiceWarning
from health_check.views import HealthCheckView

from django_ai.automation.contrib.telemetry import health
from django_ai.automation.contrib.telemetry.health import Automation

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def flow():
    @workflow("health:flow")
    class Flow:
        class Context(BaseModel):
            fails: bool = False

        @step(start=True)
        def go(self):
            return fail("no stock") if self.context.fails else complete()

    return Flow


def test_nothing_overdue_is_healthy(flow, work):
    Automation().run()
    engine.start(flow)
    Automation().run()
    work()
    Automation(max_failed=0, max_parked=0).run()


def test_overdue_work_without_a_worker_is_unavailable(flow, clock):
    engine.start(flow)
    clock.tick(timedelta(minutes=2))
    with pytest.raises(ServiceUnavailable, match="workflow run"):
        Automation().run()
    Automation(overdue=timedelta(minutes=5)).run()


def test_more_failed_rows_than_allowed_are_a_warning(flow, work):
    for _ in range(2):
        engine.start(flow, fails=True)
    work()
    Automation().run()
    Automation(max_failed=2).run()
    with pytest.raises(ServiceWarning, match="at most 1 may be"):
        Automation(max_failed=1).run()


def test_a_database_that_does_not_answer_is_unavailable(monkeypatch):
    def broken(*args: object) -> None:
        raise OperationalError("password authentication failed")

    monkeypatch.setattr(health, "check_health", broken)
    with pytest.raises(ServiceUnavailable) as raised:
        Automation().run()
    assert "password" not in str(raised.value)


def test_the_view_of_the_package_shows_it(flow, clock):
    name = "django_ai.automation.contrib.telemetry.health.Automation"
    view = HealthCheckView.as_view(checks=[(name, {"max_parked": 0})])

    def get() -> tuple[int, str]:
        answer = asyncio.run(view(AsyncRequestFactory().get("/health", headers={"accept": "application/json"})))
        return answer.status_code, json.dumps(json.loads(answer.content))

    assert get()[0] == 200
    engine.start(flow)
    clock.tick(timedelta(minutes=2))
    status, body = get()
    assert status == 500
    assert "Overdue" in body
