"""Events of models whose class belongs to another package: ``register_events``."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import AbstractUser, Group, User
from django.core.checks import run_checks
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import register_events
from django_ai.automation.agents.core import agent, handler
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events import claims
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.checks import check_callbacks, check_definitions
from django_ai.automation.events.declarations import declared_events, declared_on
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.testing import assert_not_occurred, assert_occurred
from django_ai.automation.workflows.core import complete, event_workflow, step, wait_for_event
from tests.apps.reservations.models import Effect, Guest, LongStay, Reservation, Room, Suite
from tests.support.checked_workflows import check_workflows, flow, only
from tests.support.rows import change, effects, leave, status_of

pytestmark = pytest.mark.django_db(transaction=True)

ACTIVE = EventDefinition("user_active", condition=lambda user: user.is_active)
JOINED = EventDefinition("user_joined", date_field="date_joined", condition=lambda user: user.is_active)
GONE = EventDefinition("user_gone", trigger=EventTrigger.DELETE)


@pytest.fixture
def users():
    register_events(User, ACTIVE, JOINED, GONE)


@pytest.mark.usefixtures("users")
def test_saves_and_deletions_record_the_events_in_their_transaction(work):
    for event in (ACTIVE, GONE):
        on_event(event, name=f"hear {event}")(lambda event: leave(f"{event.event_name} {event.entity.username}"))
    user = User.objects.create_user("ada", is_active=False)
    assert status_of(user, "user_active") == "pending"
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change(user, is_active=True)
        raise ZeroDivisionError
    assert_not_occurred(ACTIVE, user)
    change(user, is_active=True)
    work()
    assert_occurred(ACTIVE, user, times=1)
    user.delete()
    work()
    assert effects() == ["user_active ada", "user_gone ada"]
    assert Event.objects.filter(event_name=ACTIVE).count() == 1


def test_an_instance_that_was_read_before_the_registration_is_compared_with_its_row(work):
    """What the row was before this save decides whether its condition held before."""
    old = User.objects.create_user("ada", is_active=True)
    read_before = User.objects.get(pk=old.pk)
    new = User.objects.create_user("eve", is_active=False)
    register_events(User, ACTIVE)
    read_before.save()
    assert status_of(old, "user_active") == "expired"
    new.is_active = True
    new.save()
    assert status_of(new, "user_active") == "processed"


@pytest.mark.usefixtures("users")
def test_dates_that_bypass_the_signals_are_found(clock, work):
    User.objects.bulk_create([User(username="ada", date_joined=clock() + timedelta(minutes=5))])
    assert reconcile_dates(clock()) == 1
    clock.tick(timedelta(minutes=6))
    work()
    assert_occurred(JOINED, User.objects.get(), times=1)


@pytest.mark.usefixtures("users")
def test_everything_that_names_an_event_takes_its_definition(work):
    @event_workflow(ACTIVE, name="welcome")
    class Welcome:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            leave("begin")
            return wait_for_event(GONE, match={}, then=self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

    @agent("companion", spawn_on=ACTIVE)
    class Companion:
        class Context(BaseModel):
            pass

        @handler(ACTIVE)
        def stay(self, run):
            claims.hold(GONE)
            assert claims.holder(GONE).owner == run
            assert claims.release(GONE)
            leave("handled")

    user = User.objects.create_user("ada")
    work()
    assert AgentRun.objects.get().name == "companion"
    user.delete()
    work()
    assert sorted(effects()) == ["begin", "end", "handled"]
    assert check_workflows(None) == []


def test_children_and_proxies_inherit_what_is_registered(work):
    swept = EventDefinition("swept", condition=lambda room: room.is_clean)
    noted = EventDefinition("noted", condition=lambda stay: bool(stay.note))
    register_events(Room, swept)
    register_events(Reservation, noted)
    suite = Suite.objects.create(number="1")
    change(Room.objects.get(pk="1"), is_clean=True)
    change(suite, stars=1)
    assert Event.objects.filter(event_name="swept").count() == 1
    stay = LongStay.objects.create(note="late")
    assert status_of(Reservation.objects.get(pk=stay.pk), "noted") == "processed"
    assert [each.owner for each in declared_events()["swept"]] == [Room]


def test_an_abstract_model_stands_for_its_children():
    register_events(AbstractUser, ACTIVE)
    assert [each.owner for each in declared_on(User)] == [User]
    assert status_of(User.objects.create_user("ada"), "user_active") == "processed"


@pytest.mark.usefixtures("users")
def test_a_model_without_events_still_costs_nothing():
    Effect.objects.exists()
    with CaptureQueriesContext(connection) as queries:
        Effect.objects.create(name="x")
    assert len(queries) == 1


def test_to_register_again_does_nothing():
    def declared(limit):
        return EventDefinition("named", condition=lambda guest: len(guest.name) > limit, payload=lambda guest: {})

    for _ in range(2):
        register_events(Guest, declared(3))
    register_events(Guest, ACTIVE, ACTIVE)
    assert [each.definition.name for each in declared_on(Guest)] == ["named", "user_active"]
    with pytest.raises(DefinitionError, match=r"app.Guest has another event 'named'"):
        register_events(Guest, declared(4))


@pytest.mark.parametrize(
    ("model", "definitions", "named"),
    [
        (Guest, (), "name its events"),
        (Guest, ("named",), "'named' is not an EventDefinition"),
        ("app.Guest", (ACTIVE,), "give a model class"),
        (dict, (ACTIVE,), "give a model class"),
        (User.groups.through, (ACTIVE,), "through="),
        (Reservation, (EventDefinition("reservation_confirmed"),), "app.Reservation has another event"),
        (Guest, (EventDefinition("a"), EventDefinition("a", existing="fire")), "app.Guest has another event 'a'"),
    ],
)
def test_what_cannot_be_registered_is_refused_with_the_fix(model, definitions, named):
    with pytest.raises(DefinitionError) as raised:
        register_events(model, *definitions)
    assert named in str(raised.value)
    assert declared_on(Guest) == ()


def test_an_event_of_a_child_is_a_conflict(declare):
    declare(Suite, EventDefinition("own"))
    with pytest.raises(DefinitionError, match=r"app.Suite has another event 'own'"):
        register_events(Room, EventDefinition("own"))


def test_one_definition_may_be_registered_for_a_child_and_then_for_its_parent():
    shared = EventDefinition("shared")
    register_events(Suite, shared)
    register_events(Room, shared)
    assert [each.owner for each in declared_on(Suite) if each.definition is shared] == [Room]


def test_a_swapped_model_names_the_one_in_use(settings, monkeypatch):
    monkeypatch.setattr(User._meta, "swappable", "AUTH_USER_MODEL")
    settings.AUTH_USER_MODEL = "app.Guest"
    with pytest.raises(DefinitionError, match=r"this project uses app.Guest in place of it.*get_user_model"):
        register_events(User, ACTIVE)


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("users")
def test_events_of_other_models_are_in_order():
    on_event(ACTIVE)(lambda event: None)
    found = [each for each in run_checks() if str(each.id).startswith("automation.")]
    assert [each.id for each in found] == ["automation.W112"]  # auth_user.date_joined has no index


def test_registered_events_are_checked_like_those_of_a_list():
    register_events(Group, EventDefinition("group_named", watch_fields=["nam"]))
    problem = only(check_definitions(None))
    assert (problem.id, problem.obj) == ("automation.E108", Group)
    assert "Did you mean 'name'" in problem.hint


def test_e106_a_definition_that_no_model_lists():
    on_event(ACTIVE)(lambda event: None)
    problem = only(check_callbacks(None))
    assert problem.id == "automation.E106"
    assert "'user_active', which no code declares" in problem.msg


class Events:
    GONE = GONE


def test_e203_reads_references_in_the_source_of_steps():
    local = ACTIVE

    def begin(self):
        return wait_for_event(GONE, then=self.finish)

    def attribute(self):
        return wait_for_event(event_name=Events.GONE, then=self.finish)

    def enclosed(self):
        return wait_for_event(local, then=self.finish)

    for number, first in enumerate((begin, attribute, enclosed)):
        flow(first, name=f"checked {number}")
    found = check_workflows(None)
    assert [each.id for each in found] == ["automation.E203"] * 3
    assert ["'user_gone'" in each.msg for each in found] == [True, True, False]
    register_events(User, ACTIVE, GONE)
    assert {each.id for each in check_workflows(None)} == {"automation.W204"}
