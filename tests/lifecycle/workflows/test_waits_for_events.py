"""Waits for an event: of which entity, and since when; no event is lost or consumed twice."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel

from django_ai.automation.workflows.core import (
    complete,
    engine,
    event_workflow,
    get_context,
    get_run,
    get_wake,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import StepExecution
from tests.apps.reservations.models import Document, Guest, Reservation, Room, Suite
from tests.support.rows import effects, event_of, leave, status, the_run
from tests.support.waiting_runs import begin, confirm, match_flow, told, upload, waiter

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


@pytest.fixture
def guest_flow():
    """Declare a workflow that a confirmation starts and that waits for the documents of its own reservation."""

    @event_workflow("reservation_confirmed", name="guest")
    class GuestFlow:
        class Context(BaseModel):
            docs_ready: bool = False

        @step(start=True)
        def first(self):
            if get_wake().reason == "first":
                return wait_for_event("guest_docs_uploaded")
            leave(f"{get_run().entity_id} {get_wake().reason} {get_context().docs_ready}")
            return complete()


@pytest.mark.usefixtures("guest_flow")
def test_an_event_of_its_own_entity_wakes_a_run(work):
    mine, other = confirm(), confirm()
    work()
    upload(other)
    work()
    upload(Reservation.objects.create())
    work()
    assert effects() == [f"{other.pk} event True"]
    assert the_run(entity_id=str(mine.pk)).status == "suspended"
    upload(mine)
    work()
    assert effects() == [f"{other.pk} event True", f"{mine.pk} event True"]


@pytest.mark.usefixtures("guest_flow")
def test_the_events_own_fields_come_with_the_payload(work):
    seen = []

    @event_workflow("reservation_confirmed", name="reader")
    class Reader:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "first":
                return wait_for_event("guest_docs_uploaded")
            seen.append(dict(get_wake().payload))
            return complete()

    stay = confirm()
    work()
    upload(stay)
    work()
    event = event_of(stay, "guest_docs_uploaded")
    assert seen == [
        {
            "event_id": event.pk,
            "event_name": "guest_docs_uploaded",
            "entity_id": str(stay.pk),
            "event_at": event.at.isoformat(),
            "docs_ready": True,
        }
    ]


@pytest.mark.usefixtures("guest_flow")
def test_an_occurrence_since_the_first_step_ends_the_wait_at_once(clock, work):
    @event_workflow("reservation_confirmed", name="late reader")
    class LateReader:
        class Context(BaseModel):
            docs_ready: bool = False

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            if get_wake().reason == "event":
                leave(f"late {self.context.docs_ready}")
                return complete()
            return wait_for_event("guest_docs_uploaded")

    stay = confirm()
    work()
    clock.tick(SECOND)
    upload(stay)
    work()
    clock.tick(HOUR)
    work()
    assert "late True" in effects()


@pytest.mark.usefixtures("guest_flow")
def test_an_occurrence_while_the_step_that_will_wait_is_running_is_not_lost(work):
    @event_workflow("reservation_confirmed", name="busy")
    class Busy:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=False)
        def first(self):
            if get_wake().reason == "event":
                leave("busy")
                return complete()
            upload(Reservation.objects.get(pk=int(get_run().entity_id)))
            return wait_for_event("guest_docs_uploaded")

    confirm()
    work()
    assert "busy" in effects()


@pytest.mark.usefixtures("guest_flow")
def test_an_occurrence_before_the_first_step_is_heard(clock, work):
    """An event of the commit that starts the run ends the wait, although it occurred before the first step."""
    stay = confirm(docs=True)
    clock.tick(SECOND)
    work()
    assert the_run(entity_id=str(stay.pk)).status == "completed"


def test_an_event_is_consumed_at_most_once(work):
    entered = []

    @event_workflow("reservation_confirmed", name="twice")
    class Twice:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            entered.append(get_wake().reason)
            return wait_for_event("guest_docs_uploaded")

    stay = confirm()
    work()
    upload(stay)
    for _ in range(3):
        work()
    assert entered == ["first", "event"]
    assert the_run().status == "suspended"


def test_a_match_follows_a_foreign_key(work):
    match_flow({"reservation_id": "{{ ctx.reservation_id }}"})
    mine, other = Reservation.objects.create(), Reservation.objects.create()
    run = begin(work, "matching", reservation_id=mine.pk)
    Document.objects.create(reservation=other)
    work()
    assert status(run) == "suspended"
    Document.objects.create(reservation=mine, kind="visa")
    work()
    run.refresh_from_db()
    assert (run.status, run.data["kind"]) == ("completed", "visa")
    assert effects() == ["event {'kind': 'visa'}"]


@pytest.mark.parametrize(
    "match",
    [
        {"reservation": "{{ ctx.reservation_id }}"},
        {"reservation__pk": "{{ ctx.reservation_id }}"},
        {"reservation__guest__name": "{{ ctx.text }}"},
        {"reservation__guest__name": "O'{{ ctx.kind }}"},
        {"reservation_id": "{{ context.pk }}"},
        {"reservation_id__exact": "{{ ctx.reservation_id }}", "kind": "visa"},
        {"kind": "visa", "reservation__status": "pending"},
    ],
)
def test_matches_of_many_shapes(match, work):
    match_flow(match)
    guest, stranger = Guest.objects.create(name="O'Brien"), Guest.objects.create(name="O'Hara")
    mine = Reservation.objects.create(guest=guest)
    other = Reservation.objects.create(guest=stranger, status="confirmed")
    arguments = {"reservation_id": mine.pk, "pk": str(mine.pk), "text": "O'Brien", "kind": "Brien"}
    run = begin(work, "matching", **arguments)
    assert run.status == "suspended"
    Document.objects.create(reservation=other, kind="visa")
    work()
    assert status(run) == "suspended"
    Document.objects.create(reservation=mine, kind="visa")
    work()
    assert status(run) == "completed"


def test_a_match_finds_what_occurred_since_the_first_step(clock, work):
    @workflow("sleeper")
    class Sleeper:
        class Context(BaseModel):
            reservation_id: int
            kind: str = ""

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            if get_wake().reason == "event":
                told()
                return complete()
            return wait_for_event("document_uploaded", match={"reservation_id": "{{ ctx.reservation_id }}"})

    mine, other = Reservation.objects.create(), Reservation.objects.create()
    Document.objects.create(reservation=mine, kind="too early")
    clock.tick(SECOND)
    run = begin(work, "sleeper", reservation_id=mine.pk)
    clock.tick(SECOND)
    Document.objects.create(reservation=other, kind="not mine")
    Document.objects.create(reservation=mine, kind="mine")
    clock.tick(HOUR)
    work()
    assert status(run) == "completed"
    assert effects() == ["event {'kind': 'mine'}"]


def test_several_that_match_are_taken_one_after_the_other(work):
    waiter("collector", lambda self: wait_for_event("document_uploaded", match={"kind": "visa"}), again=True)
    run = begin(work, "collector")
    stay = Reservation.objects.create()
    with transaction.atomic():
        for _ in range(3):
            Document.objects.create(reservation=stay, kind="visa")
        Document.objects.create(reservation=stay)
    for _ in range(5):
        work()
    assert effects() == ["event {'kind': 'visa'}"] * 3
    assert status(run) == "suspended"
    refs = list(StepExecution.objects.filter(run=run, wake_reason="event").values_list("wake_ref", flat=True))
    assert len(set(refs)) == 3


def test_a_match_of_nothing_is_any(work):
    match_flow({})
    run = begin(work, "matching")
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "completed"


def test_without_a_match_another_models_event_is_any(work):
    match_flow(None)
    run = begin(work, "matching")
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "completed"


def test_a_match_of_nothing_is_any_also_for_its_own_entity(work):
    @event_workflow("reservation_confirmed", name="any")
    class Any:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete() if get_wake().reason == "event" else wait_for_event("guest_docs_uploaded", match={})

    confirm()
    work()
    upload(Reservation.objects.create())
    work()
    assert the_run().status == "completed"


@pytest.mark.parametrize("lookup", ["reservation_ident", "kind__inn", "reservation__gast"])
def test_a_match_of_an_unknown_field_fails_at_once_and_names_it(lookup, work):
    match_flow({lookup: 5})
    run = begin(work, "matching")
    assert run.status == "failed"
    assert repr(lookup) in run.error
    assert "document_uploaded" in run.error


def test_a_match_of_an_unknown_field_of_the_context_fails_at_once_and_names_it(work):
    match_flow({"reservation_id": "{{ ctx.reservation_ident }}"})
    run = begin(work, "matching")
    assert run.status == "failed"
    assert "reservation_ident" in run.error


def test_a_run_of_a_child_waits_for_its_parents_event(work):
    """A run that an event of ``Suite`` started waits for an event that the parent model ``Room`` declares."""

    @event_workflow("suite_opened", name="suite")
    class SuiteFlow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete() if get_wake().reason == "event" else wait_for_event("room_cleaned")

    Suite.objects.create(number="1")
    Suite.objects.create(number="2")
    work()
    room = Room.objects.get(pk="2")
    room.is_clean = True
    room.save()
    work()
    assert the_run(entity_id="2").status == "completed"
    assert the_run(entity_id="1").status == "suspended"


@pytest.mark.usefixtures("guest_flow")
def test_the_end_of_the_entity_is_the_end_of_the_wait(clock, work):
    stay, other = confirm(), confirm()
    work()
    pk = str(stay.pk)
    stay.delete()
    run = the_run(entity_id=pk)
    assert run.status == "cancelled"
    assert "deleted" in run.error
    assert pk in run.error
    assert the_run(entity_id=str(other.pk)).status == "suspended"


@pytest.mark.usefixtures("guest_flow")
def test_a_deletion_that_is_rolled_back_ends_nothing(work):
    stay = confirm()
    work()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Reservation.objects.get(pk=stay.pk).delete()
        raise ZeroDivisionError
    assert the_run().status == "suspended"


def test_who_waits_for_any_is_not_ended_by_a_deletion(work):
    match_flow({})
    run = begin(work, "matching")
    document = Document.objects.create(reservation=Reservation.objects.create())
    document.delete()
    work()
    assert status(run) in ("suspended", "completed")
    assert run.status != "cancelled"


@pytest.mark.usefixtures("guest_flow")
def test_a_signal_by_hand_on_an_events_channel_wakes_who_any_would_and_nobody_else(work):
    match_flow({}, "any", "guest_docs_uploaded")
    confirm()
    work()
    run = begin(work, "any")
    engine.signal("event:guest_docs_uploaded", {"docs_ready": True})
    work()
    assert (status(run), run.data["docs_ready"]) == ("completed", True)
    assert the_run(name="guest").status == "suspended"


@pytest.mark.usefixtures("guest_flow")
def test_a_signal_by_hand_on_an_events_channel_wakes_the_run_that_it_names(work):
    stay = confirm()
    work()
    run = the_run()
    engine.signal("event:guest_docs_uploaded", {"docs_ready": True}, run=run)
    work()
    assert (status(run), effects()) == ("completed", [f"{stay.pk} signal True"])


def test_waiting_on_an_events_channel_is_waiting_for_the_event(work):
    waiter(outcome=lambda self: wait("event:document_uploaded"))
    run = begin(work)
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "completed"


def test_a_custom_signal_is_not_woken_by_an_event_of_that_name(work):
    waiter(outcome=lambda self: wait("document_uploaded"))
    run = begin(work)
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "suspended"
    engine.signal("document_uploaded")
    work()
    assert status(run) == "completed"


@pytest.mark.parametrize("comes", [True, False])
def test_an_event_with_a_timeout(comes, clock, work):
    waiter(outcome=lambda self: wait_for_event("document_uploaded", timeout=HOUR, on_timeout="other"))
    run = begin(work)
    clock.tick(HOUR - SECOND)
    if comes:
        Document.objects.create(reservation=Reservation.objects.create())
    work()
    clock.tick(SECOND)
    work()
    assert status(run) == "completed"
    assert effects()[0] == ("event {'kind': 'passport'}" if comes else "other")


def test_an_entity_id_in_the_context_stays_its_own(work):
    @event_workflow("reservation_confirmed", name="own id")
    class OwnId:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                return complete()
            return wait_for_event("document_uploaded", match={"reservation_id": "{{ ctx.entity_id }}"})

    stay = confirm()
    work()
    for _ in range(3):
        Document.objects.create(reservation=Reservation.objects.create())
    Document.objects.create(reservation=stay)
    work()
    assert (the_run().status, the_run().data["entity_id"]) == ("completed", str(stay.pk))
