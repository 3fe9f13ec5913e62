"""The pages of runs, agents and events tell what happened, what they wait for, and what comes next."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    acting_as,
    complete,
    engine,
    event_workflow,
    goto,
    on_event,
    run_subflow,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.reservations.models import Reservation
from tests.support.agents import counting_companion

pytestmark = pytest.mark.django_db(transaction=True)


class Charging:
    """Charges a guest.

    The second line is not shown.
    """

    class Context(BaseModel):
        guest: str = "Ada"
        cents: int = 100

    @step(start=True)
    def price(self):
        self.context.cents += 1
        return goto(self.charge, progress=0.4)

    @step(retry=Retry(max_attempts=2, base_delay=timedelta(0)))
    def charge(self):
        if self.context.guest == "Bob":
            raise ValueError("card <4242> was refused")
        return wait("desk:answer", timeout=timedelta(hours=4), then=self.book, on_timeout=self.give_up)

    @step
    def book(self):
        return complete()

    @step
    def give_up(self):
        return complete()


@pytest.fixture
def charging():
    return workflow("charging")(type("Charging", (Charging,), {"__doc__": Charging.__doc__}))


def user_with(client, *permissions: str) -> User:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


@pytest.fixture
def root(client) -> User:
    user = User.objects.create_superuser("root", password="x")
    client.force_login(user)
    return user


def address(row, kind="change") -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_{kind}", args=[row.pk])


def shown(client, row) -> str:
    """Return the story on the page of a row: its text without tags and without its graph, in one line."""
    answer = client.get(address(row))
    assert answer.status_code == 200
    return text_of(answer.content.decode())


def text_of(page: str) -> str:
    story = page[page.index('<div class="automation-story">') : page.index('<details class="automation-columns">')]
    story = re.sub(r'<section aria-labelledby="automation-flow">.*?</section>', "", story, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", story)).split())


def test_a_run_that_waits_says_for_what_and_what_comes_next(client, root, charging):
    run = engine.start("charging")
    drain()
    story = shown(client, run)
    assert "It waits for the signal 'desk:answer', until " in story
    assert "Charges a guest. Workflow charging, version 1" in story
    assert "The second line" not in story
    assert "then book, or give_up after the timeout" in story
    assert "book may follow" in story
    assert "Progress 40%" in story
    assert '"cents": 101' in story
    assert "cents: 100 → 101" in story
    past = story[story.index("What happened") :]
    assert past.index("charge waited") < past.index("price continued at another step") < past.index("Created")
    assert "Resume" not in story, "it is neither parked nor failed"
    assert "Unpause" not in story
    assert "Cancel" in story


def test_a_run_that_failed_shows_the_projects_code_first(client, root, charging):
    run = engine.start("charging", guest="Bob")
    drain()
    page = client.get(address(run)).content.decode()
    story = text_of(page)
    assert story.index("ValueError: card <4242> was refused") < story.index("test_pages.py:")
    assert 'raise ValueError("card <4242> was refused")' in story
    assert "run_session.py" in story[story.index("Whole traceback") :]
    assert "attempts: 2" in story
    assert "attempt 1: raised an error: ValueError: card <4242> was refused" in story
    assert "nothing is planned" not in story.lower(), "an ended run needs no section about its future"
    assert "Resume: try again now" in story
    assert "Cancel" not in story
    assert "<4242>" not in page


def test_the_button_tries_again_and_its_history_says_who(client, root, charging):
    run = engine.start("charging", guest="Bob")
    drain()
    WorkflowRun.objects.filter(pk=run.pk).update(data={"guest": "Eve", "cents": 7})
    assert 'name="reason"' in client.get(address(run)).content.decode()
    answer = client.post(address(run, "act"), {"action": "resume", "reason": "Mended."}, follow=True)
    assert answer.redirect_chain[0][0] == address(run)
    assert "Resumed: 1." in answer.content.decode()
    drain()
    engine.signal("desk:answer", run=run)
    drain()
    story = shown(client, run)
    assert "It has completed." in story
    assert "root: Resumed: Mended." in story
    assert "Signal desk:answer consumed" in story
    assert "Took" in story


def test_a_viewer_has_no_button_and_sees_no_data(client, charging):
    run = engine.start("charging")
    drain()
    user_with(client, "view_workflowrun")
    page = client.get(address(run)).content.decode()
    story = text_of(page)
    assert "You may not see the data of this row." in story
    assert "cents" not in story
    assert "→" not in story
    assert "automation-deeds" not in page
    for action in ("resume", "cancel", "cancel_at_once", "pause", "unpause", "delete_selected", "none", ""):
        assert client.post(address(run, "act"), {"action": action}).status_code == 403
    run.refresh_from_db()
    assert run.status == "suspended"


def test_a_permission_to_cancel_is_no_permission_to_pause(client, charging):
    run = engine.start("charging")
    drain()
    user_with(client, "view_workflowrun", "cancel_workflowrun")
    story = shown(client, run)
    assert "Cancel" in story
    assert "Pause" not in story
    assert client.post(address(run, "act"), {"action": "pause"}).status_code == 403
    assert client.post(address(run, "act"), {"action": "cancel"}).status_code == 302
    run.refresh_from_db()
    assert (run.status, run.error) == ("cancelled", "Cancelled by ann.")
    assert shown(client, run).count("Cancelled by ann.") == 1


def test_who_may_not_view_may_not_act(client, charging):
    run = engine.start("charging")
    drain()
    user_with(client, "cancel_workflowrun")
    assert client.get(address(run)).status_code == 403
    assert client.post(address(run, "act"), {"action": "cancel"}).status_code == 403
    client.logout()
    assert client.post(address(run, "act"), {"action": "cancel"}).status_code == 302  # to the login
    run.refresh_from_db()
    assert run.status == "suspended"


def test_an_action_needs_a_post_and_a_row(client, root, charging):
    run = engine.start("charging")
    assert client.get(address(run, "act")).status_code == 405
    gone = reverse("admin:automation_workflows_workflowrun_act", args=[run.pk + 1])
    answer = client.post(gone, {"action": "cancel"}, follow=True)
    assert answer.redirect_chain[-1][0] == reverse("admin:index")


def test_a_paused_run_can_be_unpaused(client, root, charging):
    run = engine.start("charging")
    client.post(address(run, "act"), {"action": "pause"})
    story = shown(client, run)
    assert "It waits for the end of the pause of" in story
    assert "Unpause" in story
    client.post(address(run, "act"), {"action": "unpause"})
    assert "the end of the pause" not in shown(client, run)


def test_the_page_opens_when_the_code_of_a_run_is_gone(client, root):
    run = engine.start("story:count", steps=1)
    WorkflowRun.objects.filter(pk=run.pk).update(name="gone")
    drain()
    story = shown(client, run)
    assert "Parked" in story
    assert "It waits for missing code" in story


def test_a_child_and_its_parent_link_to_each_other(client, root):
    @workflow("child")
    class Child:
        class Context(BaseModel):
            pass

        @step(start=True)
        def only(self):
            return wait("never")

    @workflow("parent")
    class Parent:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return run_subflow("child", then=self.end)

        @step
        def end(self):
            return complete()

    parent = engine.start("parent")
    drain()
    child = WorkflowRun.objects.get(name="child")
    page = client.get(address(parent)).content.decode()
    assert f'href="{address(child)}"' in page
    assert f"Child run {child}" in text_of(page)
    page = client.get(address(child)).content.decode()
    assert f'href="{address(parent)}"' in page
    assert f"Started by {parent}" in text_of(page)


def test_long_histories_are_cut_and_take_as_many_queries(client, root, charging):
    short, long = engine.start("charging"), engine.start("charging")
    drain()
    now = timezone.now()
    StepExecution.objects.bulk_create(
        StepExecution(run=long, step="charge", visit=10 + n, attempt=1, started=now, finished=now, outcome="goto")
        for n in range(1000)
    )
    shown(client, short)
    counts = []
    for run in (short, long):
        with CaptureQueriesContext(connection) as queries:
            story = shown(client, run)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 30
    assert story.count("charge continued") == 50
    assert "Older entries are not shown." in story


def test_an_agent_shows_its_mailbox(client, root):
    counting_companion()
    guest, other = Person.objects.create(name="Ada"), Person.objects.create(name="Bob")
    Booking.objects.create(guest=guest)
    drain()
    Message.objects.create(sender=guest, text="hello")
    Message.objects.create(sender=other, text="not for her")
    drain()
    agent = AgentRun.objects.get()
    story = shown(client, agent)
    assert "It waits for its events." in story
    assert "heard handled message_received" in story
    assert "created handled booking_created" in story
    assert story.count("handled message_received") == 1
    assert "Seen, and did not match: message_received" in story
    assert '"count": 1' in story
    assert "Complete" in story
    HandlerExecution.objects.filter(handler="heard").update(status="failed", error=RAISED)
    story = shown(client, agent)
    assert "heard did not handle message_received" in story
    assert "KeyError: 'room'" in story


RAISED = "Traceback (most recent call last):\n  File \"/srv/a.py\", line 3, in heard\n    x\nKeyError: 'room'"


def test_an_agent_with_many_executions_takes_as_many_queries(client, root):
    counting_companion()
    guest = Person.objects.create(name="Ada")
    Booking.objects.create(guest=guest)
    drain()
    agent = AgentRun.objects.get()
    Message.objects.create(sender=guest, text="hello")
    drain()
    shown(client, agent)
    with CaptureQueriesContext(connection) as few:
        shown(client, agent)
    for _ in range(60):
        Message.objects.create(sender=guest, text="hello")
    drain()
    with CaptureQueriesContext(connection) as many:
        story = shown(client, agent)
    assert len(many) <= len(few) <= 30
    assert story.count("heard handled") == 50
    assert "Older entries are not shown." in story


def test_an_event_shows_what_its_subscribers_will_do_and_did(clock, client, root):
    @on_event("checkin_due", name="greet")
    def greet(event):
        raise LookupError("no key")

    @event_workflow("checkin_due", name="stay")
    class Stay:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def only(self):
            return complete()

    Reservation.objects.create(status="confirmed", checkin_at=clock.now + timedelta(hours=1))
    event = Event.objects.get(event_name="checkin_due")
    story = shown(client, event)
    assert "It waits for its date, 2030-01-07 14:00:00." in story
    assert "Callback greet will be called 2030-01-07 14:00:00 CET" in story
    assert "Workflow stay will start 2030-01-07 14:00:00 CET" in story
    assert "Cancel" in story
    clock.tick(timedelta(hours=1))
    drain()
    story = shown(client, event)
    assert "It has occurred." in story
    assert "will be called" not in story
    assert "Callback greet Pending: LookupError: no key" in story
    assert "Workflow stay #" in story
    assert "Completed" in story
    assert "Cancel" not in story


def test_the_story_needs_no_inline_script_or_style(client, root, charging):
    """It works under a content security policy without ``unsafe-inline``."""
    run = engine.start("charging", guest="Bob")
    drain()
    page = client.get(address(run)).content.decode()
    story = page[page.index('<div class="automation-story">') : page.index('<details class="automation-columns">')]
    story = re.sub(r'<section aria-labelledby="automation-flow">.*?</section>', "", story, flags=re.DOTALL)
    assert "style=" not in story
    assert "<script" not in story
    assert "onclick" not in story
    assert 'href="/static/automation_console/console.css"' in page


def test_the_page_links_the_user_who_caused_the_run(client, root, charging):
    with acting_as(User.objects.get()):
        run = engine.start("charging")
    user = reverse("admin:auth_user_change", args=[User.objects.get().pk])
    assert f'href="{user}"' in client.get(address(run)).content.decode()
