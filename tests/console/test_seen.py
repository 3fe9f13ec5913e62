"""The pages of what waits say what has been seen that did not match."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import complete, engine, step, wait_for_event, workflow
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.seen import seen_by_run
from tests.apps.front_desk.models import Booking, Message, Person
from tests.support.agents import counting_companion

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def waiting(clock, work):
    """A run that waits for an urgent message of one guest."""

    @workflow("answering")
    class Answering:
        class Context(BaseModel):
            guest_id: int

        @step(start=True)
        def begin(self):
            match = {"sender_id": "{{ ctx.guest_id }}", "urgency__gte": 5}
            return wait_for_event("message_received", match=match, then=self.end)

        @step
        def end(self):
            return complete()

    guest = Person.objects.create()
    run = engine.start("answering", guest_id=guest.pk)
    work()
    run.refresh_from_db()
    return run


def test_a_run_shows_the_fields_that_differ(client, waiting, work):
    guest = Person.objects.get()
    other = Person.objects.create()
    Message.objects.create(sender=other, urgency=9)
    Message.objects.create(sender=guest, urgency=1)
    work()
    waiting.refresh_from_db()
    seen = seen_by_run(waiting)
    assert [[each.name for each in one.failing] for one in seen] == [["match: urgency__gte"], ["match: sender_id"]]
    newest = Event.objects.order_by("-position").first()
    page = reverse("admin:automation_workflows_workflowrun_change", args=[waiting.pk])
    client.force_login(User.objects.create_superuser("root"))
    shown = f"Seen, and did not match: message_received #{newest.pk} (match: urgency__gte 5 ≠ 1)"
    assert shown in client.get(page).content.decode()
    viewer = User.objects.create_user("vera", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_workflowrun"))
    client.force_login(viewer)
    content = client.get(page).content.decode()
    assert f"message_received #{newest.pk} (match: urgency__gte)" in content, "without the values"


def test_what_matched_or_came_before_is_not_listed(waiting, work):
    guest = Person.objects.get()
    assert seen_by_run(waiting) == []
    Message.objects.create(sender=guest, urgency=9)
    work()
    waiting.refresh_from_db()
    assert (waiting.status, seen_by_run(waiting)) == ("completed", [])


def test_an_agent_shows_what_its_match_has_left_out(client, clock, work):
    counting_companion()
    guest, other = Person.objects.create(), Person.objects.create()
    Booking.objects.create(guest=guest)
    work()
    Message.objects.create(sender=guest)
    Message.objects.create(sender=other)
    work()
    client.force_login(User.objects.create_superuser("root"))
    page = reverse("admin:automation_agents_agentrun_change", args=[AgentRun.objects.get().pk])
    newest = Event.objects.filter(event_name="message_received").order_by("-position").first()
    content = client.get(page).content.decode()
    assert f"message_received #{newest.pk} (match: sender_id {guest.pk} ≠ {other.pk})" in content
    assert content.count("Seen, and did not match") == 1
