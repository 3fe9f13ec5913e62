"""Scenario 38: without a configured runtime, only workers perform work. A web request does so only with "inline"."""

from __future__ import annotations

import pytest
from django.core.checks import run_checks

from django_ai.automation import engine
from django_ai.automation.queues import notifier
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def choose(settings):
    """Return a function that configures a project without Django-Q2 and with this runtime, or with none."""

    def chosen(name: str) -> None:
        settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django_q"]
        settings.AUTOMATION = {**settings.AUTOMATION, "RUNTIME": name}
        notifier.set_notifier(None)

    return chosen


def status() -> str:
    return str(WorkflowRun.objects.get().status)


def deploy_warnings() -> list[str]:
    found = [each for each in run_checks(include_deployment_checks=True) if each.id == "automation.W012"]
    return [each.msg for each in found]


def test_38_by_default_a_request_performs_nothing(choose):
    choose("")
    assert isinstance(notifier.get_notifier(), notifier.WorkerNotifier)
    engine.start("story:count", steps=1)
    assert status() == "running"
    drain(heartbeat=True)
    assert status() == "completed"


def test_38_inline_performs_at_once_for_who_asks(choose):
    choose("inline")
    engine.start("story:count", steps=1)
    assert status() == "completed"


def test_38_a_deployment_is_told_what_it_runs_on(choose):
    choose("")
    assert ["is not set and Django-Q2 is not installed" in said for said in deploy_warnings()] == [True]
    choose("inline")
    assert ["'inline'" in said for said in deploy_warnings()] == [True]
    choose("worker")
    assert deploy_warnings() == []
