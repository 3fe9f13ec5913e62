"""Templated names: an event's name contains values of its entity; a subscription matches one name or all names."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import complete, engine, get_wake, step, wait_for_event, workflow
from tests.apps.reservations.models import Chore, Document, Guest, Reservation, Room
from tests.support.event_options import confirmed, hear, pass_by, planned, rows, starts
from tests.support.rows import change, effects, leave, the_run, use_up_attempts

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE
DONE = "task_done:{{ instance.pk }}"


@pytest.fixture
def tasks(declare):
    declare(Chore, EventDefinition(DONE, lambda task: task.done))


def test_rows_carry_rendered_names(tasks):
    one, two = Chore.objects.create(done=True), Chore.objects.create()
    assert [(row.event_name, row.status) for row in rows(DONE)] == [
        (f"task_done:{one.pk}", "processed"),
        (f"task_done:{two.pk}", "pending"),
    ]


def test_a_subscriber_names_one_a_pattern_or_the_template(tasks, work):
    one, two = Chore.objects.create(), Chore.objects.create()
    for pattern in (f"task_done:{one.pk}", "task_done:*", DONE, "*", "*done*", "task_done:{{ instance.other }}", "x*"):
        on_event(pattern, name=pattern)(lambda event, p=pattern: leave(f"{p} {event.entity_id}"))
    change(one, done=True)
    work()
    everybody = {"task_done:*", DONE, "*", "*done*", "task_done:{{ instance.other }}"}
    assert set(effects()) == {f"{pattern} {one.pk}" for pattern in {*everybody, f"task_done:{one.pk}"}}
    change(two, done=True)
    work()
    assert set(effects()[6:]) == {f"{pattern} {two.pk}" for pattern in everybody}


def test_workflows_on_a_pattern_and_a_template(tasks, work):
    one = Chore.objects.create()
    starts(f"task_done:{one.pk}", "exact")
    starts("task_done:*", "pattern")
    starts(DONE, "template")
    starts("*", "all")
    change(one, done=True)
    Chore.objects.create(done=True)
    work()
    assert sorted(effects()) == ["all", "all", "exact", "pattern", "pattern", "template", "template"]


def test_offsets_of_a_pattern(clock, tasks, work):
    hear("task_done:*", offset=HOUR)
    starts(DONE, "flow", offset=HOUR)
    chore = Chore.objects.create(done=True)
    assert sorted(pass_by(clock, work, 1)) == ["flow", f"task_done:{chore.pk} {chore.pk}"]


def test_percent_underscore_and_dots_are_text(declare, work):
    declare(Room, EventDefinition("a.b_%:{{ instance.number }}", lambda room: room.is_clean))
    hear("a.b_%:*")
    hear("aXb_%:*")
    hear("a.b_%:(x*")
    Room.objects.create(number="(x", is_clean=True)
    work()
    assert effects() == ["a.b_%:(x (x"] * 2


def test_a_name_with_a_line_break_is_meant_by_a_pattern_too(declare, work):
    declare(Room, EventDefinition("cleaned:{{ instance.number }}", lambda room: room.is_clean))
    hear("cleaned:*")
    Room.objects.create(number="1\n2", is_clean=True)
    work()
    assert effects() == ["cleaned:1\n2 1\n2"]


def test_a_value_that_looks_like_a_pattern_or_a_template_is_only_a_value(declare, work):
    declare(Room, EventDefinition("cleaned:{{ instance.number }}", lambda room: room.is_clean))
    hear("cleaned:7")
    for number in ("*", "{{ instance.pk }}"):
        Room.objects.create(number=number, is_clean=True)
    work()
    assert effects() == []
    assert [row.event_name for row in rows("cleaned:{{ instance.number }}")] == [
        "cleaned:*",
        "cleaned:{{ instance.pk }}",
    ]


def test_a_name_of_a_relation(declare, work):
    declare(Document, EventDefinition("uploaded:{{ instance.reservation.guest.name }}"))
    hear("uploaded:O'Brien")
    guest = Guest.objects.create(name="O'Brien")
    document = Document.objects.create(reservation=Reservation.objects.create(guest=guest))
    work()
    assert effects() == [f"uploaded:O'Brien {document.pk}"]


def test_a_relation_that_is_empty_parks_the_event_and_not_the_save(declare, work):
    declare(Document, EventDefinition("uploaded:{{ instance.reservation.guest.name }}"))
    Document.objects.create(reservation=Reservation.objects.create())
    (row,) = Event.objects.filter(entity_type="app.document")
    use_up_attempts(row, work)
    assert (row.status, "AttributeError" in row.error) == ("parked", True)
    assert row.event_name == "uploaded:{{ instance.reservation.guest.name }}"


def test_a_name_that_gets_too_long_parks_the_event_and_not_the_save(declare):
    declare(Reservation, EventDefinition("x" * 150 + "{{ instance.note }}", confirmed))
    Reservation.objects.create(note="y" * 51)
    row = Event.objects.get()
    assert (row.status, "longer than 200" in row.error) == ("parked", True)
    Event.objects.all().delete()
    Reservation.objects.create(note="y" * 50)
    assert Event.objects.get().status == "pending"


def test_a_name_follows_the_entity_while_the_event_is_pending(clock, declare, work):
    declare(Reservation, EventDefinition("due:{{ instance.note }}", date_field="checkin_at"))
    hear("due:a")
    hear("due:b")
    stay = Reservation.objects.create(note="a", checkin_at=clock() + HOUR)
    change(stay, note="b")
    assert [row.event_name for row in rows("due:{{ instance.note }}")] == ["due:b"]
    assert pass_by(clock, work, 1) == [f"due:b {stay.pk}"]
    change(stay, note="a")
    assert [row.event_name for row in rows("due:{{ instance.note }}")] == ["due:b"]


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_planned_runs_follow_the_name(clock, declare, work, offset):
    declare(Reservation, EventDefinition("due:{{ instance.note }}", date_field="checkin_at"))
    starts("due:a", "a", offset=offset)
    starts("due:b", "b", offset=offset)
    starts("due:*", "all", offset=offset)
    stay = Reservation.objects.create(note="a", checkin_at=clock() + 3 * HOUR)
    change(stay, note="b")
    assert planned() == ["all", "b"]
    assert sorted(pass_by(clock, work, 5)) == ["all", "b"]


def test_a_new_name_brings_its_subscribers_offsets(clock, declare, work):
    declare(Reservation, EventDefinition("due:{{ instance.note }}", date_field="checkin_at"))
    hear("due:b", offset=-2 * HOUR)
    stay = Reservation.objects.create(note="a", checkin_at=clock() + 3 * HOUR)
    change(stay, note="b")
    assert pass_by(clock, work, 1) == [f"due:b {stay.pk}"]


def test_a_templated_name_with_update_and_delete(declare):
    name = "note:{{ instance.note }}"
    declare(Reservation, EventDefinition(name, trigger=[UPDATE, DELETE]))
    stay = Reservation.objects.create()
    for note in ("a", "b"):
        stay = change(stay, note=note)
    stay.delete()
    assert [(row.event_name, row.trigger) for row in rows(name)] == [
        ("note:a", "update"),
        ("note:b", "update"),
        ("note:b", "delete"),
    ]


def task_waiter(name: str = "task_done:{{ ctx.task_id }}", **options) -> None:
    @workflow("task waiter")
    class TaskWaiter:
        class Context(BaseModel):
            task_id: int = 0
            wanted: str = ""

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(f"{self.context.task_id} {get_wake().payload['event_name']}")
                return complete()
            return wait_for_event(name, **options)


def test_a_wait_names_one_task(tasks, work):
    task_waiter()
    one, two = Chore.objects.create(), Chore.objects.create()
    runs = [engine.start("task waiter", task_id=task.pk) for task in (one, two)]
    work()
    change(two, done=True)
    work()
    for run in runs:
        run.refresh_from_db()
    assert [run.status for run in runs] == ["suspended", "completed"]
    assert effects() == [f"{two.pk} task_done:{two.pk}"]


def test_a_wait_for_a_task_that_was_done_before_it_registered(tasks, work):
    @workflow("task waiter")
    class TaskWaiter:
        class Context(BaseModel):
            task_id: int

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                return complete()
            for task in Chore.objects.order_by("-pk"):
                change(task, done=task.pk == self.context.task_id or task.done)
            return wait_for_event("task_done:{{ ctx.task_id }}")

    one, two = Chore.objects.create(), Chore.objects.create()
    runs = []
    for task in (one, two):
        runs.append(engine.start("task waiter", task_id=task.pk))
        work()
        work()
        runs[-1].refresh_from_db()
    assert [run.status for run in runs] == ["completed", "completed"]


@pytest.mark.parametrize("match", [{"done": True}, {"pk": "{{ ctx.task_id }}"}, {"pk__in": [1, 2, 3], "done": True}])
@pytest.mark.parametrize("before", [True, False])
def test_a_name_and_a_match_together(declare, work, match, before):
    declare(Chore, EventDefinition("saved:{{ instance.pk }}", trigger=UPDATE))
    Chore.objects.bulk_create([Chore(pk=pk) for pk in (1, 2)])

    @workflow("both")
    class Both:
        class Context(BaseModel):
            task_id: int = 2

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["event_name"])
                return complete()
            if before:
                for pk in (1, 2):
                    Chore(pk=pk, done=True).save()
            return wait_for_event("saved:{{ ctx.task_id }}", match=match)

    run = engine.start("both")
    work()
    if not before:
        for pk in (1, 2):
            Chore(pk=pk, done=True).save()
    work()
    run.refresh_from_db()
    assert (run.status, effects()) == ("completed", ["saved:2"])


def test_a_name_with_a_match_that_does_not_fit(tasks, work):
    task_waiter(match={"done": False})
    chore = Chore.objects.create()
    run = engine.start("task waiter", task_id=chore.pk)
    work()
    change(chore, done=True)
    work()
    run.refresh_from_db()
    assert run.status == "suspended"


def test_a_wait_on_a_templated_event_with_a_timeout(clock, tasks, work):
    @workflow("patient")
    class Patient:
        class Context(BaseModel):
            task_id: int

        @step(start=True)
        def first(self):
            return wait_for_event("task_done:{{ ctx.task_id }}", timeout=HOUR, on_timeout=self.late)

        @step()
        def late(self):
            leave("late")
            return complete()

    engine.start("patient", task_id=Chore.objects.create().pk)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["late"]


def test_a_wait_whose_name_gets_too_long_fails_the_run(tasks, work):
    task_waiter("task_done:{{ ctx.wanted }}")
    engine.start("task waiter", wanted="x" * 250)
    work()
    assert the_run().status == "failed"
    assert "of 260 characters" in the_run().error


def test_a_wait_whose_context_lacks_the_field_fails_the_run(tasks, work):
    task_waiter("task_done:{{ ctx.nothing }}")
    engine.start("task waiter")
    work()
    assert the_run().status == "failed"
    assert "'nothing'" in the_run().error


def test_a_value_of_the_context_with_a_star_waits_for_just_that_name(declare, work):
    declare(Room, EventDefinition("cleaned:{{ instance.number }}", lambda room: room.is_clean))
    task_waiter("cleaned:{{ ctx.wanted }}")
    run = engine.start("task waiter", wanted="*")
    work()
    Room.objects.create(number="7", is_clean=True)
    work()
    run.refresh_from_db()
    assert run.status == "suspended"
    Room.objects.create(number="*", is_clean=True)
    work()
    run.refresh_from_db()
    assert run.status == "completed"
