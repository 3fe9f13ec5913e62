"""A mute silences the alerts of one group of errors: no other error of the same kind, and only while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import django
import pytest
from django.core import mail
from django.core.cache import caches
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import engine, fail, step, workflow
from django_ai.automation.contrib.telemetry import alerts
from django_ai.automation.queues.models import MutedProblem
from django_ai.automation.workflows.models import WorkflowRun

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def connected(settings: Any) -> Iterator[None]:
    settings.ADMINS = ["night@example.com"] if django.VERSION >= (6,) else [("Night", "night@example.com")]
    settings.AUTOMATION = {**settings.AUTOMATION, "ALERT_MAIL": True, "ALERT_TIMEOUT": timedelta(seconds=20)}
    caches["default"].clear()
    alerts._sent_here.clear()
    alerts.connect()
    yield
    alerts.disconnect()
    assert alerts.flush()


@pytest.fixture(autouse=True)
def failing() -> None:
    for name in ("muted:sells", "muted:rents"):

        @workflow(name)
        class Fails:
            class Context(BaseModel):
                reason: str

            @step(start=True)
            def go(self):
                return fail(self.context.reason)


def alerted(work: Any, *failures: tuple[str, str]) -> list[str]:
    """Let runs fail, and return what the mails say of each: the workflow and the error."""
    mail.outbox.clear()
    caches["default"].clear()  # as if the interval of each group were over
    for name, reason in failures:
        engine.start(name, reason=reason)
    work()
    assert alerts.flush()
    known = [f"{name}: {reason}" for name, reason in dict.fromkeys(failures)]
    return [text for sent in mail.outbox for text in known if all(part in sent.body for part in text.split(": "))]


def muted_run(work: Any) -> WorkflowRun:
    """Return a failed run whose group is muted."""
    assert alerted(work, ("muted:sells", "no stock of item 1")) == ["muted:sells: no stock of item 1"]
    run = WorkflowRun.objects.get()
    engine.mute(run, reason="It is ordered.")
    return run


def test_a_muted_group_is_silent_and_another_error_of_the_same_kind_is_alerted(work: Any) -> None:
    muted_run(work)
    again, other = ("muted:sells", "no stock of item 27"), ("muted:sells", "the card was refused")
    assert alerted(work, again, again, other) == ["muted:sells: the card was refused"]
    assert len(mail.outbox) == 1
    assert WorkflowRun.objects.filter(status="failed").count() == 4


def test_the_same_error_of_another_workflow_is_alerted(work: Any) -> None:
    muted_run(work)
    same = ("muted:rents", "no stock of item 1")
    assert alerted(work, ("muted:sells", "no stock of item 1"), same) == ["muted:rents: no stock of item 1"]
    assert len(mail.outbox) == 1


def test_the_same_workflow_in_another_state_is_alerted(work: Any) -> None:
    muted_run(work)
    run = engine.start("muted:sells", reason="no stock of item 1")
    WorkflowRun.objects.filter(pk=run.pk).update(data={"reason": []})
    mail.outbox.clear()
    caches["default"].clear()
    work()
    assert alerts.flush()
    (sent,) = mail.outbox
    assert "workflow parked" in sent.subject


@pytest.mark.parametrize("how", ["unmuted", "expired"])
def test_a_mute_that_has_ended_is_alerted_again(work: Any, how: str) -> None:
    run = muted_run(work)
    failure = ("muted:sells", "no stock of item 2")
    assert alerted(work, failure) == []
    if how == "unmuted":
        assert engine.unmute(run)
    else:
        assert MutedProblem.objects.update(until=timezone.now() - timedelta(days=1)) == 1
    assert alerted(work, failure) == ["muted:sells: no stock of item 2"]
