"""Operators: the admin and the commands do not mislead them, and permanent failures can trigger alerts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import Retry, agent, complete, engine, fail, handler, on_event, step, workflow
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.db.database_clock import DatabaseNow
from django_ai.automation.events.models import CallbackExecution, Event, EventClaim
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.signals import row_failed
from django_ai.automation.queues.worker_status import MAX_SILENCE
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.story.models import Probe

pytestmark = pytest.mark.django_db(transaction=True)

ONCE = Retry(max_attempts=1)
MODELS = [Event, CallbackExecution, EventClaim, WorkflowRun, Signal, AgentRun, HandlerExecution, Worker]


@pytest.fixture
def failed() -> Iterator[list[tuple[type, Any, str]]]:
    """Collect the senders, rows and reasons of the ``row_failed`` signals."""
    found: list[tuple[type, Any, str]] = []

    def hear(sender: type, row: Any, reason: str, **kwargs: Any) -> None:
        found.append((sender, row, reason))

    row_failed.connect(hear)
    yield found
    row_failed.disconnect(hear)


def url(model: Any, page: str, *arguments: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=arguments)


# -- permanent failures ------------------------------------------------------------------------------------------------


def test_61_a_callback_that_fails_for_good_is_said_once(failed, caplog, work):
    @on_event("probe_ready", retry=Retry(max_attempts=2, base_delay=timedelta(0)))
    def invoice(event):
        raise LookupError("no price")

    Probe.objects.create(name="x", ready=True)
    work()
    ((sender, row, reason),) = failed
    assert (sender, row.status) == (CallbackExecution, "failed")
    assert "no price" in reason
    errors = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert [each.getMessage().partition(": ")[2] for each in errors if "failed for good" in each.getMessage()] == [
        "LookupError: no price"
    ]


@pytest.mark.parametrize("how", ["raises", "returns"])
def test_61_a_run_that_fails_for_good_is_said_once(failed, caplog, work, how):
    @workflow("shaky", default_retry=ONCE)
    class Shaky:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            if how == "raises":
                raise LookupError("no room")
            return fail("no room")

    run = engine.start("shaky")
    work()
    ((sender, row, reason),) = failed
    assert (sender, row.pk, row.status) == (WorkflowRun, run.pk, "failed")
    assert "no room" in reason
    assert "failed for good" in caplog.text


def test_61_a_run_that_completes_says_nothing(failed, work):
    @workflow("sound")
    class Sound:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return complete()

    engine.start("sound")
    work()
    assert failed == []


def test_61_handlers_and_agents_that_fail_for_good_are_said(failed, work):
    @agent("keeper", spawn_on="probe_ready", default_retry=ONCE)
    class Versioned:
        class Context(BaseModel):
            name: str

        @classmethod
        def create_context(cls, event):
            if event.entity.name == "unborn":
                raise LookupError("no Context")
            return cls.Context(name=event.entity.name)

        @handler("probe_ready")
        def note(self, ctx):
            raise LookupError("no pen")

    Probe.objects.create(name="lives", ready=True)
    Probe.objects.create(name="unborn", ready=True)
    work()
    said = {sender: reason for sender, _, reason in failed}
    assert set(said) == {HandlerExecution, AgentRun}
    assert "no pen" in said[HandlerExecution]
    assert "no Context" in said[AgentRun]


def test_61_a_receiver_that_raises_breaks_nothing(work):
    def broken(sender: type, **kwargs: Any) -> None:
        raise RuntimeError("the pager is down")

    @on_event("probe_ready", retry=ONCE)
    def invoice(event):
        raise LookupError("no price")

    row_failed.connect(broken)
    try:
        Probe.objects.create(name="x", ready=True)
        work()
    finally:
        row_failed.disconnect(broken)
    row = CallbackExecution.objects.get()
    assert (row.status, row.losses, row.lease, row.wake_at) == ("failed", 0, None, None)


# -- permissions and actions in the admin ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_61_nobody_deletes_a_row_by_hand(client, model):
    client.force_login(User.objects.create_superuser("root", password="x"))
    run = WorkflowRun.objects.create(name="held")
    page = client.get(url(model, "changelist"))
    assert "delete_selected" not in page.content.decode()
    if model is WorkflowRun:
        assert client.get(url(model, "delete", run.pk)).status_code == 403
        client.post(
            url(model, "changelist"), {"action": "delete_selected", "_selected_action": [run.pk], "post": "yes"}
        )
        assert WorkflowRun.objects.filter(pk=run.pk).exists()


def test_61_a_viewer_cannot_ask_about_what_he_may_not_see(client):
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.set(
        Permission.objects.filter(codename__startswith="view_").exclude(codename__contains="data")
    )
    client.force_login(viewer)
    for model, lookup in [
        (WorkflowRun, "waits__match__email"),
        (WorkflowRun, "data__iban"),
        (EventClaim, "match__email"),
    ]:
        assert client.get(url(model, "changelist"), {lookup: "x"}).status_code == 400, lookup


def test_61_a_row_that_awaits_code_is_not_called_resumed_without_a_word(client):
    client.force_login(User.objects.create_superuser("root", password="x"))
    now = timezone.now()
    awaiting_deploy = WorkflowRun.objects.create(name="gone", status="parked", error="gone", parked_at=now, wake_at=now)
    for_person = WorkflowRun.objects.create(name="held", status="parked", error="held", parked_at=now)
    chosen = {"action": "resume", "_selected_action": [awaiting_deploy.pk, for_person.pk]}
    text = client.post(url(WorkflowRun, "changelist"), chosen, follow=True).content.decode()
    assert "Resumed: 2." in text
    assert "1 of them had been parked because their code was missing" in text


# -- output of the commands --------------------------------------------------------------------------------------------

EVIL = "boom \x1b[2J\x1b]0;owned\x07\nworkflow 7: all is well\r\u202e"


def said(*arguments: object, **options: object) -> str:
    out = StringIO()
    try:
        call_command(*arguments, stdout=out, stderr=out, **options)
    except CommandError as error:
        out.write(f"EXIT: {error}")
    return out.getvalue()


def test_61_no_escape_sequence_reaches_the_terminal_or_the_log(caplog):
    WorkflowRun.objects.create(name=EVIL, status="parked", error=EVIL, parked_at=timezone.now())
    for text in (said("automation_resume"), said("automation_health", explain=True)):
        lines = text.splitlines()
        assert not [line for line in lines if line.startswith("workflow 7:")]
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
        assert "boom" in text
    row_failed.send_robust(WorkflowRun, row=EVIL.replace("\n", " "), reason=EVIL)
    assert "\x1b" not in caplog.records[-1].getMessage()


def test_61_the_hint_of_a_parked_row_is_there_in_full():
    hint = "Restore the step. " + 60 * "Long names make long hints. " + "Then run manage.py automation_resume."
    run = WorkflowRun.objects.create(name="held", status="parked", error=hint, parked_at=timezone.now())
    assert hint in run.waits_for(timezone.now())
    assert hint in said("automation_health", explain=True)


def test_61_a_key_that_is_not_resumed_says_why():
    failed = WorkflowRun.objects.create(name="x", status="failed", error="E", finished_at=timezone.now())
    done = WorkflowRun.objects.create(name="x", status="completed")
    assert f"workflow {failed.pk} has failed; add --failed" in said("automation_resume", "workflow", pk=[failed.pk])
    assert f"workflow {done.pk} is completed" in said("automation_resume", "workflow", pk=[done.pk])
    assert "There is no workflow with the primary key 987654" in said("automation_resume", "workflow", pk=[987654])
    assert "add --failed" in said("automation_resume", "workflow", pk=[failed.pk], dry_run=True)
    assert "Resumed: 1." in said("automation_resume", "workflow", pk=[failed.pk], failed=True)


def test_61_the_command_says_what_will_be_parked_again():
    now = timezone.now()
    WorkflowRun.objects.create(name="gone", status="parked", error="gone", parked_at=now, wake_at=now)
    text = said("automation_resume", all=True)
    assert "Resumed: 1." in text
    assert "1 of them had been parked because their code was missing" in text


# -- workers in automation_health and in the admin ---------------------------------------------------------------------


def worker(name: str, **values: Any) -> Worker:
    now = {"started_at": DatabaseNow(), "seen_at": DatabaseNow()}
    return Worker.objects.create(name=name, runtime="worker", host=name, pid=1, **now | values)


def test_61_health_says_that_nobody_works_and_counts_what_failed():
    worker("late", stopped_at=DatabaseNow())
    WorkflowRun.objects.create(name="x", status="failed", error="E", finished_at=timezone.now())
    WorkflowRun.objects.create(name="x", status="parked", error="E", parked_at=timezone.now())
    engine.start("story:nap", seconds=60)
    text = said("automation_health", max_failed=0)
    assert "Healthy" not in text
    assert text.startswith("No worker is alive; late:1 was seen last")
    assert "Failed: 1 workflow run(s). Parked: 1 workflow run(s)." in text
    assert "EXIT: 1 row(s) have failed, and --max-failed=0." in text
    worker("idle")
    assert said("automation_health").startswith("Healthy: nothing is overdue. 1 worker is alive.")


def test_61_the_admin_says_which_workers_are_alive(client):
    client.force_login(User.objects.create_superuser("root", password="x"))
    worker("idle", queues="workflows,agents")
    worker("killed", seen_at=DatabaseNow() - MAX_SILENCE)
    worker("ended", stopped_at=DatabaseNow(), worked={"events": 3})
    page = client.get(url(Worker, "changelist")).content.decode()
    rows = {found[0]: found[1:] for found in re.findall(r"(idle|killed|ended):1<.*?state\">(\w+).*?</tr>", page, re.S)}
    assert rows == {"idle": ("alive",), "killed": ("dead",), "ended": ("stopped",)}
    assert "workflows, agents" in page
    assert client.get(url(Worker, "change", Worker.objects.latest("pk").pk)).status_code == 200
