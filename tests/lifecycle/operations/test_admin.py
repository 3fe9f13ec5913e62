"""The admin shows what a row waits for, and its actions cancel and resume. A view-only user cannot run them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import Signal, StepExecution, WorkflowRun, WorkflowStatus
from tests.apps.story.models import Probe
from tests.support.cancelled_runs import SAVED, patient

pytestmark = pytest.mark.django_db(transaction=True)

PAGES = ["event", "callbackexecution", "workflowrun", "signal"]


def page(model: str, kind: str = "changelist", *arguments: object) -> str:
    app = "automation_events" if model in PAGES[:2] else "automation_workflows"
    return reverse(f"admin:{app}_{model}_{kind}", args=arguments)


@pytest.fixture
def story(client):
    client.force_login(User.objects.create_superuser("root", password="x"))
    probe = Probe.objects.create(name="shown", ready=True, due_at=timezone.now())
    run = engine.start("story:listen")
    engine.signal("nobody:hears", {"a": 1})
    drain()
    return probe, run


def act(client, model: str, action: str, *pks: int):
    return client.post(page(model), {"action": action, "_selected_action": list(pks)}, follow=True)


@pytest.mark.parametrize("model", PAGES)
def test_pages_show_rows_and_their_details(client, story, model):
    assert client.get(page(model)).status_code == 200
    kind = {"event": Event, "callbackexecution": CallbackExecution, "workflowrun": WorkflowRun, "signal": Signal}[model]
    row = kind.objects.first()
    details = client.get(page(model, "change", row.pk))
    assert details.status_code == 200
    assert client.get(page(model, "add")).status_code == 403


def test_a_run_says_what_it_waits_for(client, story):
    assert "story:word" in client.get(page("workflowrun")).content.decode()


def test_a_run_says_which_events_cancel_it(client, story):
    patient("patient", SAVED)
    run = engine.start("patient", order=7)
    drain()
    details = client.get(page("workflowrun", "change", run.pk)).content.decode()
    assert "the event &#x27;order_saved&#x27; with {&#x27;pk&#x27;: 7}" in details
    engine.cancel(run)
    assert "the event &#x27;order_saved&#x27;" not in client.get(page("workflowrun", "change", run.pk)).content.decode()


def test_the_progress_of_a_run_is_a_percentage(client, story):
    _, run = story
    assert "%</td>" not in client.get(page("workflowrun")).content.decode()
    WorkflowRun.objects.filter(pk=run.pk).update(progress=0.4)
    assert "40%</td>" in client.get(page("workflowrun")).content.decode()
    assert "40%" in client.get(page("workflowrun", "change", run.pk)).content.decode()


def test_cancel_and_resume(client, story):
    _, run = story
    assert "Cancelled: 1." in act(client, "workflowrun", "cancel", run.pk).content.decode()
    run.refresh_from_db()
    assert (run.status, run.error) == (WorkflowStatus.CANCELLED, "Cancelled by root.")
    refused = act(client, "workflowrun", "resume", run.pk).content.decode()
    assert "only a parked or failed run can be resumed" in refused

    parked = engine.start("story:count", steps=1)
    WorkflowRun.objects.filter(pk=parked.pk).update(status=WorkflowStatus.PARKED, wake_at=None, error="a reason")
    assert "a reason" in client.get(page("workflowrun")).content.decode()
    assert "Resumed: 1." in act(client, "workflowrun", "resume", parked.pk).content.decode()
    drain()
    parked.refresh_from_db()
    assert parked.status == WorkflowStatus.COMPLETED
    assert StepExecution.objects.filter(run=parked).count() == 1


def test_cancel_an_event(client, story):
    probe = Probe.objects.create(name="later", due_at=timezone.now() + timedelta(days=1))
    event = Event.objects.of(probe).get(event_name="probe_due")
    act(client, "event", "cancel", event.pk)
    event.refresh_from_db()
    assert event.status == "cancelled"
    assert event.wake_at is None


def test_who_may_only_look_cannot_act(client, story):
    _, run = story
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(viewer)
    assert client.get(page("workflowrun")).status_code == 200
    act(client, "workflowrun", "cancel", run.pk)
    run.refresh_from_db()
    assert run.status == WorkflowStatus.SUSPENDED
