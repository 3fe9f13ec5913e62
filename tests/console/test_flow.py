"""The flow on the pages of runs and agents: the way that was taken, where it is now, and where it may go next."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    complete,
    engine,
    fail,
    goto,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.console import flow as flow_module
from django_ai.automation.console.flow import RunFlow, agent_flow, run_flow
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Booking, Message, Person
from tests.support.agents import counting_companion

pytestmark = pytest.mark.django_db(transaction=True)


class Shop:
    class Context(BaseModel):
        why: str = ""
        times: int = 0
        following: str = "price"

    @step(start=True)
    def ask(self):
        if self.context.why == "sleep":
            return sleep(timedelta(hours=1), then=self.price)
        if self.context.why == "child":
            return run_subflow("other", then=self.price)
        if self.context.why == "choice":
            return wait_any(paid=wait("paid", then=self.book), off=wait("off"), then=self.price)
        if self.context.why == "computed":
            return goto(self.context.following)
        return goto(self.price)

    @step(retry=Retry(max_attempts=1))
    def price(self):
        self.context.times += 1
        if self.context.times < 3:
            return goto(self.price)
        if self.context.why == "raise":
            raise ValueError("no price")
        if self.context.why == "fail":
            return fail("no room")
        return wait("desk:answer", timedelta(hours=4), then=self.book, on_timeout=self.give_up)

    @step
    def book(self):
        return complete()

    @step
    def give_up(self):
        return complete()


@pytest.fixture
def shop():
    return workflow("shop")(type("Shop", (Shop,), {}))


def flow_of(run: WorkflowRun) -> RunFlow:
    run.refresh_from_db()
    waits = [] if run.is_finished else [each for each in run.waits.all() if each.visit == run.visit]
    return run_flow(run, run.find_definition(), waits)


def marks(flow: RunFlow) -> dict[str, str]:
    """Return what is said about each node, by its label."""
    found = re.findall(r'class="node node-\w+ is-(\w+)"><title>([^<(]*?)(?: \(|<)', str(flow.drawing))
    return {label.split(" waits")[0]: mark for mark, label in found}


def test_a_run_that_waits_shows_its_way_and_where_it_may_go(shop):
    run = engine.start("shop")
    drain()
    flow = flow_of(run)
    assert flow.lines[:3] == [
        "Visited: start (1), ask (1), price (3), desk:answer (1)",
        "Now at: desk:answer",
        "May go to: book, give_up",
    ]
    assert marks(flow)["desk:answer"] == "current"
    assert marks(flow)["book"] == marks(flow)["give_up"] == "next"
    assert 'class="edge edge-normal is-visited"' in flow.drawing
    assert 'class="edge edge-timeout is-next"' in flow.drawing


def test_a_run_that_has_ended_shows_how(shop):
    run = engine.start("shop")
    drain()
    engine.signal("desk:answer", run=run)
    drain()
    flow = flow_of(run)
    assert flow.lines[0] == ("Visited: start (1), ask (1), price (3), book (1), desk:answer (1), Completed (1)")
    assert not [line for line in flow.lines if line.startswith(("Now at", "May go"))]
    assert "is-current" not in flow.drawing
    assert "give_up" not in marks(flow)


def test_a_run_that_raised_shows_at_which_step(shop):
    run = engine.start("shop", why="raise")
    drain()
    flow = flow_of(run)
    assert "Failed at: price" in flow.lines
    assert marks(flow)["price"] == "failed"


def test_a_run_that_returned_fail_ends_there(shop):
    run = engine.start("shop", why="fail")
    drain()
    flow = flow_of(run)
    assert "Failed (1)" in flow.lines[0]
    assert "is-failed" not in flow.drawing


@pytest.mark.parametrize(
    ("why", "now", "following"),
    [
        ("sleep", "sleeps", "price"),
        ("child", "other", "price"),
        ("choice", "waits for the first of", "price, book"),
    ],
)
def test_each_kind_of_waiting_has_its_place(shop, why, now, following):
    @workflow("other")
    class Other:
        class Context(BaseModel):
            pass

        @step(start=True)
        def hold(self):
            return wait("never")

    run = engine.start("shop", why=why)
    drain()
    flow = flow_of(run)
    assert f"Now at: {now}" in flow.lines
    assert f"May go to: {following}" in flow.lines


def test_a_run_whose_next_step_is_computed_says_that_and_is_drawn(shop):
    run = engine.start("shop", why="computed")
    drain()
    flow = flow_of(run)
    assert flow.notes == ["Which step follows ask is computed while it runs: goto(self.context.following)."]
    assert flow.lines[0].startswith("Visited: start (1), ask (1), price (3)")


def test_a_run_on_its_path_is_shown_there():
    @workflow("refunding", default_retry=Retry(max_attempts=1))
    class Refunding:
        class Context(BaseModel):
            pass

        @step(start=True)
        def charge(self):
            return fail("the card was refused")

        @on_fail
        def refund(self):
            return wait("refunded", then=self.end)

        @step
        def end(self):
            return complete()

    run = engine.start("refunding")
    drain()
    flow = flow_of(run)
    assert flow.lines[:3] == [
        "Visited: start (1), charge (1), refund (1), refunded (1)",
        "Now at: refunded",
        "May go to: end",
    ]
    engine.signal("refunded", run=run)
    drain()
    flow = flow_of(run)
    assert "Failed (1)" in flow.lines[0]


def test_a_step_that_waits_before_it_starts():
    @workflow("parcels")
    class Parcels:
        class Context(BaseModel):
            pass

        @step(start=True)
        def ask(self):
            return goto(self.ship)

        @wait_for_event("booking_created", match={})
        @step()
        def ship(self):
            return complete()

    run = engine.start("parcels")
    drain()
    flow = flow_of(run)
    assert "Now at: booking_created" in flow.lines
    assert "May go to: ship" in flow.lines
    Booking.objects.create(guest=Person.objects.create(name="Ada"))
    drain()
    flow = flow_of(run)
    assert run.status == "completed"
    assert "booking_created (1)" in flow.lines[0]
    assert "ship (1)" in flow.lines[0]


def test_a_run_that_has_not_started_stands_at_its_first_step(shop):
    run = engine.start("shop")
    flow = flow_of(run)
    assert "Now at: ask" in flow.lines


def test_a_long_history_is_read_up_to_a_limit(shop, monkeypatch):
    monkeypatch.setattr(flow_module, "MAX_VISITS", 2)
    run = engine.start("shop")
    drain()
    with CaptureQueriesContext(connection) as queries:
        flow = flow_of(run)
    assert "price (2)" in flow.lines[0]
    assert flow.notes[-1] == "The counts are of the newest 2 attempts."
    assert len([each for each in queries if "stepexecution" in each["sql"]]) == 1


def test_the_flow_of_an_agent_counts_what_its_handlers_did():
    counting_companion()
    guest = Person.objects.create(name="Ada")
    Booking.objects.create(guest=guest)
    for text in ("one", "two"):
        Message.objects.create(sender=guest, text=text)
    drain()
    run = AgentRun.objects.get()
    with CaptureQueriesContext(connection) as queries:
        flow = agent_flow(run)
    assert flow is not None
    assert len(queries) <= 2
    assert "(2)" in flow.lines[0]
    assert "is-visited" in flow.drawing
    assert "handled" not in flow.drawing


def test_the_pages_show_the_flow(client, shop):
    client.force_login(User.objects.create_superuser("root", password="x"))
    run = engine.start("shop")
    counting_companion()
    Booking.objects.create(guest=Person.objects.create(name="Ada"))
    drain()
    for row in (run, AgentRun.objects.get()):
        page = client.get(reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk]))
        text = page.content.decode()
        assert '<svg class="automation-graph" role="img"' in text
        assert '<h2 id="automation-flow">Flow</h2>' in text
        assert "style=" not in text[text.index("<svg class=") : text.index("</svg>", text.index("<svg class="))]


def test_a_run_without_its_code_has_no_flow_but_a_page(client, shop):
    client.force_login(User.objects.create_superuser("root", password="x"))
    run = engine.start("shop")
    WorkflowRun.objects.filter(pk=run.pk).update(name="gone", created_at=timezone.now())
    page = client.get(reverse("admin:automation_workflows_workflowrun_change", args=[run.pk]))
    assert page.status_code == 200
    assert "automation-graph" not in page.content.decode()
