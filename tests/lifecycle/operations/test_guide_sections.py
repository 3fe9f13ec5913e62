"""Sections 1 to 7 and 9 of the guide: every import path exists, and the examples do what their comments say."""

from __future__ import annotations

import importlib
import inspect
from datetime import timedelta

import pytest
from django.apps import apps
from django.test import override_settings
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import Event
from django_ai.automation.events.services import EventProcessor, event_processor
from django_ai.automation.queues.notifier import get_notifier
from django_ai.automation.queues.runtimes import tasks
from django_ai.automation.queues.runtimes.q2 import Q2Notifier
from django_ai.automation.queues.runtimes.q2_schedules import SCHEDULES, install_schedules
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_context,
    goto,
    step,
    wait,
    wait_for_event,
    workflow,
)
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, event_of, leave, status_of, the_run

pytestmark = pytest.mark.django_db(transaction=True)

PATHS = {
    "django_ai.automation.events.definitions": ["EventDefinition"],
    "django_ai.automation.events.callbacks": ["on_event", "on_event_created", "on_event_cancelled"],
    "django_ai.automation.events.models": ["Event"],
    "django_ai.automation.events.services": ["EventProcessor", "event_processor"],
    "django_ai.automation.workflows.core": [
        "workflow",
        "event_workflow",
        "step",
        "get_context",
        "goto",
        "sleep",
        "wait",
        "wait_for_event",
        "complete",
        "fail",
        "Retry",
        "engine",
    ],
    "django_ai.automation.queues.apps": ["QueuesConfig"],
    "django_ai.automation.events.apps": ["EventsConfig"],
    "django_ai.automation.workflows.apps": ["WorkflowsConfig"],
    "django_ai.automation.queues.runtimes.q2_brokers": ["OrmBroker", "RedisBroker"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PATHS.items() for name in names])
def test_import_paths(module, name):
    if name == "RedisBroker":
        pytest.importorskip("redis", reason="RedisBroker needs the extra [redis]")
    assert hasattr(importlib.import_module(module), name)


def test_wait_has_its_two_forms():
    assert callable(wait.for_signal)
    assert callable(wait.for_event)
    for method in ("start", "signal", "handle_event_occurred", "cancel"):
        assert callable(getattr(engine, method))


# -- 1 and 2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_section_1_saves_maintain_events(clock, work):
    stay = Reservation.objects.create(checkin_at=clock() + timedelta(days=2))
    assert (status_of(stay, "reservation_confirmed"), status_of(stay, "checkin_due")) == ("pending", "pending")
    stay.status = "confirmed"
    stay.save()
    assert status_of(stay, "reservation_confirmed") == "processed"  # right after the commit, without a worker
    assert event_of(stay, "checkin_due").at == stay.checkin_at
    clock.tick(timedelta(days=2) - timedelta(microseconds=1))
    work()
    assert status_of(stay, "checkin_due") == "pending"
    clock.tick(timedelta(microseconds=1))
    work()
    assert status_of(stay, "checkin_due") == "processed"


def test_section_1_deletion_maintains_events(clock):
    stay = Reservation.objects.create(checkin_at=clock() + timedelta(days=2))
    event = event_of(stay, "checkin_due")
    stay.delete()
    event.refresh_from_db()
    assert event.status == "cancelled"


def test_section_2_an_automation_gets_the_event_and_its_entity(work):
    @on_event(event_name="reservation_confirmed")
    def welcome(event: Event) -> None:
        leave(f"{type(event).__name__} {event.event_name} {event.entity == stay} {event.is_valid}")

    stay = Reservation.objects.create(status="confirmed")
    assert effects() == []  # a worker runs it, not the save
    work()
    work()
    assert effects() == ["Event reservation_confirmed True True"]


# -- 3 -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reminder():
    @event_workflow(event_name="checkin_due", offset=timedelta(minutes=-60), name="reminder")
    class Reminder:
        class Context(BaseModel):
            reservation_id: int

        @classmethod
        def create_context(cls, event=None):
            return cls.Context(reservation_id=event.entity.id)

        @step(start=True)
        def run(self):
            leave(f"reminder {self.context.reservation_id}")
            return complete()


@pytest.mark.exact_times
@pytest.mark.usefixtures("reminder")
def test_section_3_the_run_starts_an_hour_before(clock, work):
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=5))
    run = the_run()
    assert (run.status, run.wake_at, run.data) == ("waiting", clock() + timedelta(hours=4), {})
    clock.tick(timedelta(hours=3, minutes=59, seconds=59))
    work()
    assert effects() == []
    clock.tick(timedelta(seconds=1))
    work()
    assert effects() == [f"reminder {stay.pk}"]
    assert the_run().status == "completed"
    assert status_of(stay, "checkin_due") == "pending"  # the event itself is due an hour later


@pytest.mark.exact_times
@pytest.mark.usefixtures("reminder")
def test_section_3_the_run_moves_with_checkin_and_goes_with_the_confirmation(clock, work):
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=5))
    stay.checkin_at += timedelta(hours=2)
    stay.save()
    assert the_run().wake_at == clock() + timedelta(hours=6)
    stay.status = "cancelled"
    stay.save()
    assert the_run().status == "withdrawn"
    clock.tick(timedelta(days=3))
    work()
    assert effects() == []


# -- 4 -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout():
    @event_workflow(
        event_name="checkout_due",
        offset=timedelta(hours=-2),
        default_retry=Retry(max_attempts=3, base_delay=timedelta(seconds=2)),
        name="checkout",
    )
    class Checkout:
        class Context(BaseModel):
            reservation_id: int
            docs_ready: bool = False
            notified: bool = False
            attempts: int = 0
            by_default: bool = False
            final_state: str | None = None

        @classmethod
        def create_context(cls, event=None):
            return cls.Context(reservation_id=event.entity.id)

        @step(start=True)
        def documents(self):
            if get_context().docs_ready:
                return goto(self.tell_housekeeping)
            return wait_for_event("guest_docs_uploaded", timeout=timedelta(minutes=90), on_timeout="do_without")

        @step()
        def do_without(self):
            get_context().by_default = True
            return goto(self.tell_housekeeping)

        @step(retry=Retry(max_attempts=5, base_delay=timedelta(seconds=1)))
        def tell_housekeeping(self):
            ctx = get_context()
            ctx.attempts += 1
            if ctx.attempts < 2:
                raise RuntimeError("no answer on the phone")
            ctx.notified = True
            return goto(self.end)

        @step()
        def end(self):
            if not get_context().notified:
                return fail("no notification was sent")
            return complete(final_state="ok")


@pytest.mark.exact_times
@pytest.mark.usefixtures("checkout")
def test_section_4_by_way_of_the_documents(clock, work):
    stay = Reservation.objects.create(status="confirmed", checkout_at=clock() + timedelta(hours=10))
    clock.tick(timedelta(hours=8))
    work()
    run = the_run()
    assert (run.status, run.current_step) == ("suspended", "documents")
    stay.docs = True
    stay.save()
    work()
    run.refresh_from_db()
    assert (run.status, run.current_step, run.data["attempts"]) == ("waiting", "tell_housekeeping", 1)
    assert "no answer on the phone" in run.error
    assert run.wake_at == clock() + timedelta(seconds=1)
    clock.tick(timedelta(seconds=1))
    work()
    run.refresh_from_db()
    assert (run.status, run.error) == ("completed", "")
    assert run.data == {
        "reservation_id": stay.pk,
        "docs_ready": True,
        "notified": True,
        "attempts": 2,
        "by_default": False,
        "final_state": "ok",
    }


@pytest.mark.usefixtures("checkout")
def test_section_4_by_way_of_the_fallback(clock, work):
    Reservation.objects.create(status="confirmed", checkout_at=clock() + timedelta(hours=2))
    work()
    clock.tick(timedelta(minutes=90) - timedelta(seconds=1))
    work()
    assert the_run().status == "suspended"
    clock.tick(timedelta(seconds=1))
    work()
    clock.tick(timedelta(seconds=1))
    work()
    run = the_run()
    assert run.status == "completed"
    assert (run.data["final_state"], run.data["by_default"], run.data["attempts"]) == ("ok", True, 2)


@pytest.mark.usefixtures("checkout")
def test_section_4_documents_of_another_reservation_wake_nobody(clock, work):
    mine = Reservation.objects.create(status="confirmed", checkout_at=clock() + timedelta(hours=2))
    other = Reservation.objects.create()
    work()
    other.docs = True
    other.save()
    work()
    assert the_run(entity_id=str(mine.pk)).status == "suspended"
    mine.docs = True
    mine.save()
    work()
    assert the_run(entity_id=str(mine.pk)).current_step == "tell_housekeeping"


@pytest.mark.usefixtures("checkout")
def test_section_4_documents_that_came_before_the_step_needed_them(clock, work):
    """Documents that were uploaded before the run's first step do not end its wait."""
    stay = Reservation.objects.create(status="confirmed", checkout_at=clock() + timedelta(hours=10))
    stay.docs = True
    stay.save()
    clock.tick(timedelta(hours=8))
    work()
    assert the_run().status == "suspended"


@pytest.fixture
def window():
    @workflow("window")
    class Window:
        class Context(BaseModel):
            foo: int = 0

        @step(start=True)
        def pause(self):
            return wait.for_signal("ops:window_open", then=self.end)

        @step()
        def end(self):
            return complete()


@pytest.mark.usefixtures("window")
def test_section_4_a_signal_of_ones_own(work):
    run = engine.start("window")
    work()
    engine.signal("ops:window_shut")
    work()
    run.refresh_from_db()
    assert run.status == "suspended"
    engine.signal("ops:window_open", {"foo": 1, "unknown": 2})
    work()
    run.refresh_from_db()
    assert (run.status, run.data) == ("completed", {"foo": 1})


@pytest.mark.usefixtures("window")
def test_section_4_a_signal_without_payload(work):
    run = engine.start("window")
    work()
    engine.signal("ops:window_open")
    work()
    run.refresh_from_db()
    assert (run.status, run.data) == ("completed", {"foo": 0})


# -- 5 -----------------------------------------------------------------------------------------------------------------


def test_section_5_started_by_hand(work):
    @workflow("reindex")
    class Reindex:
        class Context(BaseModel):
            listing_id: int

        @classmethod
        def create_context(cls, listing_id: int):
            return cls.Context(listing_id=listing_id)

        @step(start=True)
        def run(self):
            leave(f"listing {self.context.listing_id}")
            return complete()

    by_name = engine.start("reindex", listing_id=123)
    engine.start(Reindex, listing_id=124)
    assert (by_name.status, by_name.data, by_name.current_step) == ("running", {"listing_id": 123}, "run")
    work()
    assert effects() == ["listing 123", "listing 124"]


# -- 6 and 7 -----------------------------------------------------------------------------------------------------------


def test_section_6_the_executor_is_q2_where_it_is_installed():
    with override_settings(AUTOMATION={}):
        assert isinstance(get_notifier(), Q2Notifier)


def test_section_6_three_schedules_by_name():
    from django_q.models import Schedule

    Schedule.objects.all().delete()
    install_schedules()
    install_schedules()
    found = {each.name: (each.schedule_type, each.minutes) for each in Schedule.objects.all()}
    assert found == {
        "Workflows: process_scheduled": ("I", 1),
        "Events: poll_due": ("I", 5),
        "Events: cleanup_old": ("D", None),
    }
    assert Schedule.objects.count() == 3
    for _, path, _, _ in SCHEDULES:
        module, _, function = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))


def test_section_6_schedules_can_be_left_out():
    from django_q.models import Schedule

    Schedule.objects.all().delete()
    with override_settings(SKIP_Q2_AUTOSCHEDULE=True):
        install_schedules()
    assert not Schedule.objects.exists()


def test_section_6_an_operators_changes_stay():
    from django_q.models import Schedule

    Schedule.objects.all().delete()
    install_schedules()
    Schedule.objects.filter(name="Events: poll_due").update(minutes=10, func="old.path")
    install_schedules()
    row = Schedule.objects.get(name="Events: poll_due")
    assert (row.minutes, row.func) == (10, "django_ai.automation.queues.runtimes.tasks.reconcile_soon")


@pytest.mark.parametrize("task", [tasks.process_scheduled, tasks.drain_due])
@pytest.mark.usefixtures("reminder")
def test_section_6_task_functions_do_the_work_by_hand(task, clock):
    Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(minutes=30))
    task()
    assert len(effects()) == 1


def test_section_6_handle_event_occurred_starts_the_workflows_once(work):
    stay = Reservation.objects.create(status="confirmed")

    @event_workflow("reservation_confirmed", name="late comer")
    class LateComer:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def run(self):
            leave(self.context.entity_id)
            return complete()

    engine.handle_event_occurred(event_of(stay, "reservation_confirmed"))
    engine.handle_event_occurred(event_of(stay, "reservation_confirmed"))
    work()
    assert effects() == [str(stay.pk)]
    with pytest.raises(ValueError, match="pending"):
        engine.handle_event_occurred(event_of(stay, "guest_docs_uploaded"))


def test_section_6_the_apps_have_labels_of_their_own():
    for name in ("queues", "events", "workflows"):
        assert apps.get_app_config(f"automation_{name}").name == f"django_ai.automation.{name}"


def test_section_7_the_processor_asks_the_condition_again(clock, work):
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=1))
    Reservation.objects.filter(pk=stay.pk).update(status="cancelled")
    assert EventProcessor().process_due_events(clock() + timedelta(hours=1)) >= 1
    assert status_of(stay, "checkin_due") == "pending"
    Reservation.objects.filter(pk=stay.pk).update(status="confirmed")
    clock.tick(timedelta(hours=2))
    stay.refresh_from_db()
    stay.save()
    assert event_processor.process_event(event_of(stay, "checkin_due"))
    assert status_of(stay, "checkin_due") == "processed"
    assert event_processor.process_due_events() == 0


# -- 9 -----------------------------------------------------------------------------------------------------------------


def test_section_9_positional_forms(work):
    @on_event("reservation_confirmed")
    def handler(event):
        leave(event.entity.pk)

    @event_workflow("reservation_confirmed", offset=timedelta(hours=1))
    class After:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return wait("custom", timedelta(hours=1), "late")

        @step()
        def late(self):
            return complete()

    stay = Reservation.objects.create(status="confirmed")
    work()
    assert effects() == [str(stay.pk)]
    assert the_run().name.endswith("After")


def test_public_docstrings_exist():
    from django_ai.automation.workflows import core

    for name in core.__all__:
        assert inspect.getdoc(getattr(core, name)), name
