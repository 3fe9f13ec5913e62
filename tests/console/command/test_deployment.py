"""``automation plan --check``: what the code of today would do with the rows that exist."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import FreeEvent, complete, emit, engine, event_workflow, on_event, schedule, step, workflow
from django_ai.automation.agents.manager import AgentManager
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.console import live_rows
from django_ai.automation.events.declarations import declared_on
from django_ai.automation.events.models import CallbackExecution, Event, Schedule
from django_ai.automation.events.recording.reconcile import windows_of_offsets
from django_ai.automation.events.schedules.definitions import find_schedule, unregister
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.queues import progress
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.apps.reservations.models import Guest, Reservation
from tests.support.automation_command import automation

pytestmark = pytest.mark.django_db(transaction=True)


def checked(*options) -> dict:
    return automation("plan", "--check", "--json", *options).document


def found(part: str, *options) -> list[tuple[str, str, int]]:
    return [(each["kind"], each["name"], each["count"]) for each in checked(*options)[part]]


def reservation(**fields) -> Reservation:
    return Reservation.objects.create(guest=Guest.objects.create(name="Ada"), status="confirmed", **fields)


def test_rows_that_the_code_can_perform_are_no_findings(waiting, failed, caring):
    AgentManager.spawn("caring")
    reservation()
    answer = automation("plan", "--check")
    assert answer.code == 0
    assert (
        answer.out == "Would park: nothing\nLose their version: nothing\nWould fire at once: nothing\nVanish: nothing\n"
    )


def test_runs_whose_workflow_or_step_is_gone_would_park(charging, waiting):
    for _ in range(3):
        engine.start("charging")
    gone = engine.start("charging")
    WorkflowRun.objects.filter(pk=gone.pk).update(name="chargging")
    lost = engine.start("charging")
    WorkflowRun.objects.filter(pk=lost.pk).update(current_step="pay")
    Wait.objects.filter(run=waiting).update(then="bookk")
    answer = automation("plan", "--check", "--json")
    assert answer.code == 1
    assert answer.err == "3 row(s) would park with this code.\n"
    parks = {each["example"]: each for each in answer.document["parks"]}
    assert parks.keys() == {gone.pk, lost.pk, waiting.pk}
    assert "Was it renamed to 'charging'?" in parks[gone.pk]["why"]
    assert "has no step 'pay'" in parks[lost.pk]["why"]
    assert "the step 'bookk', which does not exist" in parks[waiting.pk]["why"]
    assert f"1 workflow chargging (such as {gone.pk})" in automation("plan", "--check").out
    assert WorkflowRun.objects.filter(status="parked").count() == 0


def test_what_is_said_comes_true(charging):
    gone = engine.start("charging")
    WorkflowRun.objects.filter(pk=gone.pk).update(current_step="pay")
    assert found("parks") == [("workflow", "charging", 1)]
    drain()
    gone.refresh_from_db()
    assert gone.status == "parked"
    assert found("parks") == []


def test_runs_of_a_version_that_is_gone():
    class Old(BaseModel):
        cents: int = 1

    class New(BaseModel):
        euros: float

    @workflow("paying", version=2)
    class Paying:
        Context = New

        @step(start=True)
        def only(self):
            return complete()

        @staticmethod
        def migrate_context(data, from_version):
            return {"euros": data["cents"] / 100} if from_version == "1" else data

    run = engine.start("paying", euros=1)
    WorkflowRun.objects.filter(pk=run.pk).update(version="1", data={"cents": 100})
    document = checked()
    assert [(each["name"], each["why"]) for each in document["versions"]] == [
        ("paying", "version '1' is gone; they continue with version '2'")
    ]
    assert document["parks"] == []
    WorkflowRun.objects.filter(pk=run.pk).update(data={"coins": 100})
    assert found("parks") == [("workflow", "paying", 1)]
    assert "their Context does not fit" in checked()["parks"][0]["why"]
    assert found("parks", "--contexts", 0) == []
    assert automation("plan", "--check", "--contexts", -1).code == 2
    assert automation("plan", "--check", "--hours", 1).code == 2


def test_agents_handlers_callbacks_and_events_whose_code_is_gone(caring):
    @on_event("reservation_confirmed", name="greeting")
    def greeting(event):
        pass

    agent = AgentManager.spawn("caring")
    reservation()
    other = AgentManager.spawn("caring")
    AgentRun.objects.filter(pk=other.pk).update(name="carrying")
    CallbackExecution.objects.all().delete()
    HandlerExecution.objects.all().delete()
    event = Event.objects.get(event_name="reservation_confirmed")
    now = timezone.now()
    CallbackExecution.objects.create(event=event, callback="bye", unique_key="1", wake_at=now)
    CallbackExecution.objects.create(event=event, callback="greeting", unique_key="2", wake_at=now)
    HandlerExecution.objects.create(event=event, run=agent, handler="gret", unique_key="3", due_at=now)
    HandlerExecution.objects.create(event=event, run=agent, handler="greet", unique_key="4", due_at=now)
    Event.objects.create(
        entity_type="app.reservation", entity_id="9", event_name="lost", declared_as="lost", wake_at=now
    )
    assert sorted(found("parks")) == [
        ("agent", "carrying", 1),
        ("callback", "bye", 1),
        ("event", "lost", 1),
        ("handler", "caring.gret", 1),
    ]


def test_a_schedule_that_is_no_longer_declared_vanishes(charging):
    schedule(timedelta(days=1), name="nightly")(charging)
    schedule(timedelta(days=1), name="weekly")(charging)
    ensure_rows(timezone.now())
    assert found("vanishes") == []
    declared = find_schedule("nightly")
    assert declared is not None
    unregister(declared)
    Schedule.objects.filter(name="weekly").update(target="chargging")
    answer = automation("plan", "--check", "--json")
    assert answer.code == 1
    assert [each["name"] for each in answer.document["vanishes"]] == ["nightly"]
    assert [each["name"] for each in answer.document["parks"]] == ["weekly"]


def test_offsets_of_new_subscribers_whose_time_has_just_passed():
    now = timezone.now()
    for hours in (1, 2, 100_000):
        reservation(checkin_at=now - timedelta(hours=hours))
    reservation(checkin_at=now + timedelta(days=400))
    drain()
    assert found("fires") == []

    @on_event("checkin_due", offset=timedelta(minutes=30), name="how are you")
    def ask(event):
        pass

    @on_event("checkin_due", offset=timedelta(days=30), name="come again")
    def come(event):
        pass

    @event_workflow("checkin_due", offset=timedelta(minutes=10), name="survey")
    class Survey:
        class Context(BaseModel):
            pass

        @classmethod
        def create_context(cls, event):
            return cls.Context()

        @step(start=True)
        def only(self):
            return complete()

    document = checked()
    assert sorted((each["count"], each["why"]) for each in document["fires"]) == [
        (2, "callback how are you: its offset fires at once"),
        (2, "workflow survey: a run starts at once"),
    ]
    assert document["parks"] == []
    assert automation("plan", "--check").code == 0


# -- many rows ---------------------------------------------------------------------------------------------------------


class Shown(list):
    """Collects what is shown."""

    def show(self, done: int) -> None:
        self.append(done)

    def end(self) -> None:
        self.append("end")


def test_the_groups_of_all_ranges_are_joined(charging, monkeypatch):
    monkeypatch.setattr(live_rows, "RANGE_ROWS", 3)
    monkeypatch.setattr(live_rows, "EXAMPLES_PER_QUERY", 2)
    runs = [engine.start("charging") for _ in range(10)]
    pks = [run.pk for run in runs]
    WorkflowRun.objects.filter(pk__in=pks[4:9]).update(name="chargging")
    WorkflowRun.objects.filter(pk=pks[9]).update(name="charrging")
    WorkflowRun.objects.filter(pk=pks[0]).update(status="completed")
    document = checked()
    assert [(each["name"], each["count"], each["example"]) for each in document["parks"]] == [
        ("chargging", 5, pks[4]),
        ("charrging", 1, pks[9]),
    ]
    shown = Shown()
    live = WorkflowRun.objects.unfinished()
    rows = live_rows.LiveRows([WorkflowRun], lambda label, total: shown)
    assert [(each.values["name"], each.number, each.first.pk) for each in rows.groups(live, "name")] == [
        ("chargging", 5, pks[4]),
        ("charging", 3, pks[1]),
        ("charrging", 1, pks[9]),
    ]
    rows.end()
    assert shown == [3, 6, 9, 10, "end"]


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_the_newest_rows_of_each_name_are_read_over_all_ranges(charging, monkeypatch, size):
    monkeypatch.setattr(live_rows, "RANGE_ROWS", size)
    pks = [engine.start("charging").pk for _ in range(10)]
    WorkflowRun.objects.filter(pk__in=[pks[0], pks[3], pks[5]]).update(name="another")
    WorkflowRun.objects.filter(pk=pks[9]).update(status="completed")
    rows = live_rows.LiveRows([], None).newest(WorkflowRun.objects.unfinished(), "name", 2)
    assert [row.pk for row in rows] == [pks[8], pks[7], pks[5], pks[3]]


def test_no_row_is_read_one_by_one(charging, monkeypatch):
    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            checked()
        return len(captured)

    engine.start("charging")
    few = statements()
    for _ in range(20):
        engine.start("charging")
    assert statements() == few


def test_the_progress_is_shown_on_stderr(charging, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    engine.start("charging")
    answer = automation("plan", "--check", "--json")
    assert "Checking 100%" in answer.err
    assert answer.document["parks"] == []


def test_offsets_far_apart_are_searched_in_ranges_of_their_own():
    now = timezone.now()
    ages = [timedelta(days=1, minutes=10), timedelta(days=30, minutes=10), *map(timedelta, (2, 10, 29))]
    stays = [reservation(checkin_at=now - timedelta(minutes=10)) for _ in ages]
    drain()
    for stay, age in zip(stays, ages, strict=True):  # as if it had occurred then
        Reservation.objects.filter(pk=stay.pk).update(checkin_at=now - age)
        Event.objects.filter(entity_id=str(stay.pk), declared_as="checkin_due").update(at=now - age)
    for days in (1, 30):
        on_event("checkin_due", offset=timedelta(days=days), name=f"after {days}")(lambda event: None)
    definition = next(each.definition for each in declared_on(Reservation) if each.definition.name == "checkin_due")
    windows = windows_of_offsets(definition, now)
    assert len(windows) == 2
    assert all(last - first == definition.grace + timedelta(microseconds=1) for first, last in windows)
    fires = checked()["fires"]
    assert sorted((each["count"], each["why"]) for each in fires) == [
        (1, "callback after 1: its offset fires at once"),
        (1, "callback after 30: its offset fires at once"),
    ]
    events = Event.objects.filter(entity_id__in=[str(each.pk) for each in stays[:2]], declared_as="checkin_due")
    assert {each["example"] for each in fires} == set(events.values_list("pk", flat=True))


def test_a_new_offset_of_a_free_event_fires():
    FreeEvent("parcel.sent")
    on_event("parcel.sent", offset=timedelta(days=400), name="later")(lambda event: None)
    emit("parcel.sent", at=timezone.now() - timedelta(minutes=30))
    drain()
    on_event("parcel.sent", offset=timedelta(minutes=20), name="soon")(lambda event: None)
    assert [(each["count"], each["why"]) for each in checked()["fires"]] == [
        (1, "callback soon: its offset fires at once")
    ]
