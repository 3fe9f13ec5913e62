"""Namespaces: subscribers and waits receive only the events of their own namespace."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import complete, engine, get_wake, step, wait_for_event, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.event_options import confirmed, gone, hear, own_waiter, pass_by, planned, rows, starts
from tests.support.rows import change, effects, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


def test_a_namespace_is_kept_on_the_row(declare):
    declare(
        Reservation,
        EventDefinition("fixed", confirmed, namespace="north"),
        EventDefinition("own", confirmed, namespace=lambda stay: stay.note),
        EventDefinition("none", confirmed, namespace=lambda stay: None),
        EventDefinition("plain", confirmed),
    )
    Reservation.objects.create(note="south")
    assert dict(Event.objects.values_list("event_name", "namespace")) == {
        "fixed": "north",
        "own": "south",
        "none": "",
        "plain": "",
    }


@pytest.fixture
def spaces(declare):
    """Declare ``on`` and ``due`` with the note of the reservation as their namespace."""
    declare(
        Reservation,
        EventDefinition("on", confirmed, namespace=lambda stay: stay.note),
        EventDefinition("due", date_field="checkin_at", namespace=lambda stay: stay.note),
    )


def test_subscribers_hear_only_their_namespace(spaces, work):
    for namespace in ("north", "south", None):
        on_event("on", namespace=namespace, name=f"on {namespace}")(lambda event, n=namespace: leave(f"on {n}"))
        on_event_created("on", namespace=namespace, name=f"created {namespace}")(
            lambda event, n=namespace: leave(f"created {n}")
        )
        starts("on", f"flow {namespace}", namespace=namespace)
    Reservation.objects.create(status="confirmed", note="north")
    work()
    assert sorted(effects()) == ["created None", "created north", "flow None", "flow north", "on None", "on north"]
    Reservation.objects.create(status="confirmed", note="")
    work()
    assert sorted(effects()[6:]) == ["created None", "flow None", "on None"]


def test_cancellations_are_heard_in_their_namespace(spaces, work):
    for namespace in ("north", "south"):
        on_event_cancelled("on", namespace=namespace, name=namespace)(lambda event, n=namespace: leave(n))
    Reservation.objects.create(note="south").delete()
    work()
    assert effects() == ["south"]


def test_the_namespace_follows_the_entity_while_the_event_is_pending(clock, spaces, work):
    hear("due", namespace="north")
    hear("due", namespace="south", offset=HOUR)
    stay = Reservation.objects.create(note="north", checkin_at=clock() + HOUR)
    change(stay, note="south")
    assert rows("due")[0].namespace == "south"
    pass_by(clock, work, 1)
    change(stay, note="north")
    assert rows("due")[0].namespace == "south"  # the event has already occurred
    assert pass_by(clock, work, 2) == [f"due {stay.pk}"]


def test_a_namespace_that_changes_behind_djangos_back_is_read_when_it_occurs(clock, spaces, work):
    hear("due", namespace="south")
    stay = Reservation.objects.create(note="north", checkin_at=clock() + HOUR)
    Reservation.objects.update(note="south")
    assert pass_by(clock, work, 2) == [f"due {stay.pk}"]


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_planned_runs_follow_the_namespace(clock, spaces, work, offset):
    starts("due", "north", namespace="north", offset=offset)
    starts("due", "south", namespace="south", offset=offset)
    stay = Reservation.objects.create(note="north", checkin_at=clock() + 3 * HOUR)
    assert [run.name for run in WorkflowRun.objects.all()] == ["north"]
    change(stay, note="south")
    assert planned() == ["south"]
    assert pass_by(clock, work, 5) == ["south"]


def waits_in(name: str, workflow_name: str = "waiter", **options) -> WorkflowRun:
    @workflow(workflow_name)
    class Waiter:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(f"{workflow_name} {get_wake().payload['entity_id']}")
                return complete()
            return wait_for_event(name, **options)

    return engine.start(workflow_name)


@pytest.mark.parametrize("match", [{}, {"status": "confirmed"}, {"status__in": ["confirmed"]}])
def test_waits_hear_only_their_namespace(spaces, work, match):
    for namespace in ("north", "south", None):
        waits_in("on", f"in {namespace}", match=match, namespace=namespace)
    work()
    stay = Reservation.objects.create(status="confirmed", note="north")
    work()
    assert sorted(effects()) == [f"in None {stay.pk}", f"in north {stay.pk}"]


@pytest.mark.parametrize("match", [{}, {"status": "confirmed"}, {"status__in": ["confirmed"]}])
def test_waits_that_look_back_see_only_their_namespace(spaces, work, match):
    @workflow("late")
    class Late:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["entity_id"])
                return complete()
            if not Reservation.objects.exists():
                for note in ("south", "north", "north"):
                    Reservation.objects.create(status="confirmed", note=note)
            return wait_for_event("on", match=match, namespace="north")

    engine.start("late")
    work()
    work()
    assert effects() == [str(Reservation.objects.filter(note="north").first().pk)]


@pytest.mark.parametrize("namespace", ["north", lambda stay: stay.note])
def test_a_wait_in_a_namespace_ends_with_its_own_entity(declare, work, namespace):
    declare(Reservation, EventDefinition("made", trigger=CREATE), EventDefinition("on", confirmed, namespace=namespace))
    own_waiter("on", namespace="north")
    stay = Reservation.objects.create(note="north")
    work()
    assert the_run().status == "suspended"
    stay.delete()
    work()
    assert the_run().status == "cancelled"


def test_a_wait_in_a_namespace_for_its_own_entity(spaces, declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), *Reservation.events)
    own_waiter("on", namespace="north")
    south, north = (Reservation.objects.create(note=note) for note in ("south", "north"))
    work()
    for stay in (south, north):
        change(stay, status="confirmed")
    work()
    assert [run.status for run in WorkflowRun.objects.order_by("pk")] == ["suspended", "completed"]


@pytest.mark.parametrize(
    ("namespace", "named", "status"),
    [
        (lambda stay: 1 / 0, "ZeroDivisionError", "pending"),
        (lambda stay: "x" * 101, "100", "parked"),
        (lambda stay: 5, "returned 5", "parked"),
    ],
)
def test_a_namespace_function_that_fails_sets_the_event_aside_and_not_the_save(declare, namespace, named, status):
    declare(Reservation, EventDefinition("on", confirmed, namespace=namespace))
    stay = Reservation.objects.create(status="confirmed")
    (row,) = rows("on")
    assert (row.status, named in row.error) == (status, True)
    assert Reservation.objects.filter(pk=stay.pk).exists()
    assert rows("on")[0].namespace == ""


def test_a_namespace_function_that_is_mended(declare, work):
    problem = [True]

    def namespace(stay):
        if problem:
            raise RuntimeError
        return "north"

    declare(Reservation, EventDefinition("on", confirmed, namespace=namespace))
    Reservation.objects.create(status="confirmed")
    problem.clear()
    (row,) = rows("on")
    work(row.wake_at)
    (row,) = rows("on")
    assert (row.status, row.namespace) == ("processed", "north")


def test_a_deletion_has_its_namespace(declare, work):
    declare(Reservation, gone(namespace=lambda stay: stay.note))
    hear("gone", namespace="north")
    Reservation.objects.create(note="south").delete()
    Reservation.objects.create(note="north").delete()
    work()
    assert len(effects()) == 1
    assert [row.namespace for row in rows("gone")] == ["south", "north"]


def test_each_update_has_the_namespace_of_its_moment(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE, namespace=lambda stay: stay.note))
    stay = Reservation.objects.create()
    for note in ("north", "south"):
        change(stay, note=note)
    assert [row.namespace for row in rows("updated")] == ["north", "south"]
