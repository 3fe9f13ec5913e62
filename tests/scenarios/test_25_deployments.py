"""Scenario 25: a deployment removes a step, renames a workflow, or adds a Context field.

Rows that cannot continue are parked with a reason, and all other rows continue. After the fix, parked rows resume
automatically. Old and new workers can run at the same time without harm.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import call_command
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    EventDefinition,
    agent,
    complete,
    engine,
    event_workflow,
    handler,
    on_event,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents import definitions as agent_definitions
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events import callbacks
from django_ai.automation.events.models import Event
from django_ai.automation.queues import deployment
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.front_desk import book
from tests.support.rows import change, effects, event_of, leave, the_execution, the_run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Text(BaseModel):
    text: str = ""


def sleeper(name="flow", *, version=1, context=Text, then="end", **steps):
    """Declare a workflow that sleeps an hour and then continues at ``then``."""

    def begin(self):
        return sleep(HOUR, then=then)

    def end(self):
        leave(f"{name} {version} {then} {self.context.text}".strip())
        return complete()

    begin.__name__, end.__name__ = "begin", then
    body = {"begin": step(start=True)(begin), then: step()(end), **steps}
    cls = type("Flow", (), {"Context": context, "__module__": __name__, "__qualname__": f"Flow{version}", **body})
    return workflow(name, version=version)(cls)


def forget(cls):
    definitions.unregister(cls.__workflow__)


def asleep(work, name="flow", **arguments):
    run = engine.start(name, **arguments)
    work()
    return run


def parked_because(row, *texts):
    row.refresh_from_db()
    assert (row.status, row.lease) == ("parked", None)
    for text in (str(row), *texts):
        assert text in row.error
    return row


# -- missing code ------------------------------------------------------------------------------------------------------


def test_25_a_workflow_that_is_gone(clock, work):
    old = sleeper()
    sleeper("other")
    run, other = asleep(work), asleep(work, "other")
    forget(old)
    clock.tick(HOUR)
    work()
    parked_because(run, "UnknownWorkflowError", "no workflow is called 'flow'", "name='flow'")
    other.refresh_from_db()
    assert (other.status, effects()) == ("completed", ["other 1 end"])
    sleeper()
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.error, run.parked_at) == ("completed", "", None)


def test_25_a_step_that_is_gone_or_renamed(clock, work):
    sleeper(then="wrap")
    run, stays = asleep(work), asleep(work)
    sleeper(then="wrap_up")
    clock.tick(HOUR)
    work()
    parked_because(run, "UnknownStepError", "'wrap'", "Did you mean 'wrap_up'?", f"--pk {run.pk} --step NAME")
    call_command("automation_resume", "workflow", pk=[run.pk], step="wrap_up")
    work()
    run.refresh_from_db()
    assert (run.status, effects()) == ("completed", ["flow 1 wrap_up"])
    parked_because(stays)
    sleeper(then="wrap")  # alternatively, restore the step
    clock.tick(HOUR)
    work()
    stays.refresh_from_db()
    assert stays.status == "completed"


def test_25_a_context_that_grew_a_required_field(clock, work):
    class Strict(BaseModel):
        text: str
        room: int

    class Kind(Strict):
        room: int = 5

    sleeper()
    run = asleep(work, text="x")
    sleeper(context=Strict)
    clock.tick(HOUR)
    work()
    parked_because(run, "ContextError", "room: Field required", "migrate_context")
    assert run.data == {"text": "x"}
    sleeper(context=Kind)
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.data) == ("completed", {"text": "x", "room": 5})


def test_25_a_version_that_is_gone_is_taken_over_by_the_newest_with_migrate_context(clock, work):
    old = sleeper(version=1)
    run, parks = asleep(work, text="a"), asleep(work, text="b")
    forget(old)
    sleeper(version=2)
    clock.tick(HOUR)
    work()
    parked_because(run, "no version '1'; it has '2'", "version='1'", "migrate_context")
    parked_because(parks)
    seen = []

    def migrate_context(data, from_version):
        seen.append((dict(data), from_version))
        data["text"] += " migrated"
        return data

    sleeper(version=2, migrate_context=staticmethod(migrate_context))
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.version, run.data["text"]) == ("completed", "2", "a migrated")
    assert effects() == ["flow 2 end a migrated", "flow 2 end b migrated"]
    assert seen == [({"text": "a"}, "1"), ({"text": "b"}, "1")]


def test_25_versions_side_by_side_and_then_only_the_new_one(clock, work):
    old = sleeper(version=1)
    first, second = asleep(work, text="1"), None
    sleeper(version=2, migrate_context=staticmethod(lambda data, from_version: {**data, "text": "moved"}))
    second = asleep(work, text="2")
    clock.tick(HOUR)
    work()
    assert effects() == ["flow 1 end 1", "flow 2 end 2"]
    third = WorkflowRun.objects.get(pk=asleep(work).pk)
    WorkflowRun.objects.filter(pk=third.pk).update(version="1")
    forget(old)
    clock.tick(HOUR)
    work()
    assert effects() == ["flow 1 end 1", "flow 2 end 2", "flow 2 end moved"]
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.version, second.version) == ("1", "2")


def test_25_a_callback_that_is_gone(clock, work):
    on_event("reservation_confirmed", name="hotel.greet")(lambda event: leave("greet"))
    on_event("reservation_confirmed", name="hotel.other")(lambda event: leave("other"))
    Reservation.objects.create(status="confirmed")
    mine = callbacks.find_callback("reservation_confirmed", "hotel.greet", "")
    callbacks.unregister(mine)
    work()
    row = parked_because(the_execution(callback="hotel.greet"), "UnknownCallbackError", "name='hotel.greet'")
    assert effects() == ["other"]
    callbacks.register(mine)
    clock.tick(HOUR)
    work()
    row.refresh_from_db()
    assert (row.status, row.error, effects()) == ("completed", "", ["other", "greet"])


def keeper(**handlers):
    body = {
        name: handler(event)(lambda self, event, name=name: leave(f"{name} {event.entity_id}"))
        for name, event in handlers.items()
    }
    for name in handlers:
        body[name].__name__ = name
    context = type("Context", (BaseModel,), {"__annotations__": {"entity_id": str}, "__module__": __name__})
    cls = type("Keeper", (), {"Context": context, "__module__": __name__, "__qualname__": "Keeper", **body})
    return agent("keeper", spawn_on="booking_created")(cls)


def test_25_an_agent_that_is_gone(clock, work):
    cls = keeper(noted="booking_noted")
    booking, quiet = book(), book()
    work()
    agent_definitions.unregister(cls.__agent__)
    AgentRun.objects.filter(entity_id=str(booking.pk)).update(wake_at=clock())
    work()
    run = parked_because(AgentRun.objects.get(entity_id=str(booking.pk)), "UnknownAgentError", "'keeper'")
    assert AgentRun.objects.get(entity_id=str(quiet.pk)).status == "active"
    keeper(noted="booking_noted")
    change(booking, note="comes while it is parked")
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.error, effects()) == ("active", "", [f"noted {booking.pk}"])


def test_25_a_handler_that_is_gone(clock, work):
    keeper(noted="booking_noted", told="booking_noted")
    booking = book()
    work()
    change(booking, note="x")
    keeper(told="booking_noted")
    work()
    row = HandlerExecution.objects.get(handler="noted")
    assert (row.status, effects()) == ("parked", [f"told {booking.pk}"])
    assert "UnknownHandlerError" in row.error
    assert "Restore the method under this name" in row.error
    poll_due()
    row.refresh_from_db()
    assert row.status == "parked"
    keeper(noted="booking_noted", told="booking_noted")
    poll_due()
    row.refresh_from_db()
    assert (row.status, row.error, row.attempt) == ("completed", "", 1)
    assert effects() == [f"told {booking.pk}", f"noted {booking.pk}"]


def planned(name="planned"):
    @event_workflow("checkin_due", offset=-HOUR, name=name)
    class Planned:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def run(self):
            leave(f"planned {self.context.entity_id}")
            return complete()

    return Planned


def test_25_an_event_that_is_gone(clock, work, declare):
    """Once a removed event is restored, its planned run, a run that waits for it and an agent all continue."""

    @workflow("patient")
    class Patient:
        Context = Text

        @step(start=True)
        def begin(self):
            return wait_for_event("checkin_due", then=self.end)

        @step()
        def end(self):
            leave("patient")
            return complete()

    @agent("doorman", match={"id": "{{ ctx.stay }}"})
    class Doorman:
        class Context(BaseModel):
            stay: int

        @handler("checkin_due")
        def due(self):
            leave("doorman")

    planned()
    kept = list(Reservation.events)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + 3 * HOUR)
    waits = asleep(work, "patient")
    AgentManager.spawn("doorman", stay=stay.pk)
    work()
    declare(Reservation, EventDefinition("checkin_du"))
    clock.tick(2 * HOUR)
    work()
    run = parked_because(
        the_run(name="planned"), "UnknownEventError", "'checkin_due'", "Was it renamed to 'checkin_du'?"
    )
    clock.tick(HOUR)
    work()
    event = parked_because(
        event_of(stay, "checkin_due"), "UnknownEventError", "no longer declares the event 'checkin_due'"
    )
    assert effects() == []
    declare(Reservation, *kept)
    clock.tick(HOUR)
    work()
    for row, status in ((event, "processed"), (run, "completed"), (waits, "completed")):
        row.refresh_from_db()
        assert (row.status, row.error) == (status, "")
    assert sorted(effects()) == ["doorman", "patient", f"planned {stay.pk}"]


@pytest.mark.parametrize("save", [False, True])
def test_25_an_event_that_is_gone_moves_with_its_date_when_it_is_back(clock, work, declare, save):
    kept = list(Reservation.events)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)
    declare(Reservation)
    clock.tick(HOUR)
    work()
    event = parked_because(event_of(stay, "checkin_due"))
    if not save:
        Reservation.objects.filter(pk=stay.pk).update(checkin_at=clock() + 5 * HOUR)
    declare(Reservation, *kept)
    if save:
        stay.checkin_at = clock() + 5 * HOUR
        stay.save()
    clock.tick(HOUR)
    work()
    event.refresh_from_db()
    assert (event.status, event.wake_at, event.at) == ("pending", clock() + 4 * HOUR, clock() + 4 * HOUR)
    clock.tick(4 * HOUR)
    work()
    event.refresh_from_db()
    assert event.status == "processed"


def test_25_an_event_that_was_cancelled_does_not_occur_after_its_definition_was_gone(clock, work, declare):
    lane = None, 0
    callbacks._register("checkin_due", "on_event_cancelled", "cancelled", None, None, True, None, "gone", None, lane)(
        lambda event: leave("cancelled")
    )
    kept = list(Reservation.events)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)
    event_of(stay, "checkin_due").cancel()
    declare(Reservation)
    work()
    declare(Reservation, *kept)
    clock.tick(DAY)
    work()
    assert (event_of(stay, "checkin_due").status, effects()) == ("cancelled", ["cancelled"])


def test_25_a_model_that_is_gone(clock, work):
    on_event("reservation_confirmed", name="hotel.greet")(lambda event: leave(f"greet {event.entity.pk}"))
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + HOUR)
    Event.objects.update(entity_type="hotel.reservation")
    clock.tick(HOUR)
    work()
    parked_because(the_execution(), "UnknownEventError", "the model 'hotel.reservation' no longer exists")
    parked_because(Event.objects.get(event_name="checkin_due"), "the model 'hotel.reservation' no longer exists")
    Event.objects.update(entity_type="app.reservation")
    clock.tick(HOUR)
    work()
    assert effects() == [f"greet {stay.pk}"]
    assert event_of(stay, "checkin_due").status == "processed"


# -- renamed -----------------------------------------------------------------------------------------------------------


def test_25_a_renamed_class_keeps_its_runs_and_plans_with_name(clock, work):
    before = planned(name=None)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + 3 * HOUR)
    name = before.__workflow__.name
    assert name.endswith("planned.<locals>.Planned")
    forget(before)

    @event_workflow("checkin_due", offset=-HOUR, name=name)
    class MovedElsewhere:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def run(self):
            leave("moved")
            return complete()

    Reservation.objects.get(pk=stay.pk).save()
    poll_due()
    assert WorkflowRun.objects.count() == 1  # the unique key of the run contains the name
    clock.tick(2 * HOUR)
    work()
    assert (the_run().status, effects()) == ("completed", ["moved"])


def test_25_a_planned_run_takes_the_first_step_of_today(clock, work):
    planned()
    Reservation.objects.create(status="confirmed", checkin_at=clock() + 3 * HOUR)

    @event_workflow("checkin_due", offset=-HOUR, name="planned", version=2)
    class Planned:
        Context = Text

        @step(start=True)
        def another_name(self):
            leave("version 2")
            return complete()

    definitions.unregister(definitions.find_workflow("planned", "1"))
    clock.tick(2 * HOUR)
    work()
    assert (the_run().status, the_run().version, effects()) == ("completed", "2", ["version 2"])


def test_25_an_old_worker_begins_no_run_that_a_newer_release_has_planned(clock, work):
    planned()
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + 5 * HOUR)
    WorkflowRun.objects.update(version="2")
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=clock() + 3 * HOUR)
    Reservation.objects.get(pk=stay.pk).save()
    assert the_run().wake_at == clock() + 2 * HOUR  # it moves with its date, whichever release saves the date
    clock.tick(2 * HOUR)
    work()
    parked_because(the_run(), "newer release")


# -- checking parked rows again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_all", [False, True], ids=["to it", "to all"])
def test_25_what_came_in_time_while_a_run_was_parked_is_no_timeout(clock, work, to_all):
    @workflow("patient")
    class Patient:
        Context = Text

        @step(start=True)
        def ask(self):
            return wait("bell", timeout=2 * HOUR, then="rung", on_timeout="late")

        @step()
        def rung(self):
            leave("rung")
            return complete()

        @step()
        def late(self):
            leave("late")
            return complete()

    run = asleep(work, "patient")
    # Park the suspended run, as a release that checks suspended runs would.
    aside = {"status": "parked", "parked_at": clock(), "wake_at": clock() + 3 * HOUR, "error": "ContextError: no"}
    WorkflowRun.objects.filter(pk=run.pk).update(**aside)
    clock.tick(HOUR)
    engine.signal("bell", run=None if to_all else run)
    work()
    assert the_run().status == "parked"
    clock.tick(2 * HOUR)
    work()
    assert (the_run().status, effects()) == ("completed", ["rung"])


@pytest.mark.parametrize("gone_first", [False, True], ids=["at once", "after it was parked"])
@pytest.mark.parametrize("version", [1, 2])
def test_25_a_signal_that_came_while_a_worker_died_is_heard_by_the_next_release(clock, work, version, gone_first):
    def listening(version):
        def listen(self):
            return wait("bell", timeout=DAY, then="rung", on_timeout="late")

        def rung(self):
            leave("rung")
            return complete()

        def late(self):
            leave("late")
            return complete()

        steps = {"listen": step(start=True)(listen), "rung": step()(rung), "late": step()(late)}
        steps["migrate_context"] = staticmethod(lambda data, version: data)
        cls = type("Flow", (), {"Context": Text, "__module__": __name__, "__qualname__": f"Listen{version}", **steps})
        return workflow("flow", version=version)(cls)

    old = listening(1)
    run = engine.start("flow")
    # A worker has claimed the run, and the deployment kills that worker.
    WorkflowRun.objects.filter(pk=run.pk).update(lease="gone:1:x", wake_at=clock() + timedelta(seconds=10))
    clock.tick(timedelta(seconds=1))
    engine.signal("bell")
    work()
    if gone_first:
        forget(old)
        clock.tick(timedelta(seconds=10))
        work()
        assert (the_run().status, the_run().losses) == ("parked", 1)
        old = listening(1)
    if version == 2:
        forget(old)
        listening(2)
    clock.tick(timedelta(seconds=10))
    work()
    assert (the_run().status, effects()) == ("completed", ["rung"])


def test_25_what_is_parked_for_code_is_looked_at_ever_more_slowly(clock, work, caplog):
    old = sleeper()
    run = asleep(work)
    forget(old)
    clock.tick(HOUR)
    work()
    began, looks = clock(), []
    while clock() < began + DAY:
        run.refresh_from_db()
        assert (run.status, run.parked_at) == ("parked", began)
        looks.append(run.wake_at - clock())
        clock.now = run.wake_at
        work()
    assert looks[0] == timedelta(seconds=5)
    assert looks == sorted(looks)
    assert looks[-1] == HOUR
    assert len(looks) < 60
    assert len([each for each in caplog.records if "is parked" in each.message]) == 1


def test_25_a_new_process_looks_at_once(clock, work, monkeypatch):
    poll_due()
    old = sleeper()
    run = asleep(work)
    forget(old)
    clock.tick(HOUR)
    for _ in range(12):
        clock.tick(HOUR)
        work()
    run.refresh_from_db()
    assert run.wake_at > clock()
    sleeper()
    poll_due()
    work()
    run.refresh_from_db()
    assert run.status == "parked"  # this process has checked before, and its code has not changed since
    monkeypatch.setattr(deployment, "_checked_by_pid", None)
    poll_due()
    work()
    run.refresh_from_db()
    assert run.status == "completed"


def test_25_what_is_parked_for_an_operator_stays(clock, work, monkeypatch):
    sleeper()
    run = asleep(work)
    WorkflowRun.objects.filter(pk=run.pk).update(status="running", wake_at=clock(), losses=2, lease="dead:1:x")
    work()
    run.refresh_from_db()
    assert (run.status, run.wake_at, run.parked_at) == ("parked", None, clock())
    monkeypatch.setattr(deployment, "_checked_by_pid", None)
    clock.tick(DAY)
    poll_due()
    work()
    run.refresh_from_db()
    assert (run.status, run.wake_at) == ("parked", None)


def test_25_a_run_of_a_newer_release_is_left_to_its_workers(clock, work):
    sleeper(version=1, migrate_context=staticmethod(lambda data, from_version: pytest.fail("must not be called")))
    run = asleep(work)
    WorkflowRun.objects.filter(pk=run.pk).update(version="2", wake_at=clock())
    work()
    parked_because(run, "newer release")


def test_25_values_that_a_worker_does_not_know_are_handed_on(clock, work):
    class Wide(BaseModel):
        text: str = ""
        added: int = 0

    sleeper(context=Wide)
    run = asleep(work, added=7)
    sleeper()  # an old worker, whose Context lacks the field, performs the next step
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.data) == ("completed", {"text": "", "added": 7})
