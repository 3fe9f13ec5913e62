"""``automation forget``: everything of one entity is erased, and nothing of another one."""

from __future__ import annotations

import json

import pytest
from django.apps import apps
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    acting_as,
    complete,
    engine,
    event_workflow,
    handler,
    on_cancel,
    on_event,
    step,
    wait,
)
from django_ai.automation import agent as declare_agent
from django_ai.automation.console import forgetting
from django_ai.automation.console.commands.entities import find_entity
from django_ai.automation.console.forgetting import Forgetting, forget
from django_ai.automation.events.models import Event, Snapshot
from django_ai.automation.exceptions import StateError
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, Pause
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.apps.reservations.models import Guest, Reservation
from tests.support.automation_command import automation

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "Ada-Lovelace"


class Noted(BaseModel):
    note: str = ""


@pytest.fixture
def subscribers():
    @on_event("reservation_confirmed", name="mail", retry=Retry(max_attempts=1))
    def mail(event):
        raise ValueError(f"no mailbox for {event.entity.note}")

    @event_workflow("reservation_confirmed", name="welcome")
    class Welcome:
        Context = Noted

        @classmethod
        def create_context(cls, event):
            return Noted(note=event.entity.note)

        @step(start=True)
        def begin(self):
            return wait("reply", then=self.end)

        @step
        def end(self):
            return complete()

    @declare_agent("host", spawn_on="reservation_confirmed")
    class Host:
        Context = Noted

        @classmethod
        def create_context(cls, event):
            return Noted(note=event.entity.note)

        @handler("reservation_confirmed", retry=Retry(max_attempts=1))
        def greet(self, run):
            raise ValueError(f"cannot greet {self.context.note}")


def book(note: str = SECRET) -> Reservation:
    stay = Reservation.objects.create(guest=Guest.objects.create(name="x"), status="confirmed", note=note)
    drain()
    run = WorkflowRun.objects.latest("pk")
    with acting_as("user:5", f"Asked for by {note}."):
        engine.signal("noted", {"note": note}, run=run)
        engine.pause(run, reason=f"{note} is ill.")
        engine.edit_context(run, {"note": f"{note}!"}, reason=f"{note} asked for it.")
    return stay


def named(stay: Reservation) -> str:
    return f"app.Reservation:{stay.pk}"


def kept() -> str:
    """Return all values of all automation tables."""
    found: list[str] = []
    for model in apps.get_models():
        if model.__module__.startswith("django_ai."):
            found += [json.dumps(row, default=str) for row in model._base_manager.values()]
    return "\n".join(found)


def test_what_is_unfinished_is_not_forgotten(subscribers):
    stay = book()
    name = named(stay)
    living = automation("forget", name)
    assert (living.code, "Delete it first" in living.err) == (1, True)
    refused = automation("forget", name, "--living")
    assert refused.code == 1
    assert "has unfinished rows: 1 workflow(s), 1 agent(s)" in refused.err
    dry = automation("forget", name, "--dry-run", "--json").document
    assert dry["unfinished"] == {"workflow": 1, "agent": 1}
    assert SECRET in kept()
    assert automation("forget", name, "--at-once").code == 2
    assert "Did you mean 'app.Reservation'?" in automation("forget", "app.Reservatoin:1").err


def test_nothing_is_kept_of_a_deleted_entity(subscribers):
    stay, other = book(), book("Grace-Hopper")
    name = named(stay)
    stay.delete()
    drain()
    assert Snapshot.objects.count() == 1
    answer = automation("forget", name, "--cancel", "--reason", "Asked for.", "--actor", "user:5", "--json")
    assert answer.code == 0
    assert answer.document["erased"]["workflow"] == 1
    assert answer.document["erased"]["agent"] == 1
    rest = kept()
    assert SECRET not in rest
    assert "Grace-Hopper" in rest
    assert not Snapshot.objects.exists()
    assert not Event.objects.filter(entity_id=name.partition(":")[2]).exists()
    assert Event.objects.filter(entity_id=str(other.pk)).exists()
    assert (Pause.objects.count(), WorkflowRun.objects.count()) == (1, 1)
    action = Action.objects.latest("pk")
    assert (action.done, action.actor, action.reason) == ("Forgotten", "user:5", "Asked for.")
    assert action.what.startswith(f"app.reservation {action.key}: 1 workflow(s), 1 agent(s)")
    assert automation("forget", name).out == f"Nothing is kept of app.reservation {action.key}.\n"


def test_the_values_of_a_living_entity_are_erased_and_its_events_do_not_occur_again(subscribers):
    stay = book()
    Event.objects.filter(event_name="reservation_confirmed").update(payload={"note": SECRET})
    rows = Event.objects.count()
    answer = automation("forget", named(stay), "--living", "--cancel")
    assert answer.code == 0
    assert "is forgotten." in answer.out
    assert SECRET not in kept()
    assert Event.objects.count() == rows
    assert not StepExecution.objects.exists()
    Reservation.objects.get(pk=stay.pk).save()
    drain()
    assert WorkflowRun.objects.count() == 1
    assert Event.objects.count() == rows


def test_an_interrupted_erasure_continues(subscribers, monkeypatch):
    monkeypatch.setattr(forgetting, "BATCH_ROWS", 1)
    stay = book()
    name = named(stay)
    stay.delete()
    drain()
    entity = find_entity(name)
    work = Forgetting(entity)
    work.prepare(cancel=True, at_once=False, living=False)
    steps = work.run()
    assert (next(steps), next(steps)) == (1, 2)
    steps.close()
    assert not WorkflowRun.objects.exists()
    assert SECRET in kept()
    total = Forgetting(entity).total()
    assert sum(forget(entity).values()) == total
    assert SECRET not in kept()


def test_a_run_that_undoes_its_work_is_waited_for():
    @event_workflow("reservation_confirmed", name="booking")
    class Booking:
        Context = Noted

        @classmethod
        def create_context(cls, event):
            return Noted(note=event.entity.note)

        @step(start=True)
        def begin(self):
            return wait("reply", then=self.begin)

        @on_cancel
        def undo(self):
            return complete()

    stay = book()
    WorkflowRun.objects.update(entity_type="app.reservation", entity_id="4711")
    Pause.objects.all().delete()
    stay.delete()
    drain()
    run = WorkflowRun.objects.get()
    if run.is_finished:
        pytest.skip("the deletion has cancelled the run")
    refused = automation("forget", "app.Reservation:4711", "--cancel")
    assert refused.code == 1
    assert "undo their work" in refused.err
    drain()
    assert automation("forget", "app.Reservation:4711").code == 0
    assert not WorkflowRun.objects.exists()


def test_the_function_refuses_as_the_command_does(subscribers):
    stay = book()
    with pytest.raises(StateError, match="exists"):
        forget(find_entity(named(stay)))
    with pytest.raises(StateError, match="unfinished rows"):
        forget(find_entity(named(stay)), living=True)
