"""The assertions of ``automation.testing`` and their failure messages."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from pydantic import BaseModel

from django_ai.automation.agents.core import agent, handler
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.exceptions import DefinitionError, UnknownWorkflowError
from django_ai.automation.testing import assert_not_occurred, assert_occurred, assertions, runs_of
from django_ai.automation.workflows.core import complete, engine, event_workflow, step
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Guest, Reservation, Suite, Ticket, VipStay
from tests.support.time_machine import NOON, book, stamp

DUE, CONFIRMED = "checkin_due", "reservation_confirmed"
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def test_assert_occurred(machine):
    stay, other = book(DAY), book(9 * DAY)
    machine.advance(days=1)
    assert_occurred(DUE)
    assert_occurred(DUE, times=1)
    assert_occurred(DUE, stay)
    assert_occurred(DUE, stay, times=1)
    assert_occurred(DUE, other, times=0)
    assert_not_occurred(DUE, other)
    assert_not_occurred("checkout_due")
    machine.advance(days=9)
    assert_occurred(DUE, times=2)
    for wrong in (
        lambda: assert_occurred("checkout_due"),
        lambda: assert_occurred(DUE, times=1),
        lambda: assert_occurred(DUE, stay, times=2),
        lambda: assert_occurred(DUE, times=0),
        lambda: assert_not_occurred(DUE),
        lambda: assert_not_occurred(DUE, other),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_what_failures_say(machine):
    stay = book(2 * DAY)
    with pytest.raises(AssertionError) as caught:
        assert_occurred(DUE, stay)
    text = str(caught.value)
    assert f"'checkin_due' of app.Reservation {stay.pk} should have occurred, but it did not." in text
    assert "'checkin_due': pending, at 2030-01-09T12:00:00+00:00, due 2030-01-09T12:00:00+00:00" in text
    assert "'guest_docs_uploaded': pending, its condition is false" in text
    confirmed = "occurred 2030-01-07T12:00" if connection.in_atomic_block is False else "waits for the commit"
    assert confirmed in text

    machine.advance(days=3)
    with pytest.raises(AssertionError, match=r"should have occurred twice, but once\.\nThere is:") as caught:
        assert_occurred(DUE, times=2)
    assert f"'checkin_due' of app.reservation {stay.pk}: processed, occurred 2030-01-09T12:00" in str(caught.value)
    with pytest.raises(AssertionError, match=r"should not have occurred, but it did, once\."):
        assert_not_occurred(DUE, stay)


def test_failures_say_when_nothing_was_recorded(db):
    guest_of_nobody = Reservation(pk=77)
    with pytest.raises(AssertionError, match="No event was recorded at all"):
        assert_occurred(DUE)
    with pytest.raises(AssertionError, match="No event was recorded: was it saved through Django"):
        assert_occurred(DUE, guest_of_nobody)


def test_failures_do_not_fill_the_screen(db):
    for _ in range(10):
        book()
    with pytest.raises(AssertionError, match=r"\.\.\. and 20 more") as caught:
        assert_occurred(DUE)
    assert len(str(caught.value).splitlines()) == 23


def test_the_error_of_a_parked_event_is_shown(machine, declare):
    declare(Ticket, EventDefinition("ticket_due", date_field="due_at", payload=lambda ticket: {"n": 1 / 0}))
    ticket = Ticket.objects.create(due_at=NOON + HOUR)
    machine.advance(hours=2)
    with pytest.raises(AssertionError, match=r"parked, at 2030-01-07T13:00:00\+00:00, ZeroDivisionError: division"):
        assert_occurred("ticket_due", ticket)


@pytest.mark.parametrize("check", [assert_occurred, assert_not_occurred])
def test_an_event_that_nobody_declares_fails_with_the_nearest_name(check, db):
    with pytest.raises(AssertionError, match=r"No code declares .* 'checkin_deu'\. Did you mean 'checkin_due'\?"):
        check("checkin_deu")
    with pytest.raises(
        AssertionError, match=r"app\.Reservation does not declare the event 'ticket_due'\. Did you mean"
    ):
        check("ticket_due", book())
    with pytest.raises(AssertionError, match=r"app\.Guest does not declare the event 'checkin_due'. Declared: none"):
        check("checkin_due", Guest.objects.create())


def test_families(machine):
    suite = Suite.objects.create(number="1", is_clean=True)
    vip = VipStay.objects.create(status="confirmed", note="here")
    machine.process()
    assert_occurred("room_cleaned", suite)
    assert_occurred("room_cleaned", suite.room_ptr)
    assert_occurred("suite_opened", suite)
    assert_occurred("vip_arrived", vip)
    assert_occurred(CONFIRMED, Reservation.objects.get(pk=vip.pk))


def test_names_that_mean_many_events(machine, declare):
    declare(Ticket, EventDefinition("ticket_closed:{{ instance.title }}", condition=lambda ticket: not ticket.open))
    done, undone = Ticket.objects.create(title="a", open=False), Ticket.objects.create(title="b")
    machine.process()
    assert_occurred("ticket_closed:a")
    assert_occurred("ticket_closed:a", done, times=1)
    assert_occurred("ticket_closed:*", times=1)
    assert_occurred("ticket_closed:{{ instance.title }}", times=1)
    assert_not_occurred("ticket_closed:b")
    assert_not_occurred("ticket_closed:c")
    assert_not_occurred("*", undone)
    with pytest.raises(AssertionError, match="No code declares"):
        assert_not_occurred("ticked_closed:*")


def test_an_entity_without_a_primary_key_is_refused(db):
    stay = book()
    stay.delete()
    for check in (assert_occurred, assert_not_occurred):
        with pytest.raises(DefinitionError, match="no primary key"):
            check(DUE, stay)
    with pytest.raises(DefinitionError, match="must be a model instance"):
        assert_occurred(DUE, 5)


def test_runs_of(machine):
    @event_workflow(CONFIRMED, name="welcome")
    class Welcome:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    one, other = book(), book()
    third = engine.start("welcome")
    machine.process()
    assert runs_of("welcome") == list(WorkflowRun.objects.order_by("pk"))
    assert {run.entity_id for run in runs_of("welcome")} == {str(one.pk), str(other.pk), third.entity_id}
    assert runs_of(Welcome) == runs_of("welcome") == machine.runs_of(Welcome)
    assert [run.entity_id for run in runs_of(Welcome, one)] == [str(one.pk)]
    assert runs_of(Welcome, Guest.objects.create()) == []
    with pytest.raises(UnknownWorkflowError, match="Did you mean 'welcome'"):
        runs_of("welcom")
    with pytest.raises(DefinitionError, match="neither a workflow nor an agent"):
        runs_of(Guest)


def test_runs_of_agents(machine):
    @agent("journey", spawn_on=CONFIRMED)
    class Journey:
        class Context(BaseModel):
            seen: list[str] = []

        @handler(CONFIRMED)
        def begin(self, ctx):
            ctx.seen.append(stamp())

        @handler(DUE, offset=-HOUR)
        def before(self, ctx):
            ctx.seen.append(stamp())
            if len(ctx.seen) == 2:
                raise RuntimeError("stumbles")

    stay, other = book(DAY), book(2 * DAY)
    machine.advance(days=1)
    (run,) = runs_of("journey", stay)
    assert runs_of(Journey) == runs_of("journey") == [run, *runs_of(Journey, other)]
    assert run.data == {"seen": ["0:00:00", "23:00:00", "23:00:01"]}
    assert [str(error) for error in machine.errors] == ["stumbles"]
    with pytest.raises(UnknownWorkflowError, match="No workflow is called 'journy'") as caught:
        runs_of("journy")
    assert "Did you mean 'journey'" in str(caught.value.__cause__)


def test_without_agents_there_are_workflows(monkeypatch, db):
    monkeypatch.setattr(assertions.apps, "is_installed", lambda name: False)
    with pytest.raises(UnknownWorkflowError, match="No workflow is called 'journey'") as caught:
        runs_of("journey")
    assert caught.value.__cause__ is None
