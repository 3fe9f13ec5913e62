"""The stories of callbacks, handler executions, signals, schedules, limits, claims and workers."""

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
    Concurrency,
    FreeEvent,
    claims,
    complete,
    emit,
    engine,
    on_event,
    schedule,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.db.database_clock import DatabaseNow
from django_ai.automation.events.models import CallbackExecution, EventClaim, Schedule
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, Limiter, Slot, Worker
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.front_desk.models import Booking, Message, Person
from tests.support.agents import counting_companion

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def root(client) -> User:
    user = User.objects.create_superuser("root", password="x")
    client.force_login(user)
    return user


def sign_in(client, *permissions: str) -> None:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


def address(row, kind="change") -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_{kind}", args=[row.pk])


def listed(client, model, **query) -> str:
    page = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    answer = client.get(page, query)
    assert answer.status_code == 200
    return answer.content.decode()


def page_of(client, row) -> str:
    with CaptureQueriesContext(connection) as queries:
        answer = client.get(address(row))
    assert answer.status_code == 200
    assert len(queries) <= 30
    return answer.content.decode()


def shown(client, row) -> str:
    page = page_of(client, row)
    story = page[page.index('<div class="automation-story">') : page.index('<details class="automation-columns"')]
    assert "style=" not in story
    assert "<script" not in story
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", story)).split())


@pytest.fixture
def asking():
    @workflow("asking", concurrency=Concurrency(1))
    class Asking:
        class Context(BaseModel):
            guest: str = "Ada"

        @step(start=True)
        def ask(self):
            return wait("desk:answer", then=self.end)

        @step
        def end(self):
            return complete()

    return Asking


# -- callbacks and handlers --------------------------------------------------------------------------------------------


def test_a_callback_tells_when_it_was_called_and_why_it_failed(clock, client, root):
    FreeEvent("paid")
    calls = []

    @on_event("paid", name="book")
    def book(event):
        """Books the payment."""
        calls.append(event.key)
        if len(calls) == 1:
            raise LookupError("no room")

    emit("paid", {}, key="order:1")
    drain()
    row = CallbackExecution.objects.get()
    story = shown(client, row)
    assert "It waits for attempt 2" in story
    assert "Books the payment." in story
    assert "Failed attempts: 1." in story
    assert "LookupError: no room" in story
    assert "book is called" in story
    assert "Event event 'paid'" in story
    clock.tick(timedelta(hours=1))
    drain()
    story = shown(client, row)
    assert "It has completed." in story
    assert "is called" not in story
    assert f'href="{address(row.event)}"' in page_of(client, row)


def test_a_callback_can_be_paused_on_its_page_by_who_may(client):
    FreeEvent("paid")
    on_event("paid", name="book")(lambda event: 1 / 0)
    emit("paid", {}, key="order:1")
    drain()
    row = CallbackExecution.objects.get()
    sign_in(client, "view_callbackexecution")
    assert "automation-deeds" not in page_of(client, row)
    assert client.post(address(row, "act"), {"action": "pause"}).status_code == 403
    User.objects.get().user_permissions.add(Permission.objects.get(codename="pause_callbackexecution"))
    assert "nothing more begins until it is unpaused" in page_of(client, row)
    assert client.post(address(row, "act"), {"action": "pause"}).status_code == 302
    assert "the end of the pause" in shown(client, row)


@pytest.fixture
def companion() -> AgentRun:
    counting_companion()
    guest = Person.objects.create(name="Ada")
    Booking.objects.create(guest=guest)
    drain()
    Message.objects.create(sender=guest, text="hello")
    drain()
    return AgentRun.objects.get()


def test_a_handler_execution_tells_its_story(client, root, companion):
    row = HandlerExecution.objects.get(handler="heard")
    story = shown(client, row)
    assert "It has completed." in story
    assert "Handler heard" in story
    assert "Event event 'message_received' of desk.message" in story
    assert f'href="{address(companion)}"' in page_of(client, row)
    HandlerExecution.objects.filter(pk=row.pk).update(status="skipped", error="The condition is false.")
    story = shown(client, row)
    assert "Skipped" in story
    assert "The condition is false." in story
    assert "Redeliver: handle the event again" in story
    HandlerExecution.objects.filter(pk=row.pk).update(status="pending", error="")
    assert "heard handles message_received" in shown(client, row)


def test_an_agent_tells_what_it_receives_and_what_lies_in_its_mailbox(client, companion):
    sign_in(client, "view_agentrun", "view_data_agentrun")
    guest = Person.objects.get().pk
    HandlerExecution.objects.filter(handler="heard").update(status="failed", error="ValueError: x")
    for n in range(60):
        claims.hold("message_received", {"sender_id": n}, owner=companion)
    story = shown(client, companion)
    assert f"heard receives message_received with sender_id={guest}" in story
    assert "Mailbox Failed: 1" in story
    assert story.count("Has claimed") == 50
    assert "message_received with sender_id=0, until " in story
    user = User.objects.get()
    user.user_permissions.remove(Permission.objects.get(codename="view_data_agentrun"))
    story = shown(client, companion)
    assert "{{ ctx.guest_id }}" in story
    assert "sender_id=0" not in story
    AgentRun.objects.filter(pk=companion.pk).update(name="gone")
    assert "Mailbox Failed: 1" in shown(client, companion)


# -- signals -----------------------------------------------------------------------------------------------------------


def test_a_signal_tells_whether_it_was_read(client, root, asking):
    run = engine.start("asking")
    drain()
    sent = engine.signal("later", {"guest": "Eve"}, run=run)
    assert "On its way" in shown(client, sent)
    drain()
    story = shown(client, sent)
    assert f"It is kept until {run} waits for it." in story
    assert '"guest": "Eve"' in story
    read = engine.signal("desk:answer", run=run)
    everyone = engine.signal("desk:answer")
    drain()
    assert f"{run} has read it." in shown(client, read)
    assert "It was delivered to all runs that waited for it then." in shown(client, everyone)
    run.refresh_from_db()
    assert run.is_finished
    assert f"{run} has ended without reading it." in shown(client, sent)
    for state, number in (("read", 1), ("unread", 0), ("never", 1), ("delivered", 1), ("sent", 0), ("parked", 0)):
        page = listed(client, Signal, state=state)
        assert page.count('class="field-state"') == number, state
    assert f'href="{address(run)}"' in listed(client, Signal, state="never")
    assert listed(client, Signal, state="none").count('class="field-state"') == 3


def test_the_payload_of_a_signal_is_hidden_without_the_permission(client, asking):
    run = engine.start("asking")
    drain()
    sign_in(client, "view_signal")
    sent = engine.signal("later", {"guest": "Eve"}, run=run)
    assert "Eve" not in page_of(client, sent)


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def nightly(clock) -> Schedule:
    schedule("0 2 * * *", timezone="Europe/Berlin", name="nightly")(swept)
    ensure_rows(timezone.now())
    return Schedule.objects.get(name="nightly")


def swept():
    raise LookupError("no broom")


def test_a_schedule_shows_its_next_times_and_what_the_last_ones_did(clock, client, root, nightly):
    story = shown(client, nightly)
    assert "0 2 * * * (Europe/Berlin)" in story
    assert "2030-01-08 02:00:00 CET" in story
    assert "2030-01-12 02:00:00 CET" in story
    assert story.count("starts tests.") == 5
    assert "Delete selected" not in story
    assert "It starts its target once more, now." in story
    client.post(address(nightly, "act"), {"action": "fire", "reason": "Dirty."})
    drain()
    story = shown(client, nightly)
    assert "root: Fired: Dirty." in story
    assert "LookupError: no broom" in story
    page = listed(client, Schedule)
    assert "field-last_event_link" in page
    client.post(address(nightly, "act"), {"action": "pause"})
    story = shown(client, nightly)
    assert "Paused" in story
    assert "02:00:00 CET" not in story
    assert "It continues with its next time" in story


def test_a_schedule_of_staff_is_still_edited_in_its_form(clock, client, root, nightly):
    Schedule.objects.filter(pk=nightly.pk).update(is_declared=False)
    page = page_of(client, nightly)
    assert '<details class="automation-columns" open>' in page
    assert 'name="cron"' in page


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_limit_shows_who_holds_and_who_waits(client, root):
    @workflow("busy", concurrency=Concurrency(1, key="{{ ctx.guest }}"))
    class Busy:
        class Context(BaseModel):
            guest: str = "Ada"

        @step(start=True)
        def only(self):
            return complete()

    runs = [engine.start("busy") for _ in range(3)]
    limiter = Limiter.objects.create(row_kind="workflow", name="busy", limit="concurrency", value="Ada", key="k")
    for number, (run, state) in enumerate(zip(runs, ("held", "queued", "queued"), strict=True)):
        Slot.objects.create(limiter=limiter, row_kind="workflow", row_pk=run.pk, state=state, unique_key=str(number))
    story = shown(client, limiter)
    assert "Rows that hold it: 1. Rows that wait: 2." in story
    waits = story.index("Who waits for a slot")
    holds = story.index("Who holds a slot")
    assert waits < story.index(str(runs[1])) < story.index(str(runs[2])) < holds < story.index(str(runs[0]))
    assert "number 2 in the queue" in story
    answer = client.get(reverse("admin:automation_console_queues_changelist"))
    page = answer.content.decode()
    assert f'href="{address(limiter)}"' in page
    assert f'href="{address(runs[1])}"' in page
    sign_in(client, "view_queues", "view_limiter")
    page = client.get(reverse("admin:automation_console_queues_changelist")).content.decode()
    assert f'href="{address(limiter)}"' in page
    assert "Ada" not in page
    assert "Ada" not in shown(client, limiter)


# -- claims ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def claim(companion) -> EventClaim:
    return claims.hold("message_received", {"sender_id": 7}, owner=companion)


def test_a_claim_names_its_owner_and_can_be_released(client, claim, companion):
    sign_in(client, "view_eventclaim", "release_eventclaim", "view_data_eventclaim")
    page = page_of(client, claim)
    assert f'href="{address(companion)}"' in page
    assert f"{companion} keeps message_received to itself; other runs skip it." in page
    assert "sender_id=7" in page
    assert "Other runs receive the event from now on." in page
    with CaptureQueriesContext(connection) as few:
        assert f'href="{address(companion)}"' in listed(client, EventClaim)
    for n in range(20):
        claims.hold("message_received", {"sender_id": 100 + n}, owner=companion)
    with CaptureQueriesContext(connection) as many:
        listed(client, EventClaim)
    assert len(few) == len(many)
    client.post(address(claim, "act"), {"action": "release", "reason": "Stuck."})
    assert not EventClaim.objects.filter(pk=claim.pk).exists()
    assert list(Action.objects.values_list("done", "actor_name", "reason")) == [("Released", "ann", "Stuck.")]
    assert claims.holder("message_received", {"sender_id": 7}) is None


def test_a_viewer_may_not_release_a_claim(client, claim):
    sign_in(client, "view_eventclaim")
    page = page_of(client, claim)
    assert "automation-deeds" not in page
    assert "sender_id" not in page
    assert "sender_id" not in listed(client, EventClaim)
    assert client.post(address(claim, "act"), {"action": "release"}).status_code == 403
    assert EventClaim.objects.filter(pk=claim.pk).exists()


def test_a_claim_that_another_run_has_taken_over_is_not_released(claim, asking):
    run = engine.start("asking")
    EventClaim.objects.filter(pk=claim.pk).update(owner_kind="workflow", owner_id=run.pk)
    assert claim.release() is False
    assert EventClaim.objects.filter(pk=claim.pk).exists()


# -- workers -----------------------------------------------------------------------------------------------------------


def working(**changes) -> Worker:
    moments = {"started_at": DatabaseNow(), "seen_at": DatabaseNow()}
    return Worker.objects.create(name="w", runtime="worker", host="one", pid=17, **moments, **changes)


def test_a_worker_shows_what_it_has_leased(client, root, asking):
    worker = working()
    runs = [engine.start("asking") for _ in range(5)]
    until = timezone.now() + timedelta(seconds=9)
    WorkflowRun.objects.update(lease="one:17:abc", wake_at=until, current_step="ask")
    WorkflowRun.objects.filter(pk=runs[4].pk).update(lease="other:18:abc")
    story = shown(client, worker)
    assert "Alive" in story
    assert "has leased this many rows: 4." in story
    assert f"{runs[0]}: ask" in story
    assert str(runs[4]) not in story
    page = listed(client, Worker)
    ends = f"{timezone.localtime(until):%Y-%m-%d %H:%M:%S}"
    assert f'4 until {ends}: <a href="{address(runs[0])}">' in page
    queues = client.get(reverse("admin:automation_console_queues_changelist")).content.decode()
    assert '<td data-label="Leased now">5</td>' in queues


def test_a_worker_that_has_stopped_has_leased_nothing(client, root):
    stopped = working(stopped_at=timezone.now())
    assert "It has stopped at " in shown(client, stopped)


# -- queues and the overview -------------------------------------------------------------------------------------------


def test_queues_show_depth_and_age(client, root, asking):
    run = engine.start("asking")
    WorkflowRun.objects.filter(pk=run.pk).update(wake_at=timezone.now() - timedelta(hours=2, seconds=5))
    with CaptureQueriesContext(connection) as queries:
        page = client.get(reverse("admin:automation_console_queues_changelist")).content.decode()
    assert len(queries) <= 30
    assert "2 h" in page
    assert "no progress" in page
    assert "No limit is in use." in page
    content = page[page.index('<div class="automation-story') :]
    assert "style=" not in content
    assert "<script" not in content


def test_the_overview_links_the_pages_that_the_user_may_open(client):
    queues = reverse("admin:automation_console_queues_changelist")
    workers = reverse("admin:automation_queues_worker_changelist")
    sign_in(client, "view_overview", "view_worker")
    page = client.get(reverse("admin:automation_console_overview_changelist")).content.decode()
    assert f'<li><a href="{workers}">Workers</a></li>' in page
    assert queues not in page
    assert client.get(queues).status_code == 403
    assert client.post(queues).status_code == 403
