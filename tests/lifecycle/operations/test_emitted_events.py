"""Events without a model for operators and tests: checks, the admin, what rows wait for, the time machine."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.test import TestCase
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import (
    Debounce,
    EventDefinition,
    FreeEvent,
    agent,
    claims,
    complete,
    emit,
    event_workflow,
    handler,
    on_event,
    register_events,
    step,
    wait_for_event,
)
from django_ai.automation.agents.checks import check_agents
from django_ai.automation.events import free_events
from django_ai.automation.events.checks import check_callbacks, check_definitions
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.testing import assert_not_occurred, assert_occurred, time_machine
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.checked_workflows import Empty, check_workflows, flow, only
from tests.support.free_events import PAID, Payment, hear, paid
from tests.support.matching_runs import waiting
from tests.support.rows import effects

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def ids(problems) -> list[str]:
    return [each.id.removeprefix("automation.") for each in problems]


# -- checks ------------------------------------------------------------------------------------------------------------


def test_e120_the_name_of_a_models_event():
    FreeEvent("reservation_confirmed")
    problem = only(check_definitions(None))
    assert problem.id == "automation.E120"
    assert "app.Reservation declares" in problem.msg
    FreeEvent("reservation_*")
    assert ids(check_definitions(None)) == ["E120", "E120"]


def test_e102_in_the_list_of_a_model(declare):
    declare(Reservation, EventDefinition("saved"), FreeEvent("paid"))
    problem, *of_children = check_definitions(None)
    assert (problem.id, problem.hint.split(". ")[-1]) == ("automation.E102", "A FreeEvent belongs to no model.")
    assert {each.id for each in of_children} <= {"automation.E102"}


def test_e106_a_name_that_nothing_declares():
    paid()
    hear(PAID)
    hear("payment.*", "all")
    assert check_callbacks(None) == []
    hear("payment.recieved", "misspelt")
    problem = only(check_callbacks(None))
    assert (problem.id, problem.hint) == ("automation.E106", f"Did you mean {PAID!r}?")


def test_an_offset_before_the_event_makes_sense():
    paid()
    hear(PAID, offset=-HOUR)
    assert check_callbacks(None) == []


def test_workflows_that_name_it():
    paid(Payment)

    @event_workflow(PAID, name="good")
    class Good:
        Context = Empty

        @step(start=True)
        def begin(self):
            return wait_for_event("payment.received", match={"order_id": 7, "cents__gte": 5}, then=self.end)

        @step()
        def end(self):
            return complete()

    assert check_workflows(None) == []


def misspelt(self):
    return wait_for_event("payment.recieved", match={})


def unknown_field(self):
    return wait_for_event("payment.received", match={"order": 7})


def unknown_lookup(self):
    return wait_for_event("payment.received", match={"cents__contains": 7})


def any_of_them(self):
    return wait_for_event("payment.received")


@pytest.mark.parametrize(
    ("first", "code", "text"),
    [
        (misspelt, "E203", f"Did you mean {PAID!r}?"),
        (unknown_field, "E205", "Did you mean 'order_id'?"),
        (unknown_lookup, "E205", "for equality and by"),
        (any_of_them, "W204", "match={}"),
    ],
)
def test_waits_that_cannot_be_right(first, code, text):
    paid(Payment)
    flow(first)
    problem = only(check_workflows(None))
    assert problem.id == f"automation.{code}"
    assert text in problem.hint


def test_agents_that_name_it():
    paid(Payment)

    @agent("good", spawn_on=PAID, match={"order_id": "{{ ctx.order_id }}"})
    class Good:
        Context = Payment

        @handler(PAID)
        def one(self): ...

        @handler(PAID, match={}, offset=-HOUR)
        def two(self): ...

    assert check_agents(None) == []

    @agent("bad", spawn_on="payment.recieved")
    class Bad:
        class Context(BaseModel):
            order_ids: list[int] = []

        @handler("payment.recieved", match={})
        def misspelt(self): ...

        @handler(PAID, match={"order": 7})
        def unknown(self): ...

        @handler(PAID)
        def any(self): ...

        @handler(PAID, match={"order_id": "{{ ctx.order_ids }}"})
        def lists(self): ...

        @handler(PAID, match={"cents__gte": 5})
        def every(self): ...

    assert ids(check_agents(None)) == ["E301", "E302", "E303", "W304", "E306", "W305"]


def test_e116_a_key_that_reads_what_it_does_not_have():
    paid(Payment)
    keys = ("{{ payload.order_id }}", "{{ payload.order }}", "{{ instance.order_id }}")
    for key in keys:
        hear(PAID, key, debounce=Debounce(HOUR, key=key))
    problems = check_callbacks(None)
    assert ids(problems) == ["E116", "E116"]
    assert [each.hint.split(". ")[-1] for each in problems] == [
        "Did you mean 'order_id'?",
        "Write {{ payload.field }}.",
    ]


def test_declarations_stand_for_their_names(machine):
    event, family = paid(), FreeEvent("stripe:*")
    hear(event)
    hear(family, "any")

    @agent("account", spawn_on=event, match={"order_id": "{{ ctx.order_id }}"})
    class Account:
        Context = Payment

        @handler(event)
        def count(self, ctx):
            claims.hold(event, {"order_id": ctx.order_id})

    @event_workflow(event, name="listens", ignores_claims=True)
    class Listens:
        Context = Payment

        @step(start=True)
        def listen(self):
            return wait_for_event(event, match={"order_id": 8}, then=self.end)

        @step()
        def end(self):
            return complete()

    assert [*check_callbacks(None), *check_workflows(None), *check_agents(None)] == []
    emit(event, {"order_id": 7})
    machine.process()
    emit(event, {"order_id": 8})
    emit("stripe:charge", {})
    machine.process()
    assert_occurred(event, times=2)
    assert_occurred(family, times=1)
    assert claims.holder(event, {"order_id": 7}) is not None
    assert [run.status for run in WorkflowRun.objects.order_by("pk")] == ["completed", "suspended"]
    assert effects() == ["heard {'order_id': 7}", "heard {'order_id': 8}", "any {}"]
    with pytest.raises(DefinitionError, match="without"):
        wait_for_event(family)
    with pytest.raises(DefinitionError, match="is not an EventDefinition"):
        register_events(Reservation, event)


# -- the admin ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def event():
    paid()
    hear(PAID)
    return emit(PAID, {"secret": "swordfish"}, key="message 1")


def url(kind: str, *arguments: object) -> str:
    return reverse(f"admin:automation_events_event_{kind}", args=arguments)


def test_the_admin_shows_it_and_finds_it_by_its_key(client, event):
    client.force_login(User.objects.create_superuser("root", password="x"))
    emit(PAID, {}, key="message 2")
    page = client.get(url("changelist"), {"q": "message 1"}).content.decode()
    assert "message 1" in page
    assert "message 2" not in page
    assert PAID in client.get(url("changelist"), {"declared_as": PAID}).content.decode()
    assert "swordfish" in client.get(url("change", event.pk)).content.decode()


def test_the_payload_needs_its_permission(client, event):
    staff = User.objects.create_user("staff", password="x", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="view_event"))
    client.force_login(staff)
    assert "swordfish" not in client.get(url("change", event.pk)).content.decode()
    assert "swordfish" not in client.get(url("changelist")).content.decode()
    staff.user_permissions.add(Permission.objects.get(codename="view_data_event"))
    assert "swordfish" in client.get(url("change", event.pk)).content.decode()


# -- what rows wait for ------------------------------------------------------------------------------------------------


def test_rows_say_what_they_wait_for(clock, work):
    event = paid()
    emit(PAID, at=clock.now + DAY)
    waiting({"order_id": 7}, event=PAID)
    work()
    assert [each.waits_for for each in explain(clock.now, ["event"])] == ["its date, 2030-01-08 13:00:00"]
    assert [each.waits_for for each in explain(clock.now, ["workflow run"])] == [
        f"the event {PAID!r} with {{'order_id': 7}}"
    ]
    free_events.unregister(event)
    (run,) = explain(clock.now, ["workflow run"])
    assert run.waits_for.endswith("(which no code declares)")
    clock.tick(DAY)
    work()
    (parked,) = explain(clock.now, ["event"])
    assert parked.waits_for.startswith("missing code")


# -- the time machine --------------------------------------------------------------------------------------------------


class TestInATestCase(TestCase):
    """Nothing commits here, and events occur all the same."""

    @classmethod
    def setUpTestData(cls):
        event = paid()
        emit(PAID, {"n": 1}, key="early")
        free_events.unregister(event)

    def test_they_occur_at_their_time(self):
        paid()
        hear(PAID)
        with time_machine("2020-03-01T08:00+00:00", raise_errors=True) as machine:
            machine.process()
            assert effects() == ["heard {'n': 1}"]
            assert_occurred(PAID)
            emit(PAID, {"n": 2}, at=machine.now + DAY)
            assert emit(PAID, {"n": 3}, key="early").payload == {"n": 1}
            machine.advance(hours=23)
            assert_occurred(PAID, times=1)
            machine.advance(hours=1)
            assert_occurred("payment.*", times=2)
            assert effects() == ["heard {'n': 1}", "heard {'n': 2}"]


def test_assertions_know_what_is_declared():
    paid()
    assert_not_occurred(PAID)
    emit(PAID, key="a")
    with pytest.raises(AssertionError, match=r"(?s)should not have occurred.*\n  'payment\.received' with the key 'a'"):
        assert_not_occurred(PAID)
    with pytest.raises(AssertionError, match=f"Did you mean {PAID!r}"):
        assert_occurred("payment.recieved")


def test_a_failed_function_is_seen(machine):
    @on_event(paid().name)
    def fails(event):
        raise RuntimeError("no")

    emit(PAID)
    machine.process()
    assert [str(each) for each in machine.errors] == ["no"]
