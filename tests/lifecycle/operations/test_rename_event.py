"""``RenameEvent`` in migrations: rows, waits, claims, shapes and history, for plain names, templates and families."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.db import connection, migrations
from django.db.migrations.state import ProjectState
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    Concurrency,
    EventDefinition,
    FreeEvent,
    RateLimit,
    acting_as,
    agent,
    claims,
    complete,
    emit,
    engine,
    event_workflow,
    handler,
    on_event,
    step,
    wait_all,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.definitions import find_agent
from django_ai.automation.agents.definitions import unregister as unregister_agent
from django_ai.automation.agents.models import AgentRoute
from django_ai.automation.events.callbacks import all_callbacks
from django_ai.automation.events.callbacks import unregister as unregister_callback
from django_ai.automation.events.free_events import find_free_event, unregister
from django_ai.automation.events.models import Event, EventClaim, RoutingShape
from django_ai.automation.events.name_map import NameMap
from django_ai.automation.events.operations import RenameEvent
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues import data_operation
from django_ai.automation.queues.models import Limiter
from django_ai.automation.queues.problems import mute
from django_ai.automation.values.digests import digest
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.apps.reservations.models import Chore, Reservation, is_confirmed
from tests.support.rows import effects, leave, status
from tests.support.stored_names import HOLDS, places

pytestmark = pytest.mark.django_db(transaction=True)

OLD, NEW = "a_former_event", "its_new_event"
HOUR = timedelta(hours=1)


def run(*operations, backwards: bool = False) -> None:
    migration = migrations.Migration("0002_more", "reservations")
    migration.operations = list(operations)
    with connection.schema_editor(atomic=migration.atomic) as editor:
        (migration.unapply if backwards else migration.apply)(ProjectState.from_apps(apps), editor)


class Stay(BaseModel):
    reservation_id: int = 0
    status: str = "confirmed"


def waits(outcome) -> type:
    """Declare a workflow that waits for what ``outcome(context)`` returns, and leaves what it has received."""

    @workflow("waits")
    class Waits:
        Context = Stay

        @step(start=True)
        def begin(self):
            return outcome(self)

        @step()
        def end(self):
            leave("received")
            return complete()

    return Waits


def declare_as(declare, name: str, **options) -> None:
    declare(Reservation, EventDefinition(name, **options))


def test_every_stored_name_is_renamed(work, declare):
    declare_as(declare, OLD, condition=is_confirmed)

    @workflow("everything")
    class Everything:
        Context = Stay

        @step(start=True)
        def begin(self):
            claims.hold(OLD, {"note": "mine"})
            first = wait_for_event(OLD, match={"status": "{{ ctx.status }}"})
            return wait_all({"first": first, "second": wait_for_event(OLD, match={"note": "later"})}, then=self.end)

        @step()
        def end(self):
            return complete()

    @on_event(OLD, name="hears", concurrency=Concurrency(1))
    def hears(event):
        leave("heard")

    begun = engine.start("everything")
    work()
    Reservation.objects.create(status="confirmed")
    work()
    begun.steps.filter(before__isnull=False).update(before={"branches": begun_branches(begun)})
    WorkflowRun.objects.filter(pk=begun.pk).update(ending={"branches": begun_branches(begun)})
    engine.signal(f"event:{OLD}", {"note": "nothing"})
    with acting_as("ops"):
        declare_as(declare, OLD, condition=is_confirmed, date_field="checkin_at")
        Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + HOUR)
        Event.objects.get(status="pending").fire_now()
    parked = Event.objects.create(event_name=OLD, declared_as=OLD, status="parked", error="ValueError: no")
    mute(parked)
    stored = places(OLD)
    assert stored | {"automation_queues.Maintenance.position"} == HOLDS["event"]
    declare_as(declare, NEW, condition=is_confirmed)
    run(RenameEvent(OLD, NEW))
    assert places(OLD) == {"automation_queues.Maintenance.position"}
    assert stored <= places(NEW)
    run(RenameEvent(OLD, NEW), backwards=True)
    assert places(NEW) == set()
    assert places(OLD) == stored


def begun_branches(run_: WorkflowRun) -> object:
    run_.refresh_from_db()
    return run_.branches


def test_what_has_occurred_does_not_occur_again(work, declare):
    declare_as(declare, OLD, condition=is_confirmed)
    found = Reservation.objects.create(status="confirmed")
    work()
    declare_as(declare, NEW, condition=is_confirmed)

    @on_event(NEW, name="hears")
    def hears(event):
        leave(event.event_name)

    run(RenameEvent(OLD, NEW))
    found.save()
    work()
    assert effects() == []
    assert Event.objects.get().definition.name == NEW


def test_a_pending_date_is_kept_and_fires_once(work, declare):
    declare_as(declare, OLD, date_field="checkin_at")
    found = Reservation.objects.create(checkin_at=timezone.now() + HOUR)
    declare_as(declare, NEW, date_field="checkin_at")

    @on_event(NEW, name="hears")
    def hears(event):
        leave(event.event_name)

    run(RenameEvent(OLD, NEW))
    found.save()
    work(timezone.now() + 2 * HOUR)
    assert effects() == [NEW]


@pytest.mark.parametrize(
    ("outcome", "fits"),
    [
        (lambda self: wait_for_event(OLD, then=self.end), True),
        (lambda self: wait_for_event(OLD, match={"status": "{{ ctx.status }}"}, then=self.end), True),
        (lambda self: wait_for_event(OLD, match={"id": "{{ ctx.reservation_id }}"}, then=self.end), False),
        (
            lambda self: wait_for_event(OLD, match={"checkin_at": None, "status__in": ["confirmed"]}, then=self.end),
            True,
        ),
        (lambda self: wait_for_event(OLD, namespace="north", then=self.end), True),
        (lambda self: wait_for_event(OLD, namespace="south", then=self.end), False),
        (lambda self: wait_for_event(OLD, match={"status": "confirmed"}, namespace="north", then=self.end), True),
    ],
)
def test_a_wait_receives_the_event_under_its_new_name(work, declare, outcome, fits):
    declare_as(declare, OLD, condition=is_confirmed, namespace="north")
    waits(outcome)
    found = engine.start("waits")
    work()
    declare_as(declare, NEW, condition=is_confirmed, namespace="north")
    run(RenameEvent(OLD, NEW))
    assert Wait.objects.get().channel == f"event:{NEW}"
    Reservation.objects.create(status="confirmed")
    work()
    assert (status(found), effects()) == (("completed", ["received"]) if fits else ("suspended", []))


def test_a_wait_for_the_runs_own_entity_is_found(work, declare):
    declare(Reservation, EventDefinition(OLD, condition=is_confirmed), EventDefinition("made"))

    @event_workflow("made", name="waits")
    class Waits:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def begin(self):
            return wait_for_event(OLD, then=self.end)

        @step()
        def end(self):
            return complete()

    mine = Reservation.objects.create()
    work()
    found = WorkflowRun.objects.get()
    assert Wait.objects.get().match == {"pk": str(mine.pk)}
    declare_as(declare, NEW, condition=is_confirmed)
    run(RenameEvent(OLD, NEW))
    declare(Reservation, EventDefinition(NEW, condition=is_confirmed), EventDefinition("made"))
    mine.status = "confirmed"
    mine.save()
    work()
    assert status(found) == "completed"


def test_a_wait_whose_field_has_changed_is_refused_with_its_row(work, declare):
    declare_as(declare, OLD, condition=is_confirmed)
    waits(lambda self: wait_for_event(OLD, match={"note": "7"}, then=self.end))
    engine.start("waits")
    work()
    declare(Chore, EventDefinition(NEW, condition=lambda chore: chore.done))
    declare(Reservation)
    Wait.objects.update(match={"done": "7"})
    with pytest.raises(DefinitionError, match=rf"wait #{Wait.objects.get().pk} of run #\d+ compares"):
        run(RenameEvent(OLD, NEW))
    assert Wait.objects.get().channel == f"event:{OLD}"


def test_a_claim_counts_under_the_new_name(work, declare):
    declare_as(declare, OLD, condition=is_confirmed)
    waits(lambda self: wait_for_event("checkout_due", match={"status": "never"}, then=self.end))
    owner = engine.start("waits")
    claims.hold(OLD, {"note": "mine"}, owner=owner, namespace="north")
    declare_as(declare, NEW, condition=is_confirmed)
    run(RenameEvent(OLD, NEW))
    claim = claims.holder(NEW, {"note": "mine"}, namespace="north")
    assert claim is not None
    assert claim.owner == owner
    assert claims.release(NEW, {"note": "mine"}, owner=owner, namespace="north")
    assert set(RoutingShape.objects.values_list("event_name", flat=True)) <= {NEW, "checkout_due"}


def test_two_claims_of_both_names_are_refused(declare):
    declare(Reservation, EventDefinition(OLD), EventDefinition(NEW))
    waits(lambda self: complete())
    for name in (OLD, NEW):
        claims.hold(name, owner=engine.start("waits"))
    Reservation.objects.bulk_create([Reservation()])
    declare_as(declare, NEW)
    Event.objects.create(event_name=OLD, declared_as=OLD, entity_type="reservations.reservation", entity_id="7")
    with pytest.raises(DefinitionError, match=r"claim #\d+ and claim #\d+ are for the same events"):
        run(RenameEvent(OLD, NEW))
    assert EventClaim.objects.count() == 2


def test_templates_keep_the_part_that_varies(work, declare):
    declare(Chore, EventDefinition("done:{{ instance.pk }}", condition=lambda chore: chore.done))
    waits(lambda self: wait_for_event("done:{{ ctx.reservation_id }}", then=self.end))
    chore, other = Chore.objects.create(), Chore.objects.create(done=True)
    engine.start("waits", reservation_id=chore.pk)
    work()
    declare(Chore, EventDefinition("finished:{{ instance.pk }}!", condition=lambda chore: chore.done))
    run(RenameEvent("done:{{ instance.pk }}", "finished:{{ instance.pk }}!"))
    assert Event.objects.get(entity_id=str(other.pk)).event_name == f"finished:{other.pk}!"
    assert Wait.objects.get().channel == f"event:finished:{chore.pk}!"


def test_free_events_and_families_keep_their_keys(work):
    old, family = FreeEvent("paid_before"), FreeEvent("stripe:*")
    first, second = emit(old, {"cents": 5}, key="12"), emit("stripe:refund", {}, key="9", namespace="north")
    for each in (old, family):
        unregister(each)
    new, other = FreeEvent("paid"), FreeEvent("pay:*")
    run(RenameEvent("paid_before", "paid"), RenameEvent("stripe:*", "pay:*"))
    assert emit(new, {"cents": 7}, key="12").pk == first.pk
    assert emit("pay:refund", {}, key="9", namespace="north").pk == second.pk
    assert {each.definition for each in Event.objects.all()} == {new, other}


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("", "b"), ("a", "a"), ("a:{{ instance.pk }}", "a"), ("a:*", "a:*:*")])
def test_invalid_names_are_refused_at_import(old, new):
    with pytest.raises(DefinitionError, match="RenameEvent"):
        RenameEvent(old, new)


def test_unknown_remaining_and_used_names_are_refused(declare, monkeypatch):
    declare_as(declare, OLD)
    Reservation.objects.create()
    with pytest.raises(DefinitionError, match=f"still declares the event '{OLD}'"):
        run(RenameEvent(OLD, NEW))
    declare_as(declare, "its_new_evnt")
    with pytest.raises(DefinitionError, match=r"is called 'its_new_event'\. Did you mean 'its_new_evnt'"):
        run(RenameEvent(OLD, NEW))
    declare_as(declare, NEW)
    Reservation.objects.create()
    with pytest.raises(DefinitionError, match="add merge=True"):
        run(RenameEvent(OLD, NEW))
    run(RenameEvent(OLD, NEW, merge=True))
    assert set(Event.objects.values_list("event_name", flat=True)) == {NEW}
    later = (RenameEvent(NEW, "its_last_event"), RenameEvent("its_last_event", "not_declared"))
    monkeypatch.setattr(data_operation, "_all_operations", lambda: later)
    declare_as(declare, "its_last_event")
    with pytest.raises(DefinitionError, match="'not_declared'"):
        run(later[0])


def test_two_rows_of_one_entity_are_refused_with_their_keys(declare):
    declare(Reservation, EventDefinition(OLD), EventDefinition(NEW))
    Reservation.objects.create()
    declare_as(declare, NEW)
    with pytest.raises(DefinitionError, match=r"event #\d+ and event #\d+ are about the same entity"):
        run(RenameEvent(OLD, NEW, merge=True))


# -- functions and handlers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hears", f"hears on {OLD}"])
def test_a_rate_limit_counts_what_was_called_under_the_old_name(work, declare, name):
    def hear(on: str) -> None:
        for each in all_callbacks():
            if each.name == name:
                unregister_callback(each)
        declare_as(declare, on, condition=is_confirmed)

        @on_event(on, name=name, rate_limit=RateLimit(1, per=HOUR))
        def hears(event):
            leave(event.event_name)

    hear(OLD)
    Reservation.objects.create(status="confirmed")
    work()
    hear(NEW)
    run(RenameEvent(OLD, NEW))
    assert set(Limiter.objects.values_list("name", flat=True)) == {f"{name} on {NEW}"}
    Reservation.objects.create(status="confirmed")
    work()
    assert effects() == [OLD]


def test_limits_at_a_milestone_and_of_a_template_are_renamed_and_of_other_events_are_not(declare):
    names = {
        "care.greet on done:* at 1 day": "care.greet on finished:* at 1 day",
        "care on call.greet on done:7": "care on call.greet on finished:7",
        "care.greet on well done:7": "care.greet on well done:7",
    }
    for name in names:
        Limiter.objects.create(row_kind="handler", name=name, limit="rate", key=digest("limiter", "handler", name))
    run(RenameEvent("done:{{ instance.pk }}", "finished:{{ instance.pk }}"))
    assert sorted(Limiter.objects.values_list("name", flat=True)) == sorted(names.values())


@pytest.mark.parametrize(("before", "after"), [(OLD, NEW), ("stripe:*", "pay:*")])
def test_an_agent_receives_the_event_under_its_new_name_and_its_limit_continues(work, before, after):
    def care(on: str) -> None:
        FreeEvent(on)

        class Care:
            class Context(BaseModel):
                seen: int = 0

            @handler(on, concurrency=Concurrency(1))
            def greet(self, ctx, event):
                leave(event.event_name)

        agent("care_of_all")(Care)

    care(before)
    first, second = AgentManager.spawn("care_of_all"), AgentManager.spawn("care_of_all")
    AgentManager.cancel(second)
    emit(before.replace("*", "refund"))
    work()
    unregister(find_free_event(before))
    unregister_agent(find_agent("care_of_all"))
    care(after)
    run(RenameEvent(before, after))
    emit(after.replace("*", "refund"))
    work()
    assert effects() == [name.replace("*", "refund") for name in (before, after)]
    assert set(Limiter.objects.values_list("name", flat=True)) == {f"care_of_all.greet on {after}"}
    run(RenameEvent(before, after), backwards=True)
    assert AgentRoute.objects.filter(run=first).count() == 2
    assert not AgentRoute.objects.filter(run=second).exists()


def test_without_events_it_does_nothing():
    run(RenameEvent(OLD, NEW))


@pytest.mark.parametrize(
    ("old", "new", "stored", "renamed"),
    [
        ("a", "b", "a", "b"),
        ("a", "b", "ab", None),
        ("a:*", "b:*:c", "a:x:y", "b:x:y:c"),
        ("a:*", "b:*", "a:", None),
        ("a:{{ instance.pk }}", "b:{{instance.pk}}", "a:*", "b:*"),
        ("{{ instance.x }}-{{ instance.y }}", "{{ instance.y }}+{{ instance.x }}", "1-2", "2+1"),
    ],
)
def test_names_are_mapped(old, new, stored, renamed):
    assert NameMap(old, new, "test").get(stored) == renamed
