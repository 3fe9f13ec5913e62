"""``RenameWorkflow`` and ``RenameStep`` in migrations: every stored name, keys, conflicts, running workers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.db import connection, migrations
from django.db.migrations.state import ProjectState
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    Batch,
    Concurrency,
    Singleton,
    acting_as,
    complete,
    engine,
    event_workflow,
    goto,
    on_cancel,
    schedule,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.events.models import Event, Schedule
from django_ai.automation.events.schedules import definitions as schedules
from django_ai.automation.events.schedules.firing import fire_now
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.exceptions import DecryptionError, DefinitionError
from django_ai.automation.queues import data_operation
from django_ai.automation.queues.models import BulkAction, HeldRow, Limiter, Maintenance, Pause, Slot
from django_ai.automation.queues.problems import is_muted, key_of_row, mute
from django_ai.automation.workflows.definitions import all_workflows, unregister
from django_ai.automation.workflows.models import StepExecution, Wait, WorkflowRun
from django_ai.automation.workflows.operations import RenameStep, RenameWorkflow
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave, status
from tests.support.stored_names import HOLDS, places

pytestmark = pytest.mark.django_db(transaction=True)

OLD, NEW = "a_former_name", "its_new_name"
HOUR = timedelta(hours=1)


class Guest(BaseModel):
    guest: str = "anna"


def run(*operations, backwards: bool = False, state: ProjectState | None = None, atomic: bool = True) -> None:
    migration = migrations.Migration("0002_more", "reservations")
    migration.operations, migration.atomic = list(operations), atomic
    with connection.schema_editor(atomic=migration.atomic) as editor:
        (migration.unapply if backwards else migration.apply)(state or ProjectState.from_apps(apps), editor)


def forget(*names: str) -> None:
    """Unregister workflows and schedules, as a release that has renamed them."""
    for each in all_workflows():
        if each.name in names:
            unregister(each)
    for declared in schedules.all_schedules():
        if declared.name in names:
            schedules.unregister(declared)


def waits(name: str, **options) -> type:
    """Declare a workflow that waits for a signal, and leaves its guest."""

    @workflow(name, **options)
    class Waits:
        Context = Guest

        @step(start=True)
        def begin(self):
            return wait("bell", then=self.end)

        @step()
        def end(self):
            leave(self.context.guest)
            return complete()

    return Waits


def planned(name: str) -> type:
    """Declare a workflow that starts an hour before a date."""

    @event_workflow("checkin_due", offset=-HOUR, name=name)
    class Planned:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def begin(self):
            leave(f"planned {self.context.entity_id}")
            return complete()

    return Planned


def book(ahead: timedelta = 3 * HOUR) -> Reservation:
    return Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + ahead)


def collects(name: str) -> None:
    @event_workflow("reservation_confirmed", name=name, batch=Batch(size=2, timeout=HOUR))
    class Collects:
        class Context(BaseModel):
            count: int

        @classmethod
        def create_context(cls, events):
            return cls.Context(count=len(events))

        @step(start=True)
        def begin(self):
            leave(f"{self.context.count} together")
            return complete()


# -- every table -------------------------------------------------------------------------------------------------------


def scheduled(name: str) -> type:
    return schedule(timedelta(minutes=5))(
        waits(name, concurrency=Concurrency(1, key="{{ ctx.guest }}"), singleton=Singleton(on_conflict="queue"))
    )


def rows_of_every_kind(work) -> None:
    """Create a row in each table that stores the name of a workflow."""
    scheduled(OLD)
    with acting_as("ops"):
        engine.pause(workflow=OLD)
        run_ = engine.start(OLD, key="k")
        work()
        engine.unpause(workflow=OLD)
        work()
        engine.cancel(run_)
        engine.start(OLD)
        work()
        engine.pause(workflow=OLD)
    engine.start(OLD)
    work()
    failed = WorkflowRun.objects.create(name=OLD, status="failed", error="ValueError: no", finished_at=timezone.now())
    ensure_rows(timezone.now())
    with acting_as("ops"):
        mute(failed)
        fire_now(Schedule.objects.get(name=OLD), timezone.now())
    forget(OLD)

    collects(OLD)
    Reservation.objects.create(status="confirmed")
    work()


def test_every_stored_name_is_renamed(work):
    rows_of_every_kind(work)
    stored = places(OLD)
    assert stored | {"automation_queues.Maintenance.position"} == HOLDS["workflow"]
    forget(OLD)
    scheduled(NEW)
    run(RenameWorkflow(OLD, NEW))
    assert places(OLD) == {"automation_queues.Maintenance.position"}  # which says that it was renamed
    assert stored <= places(NEW)
    run(RenameWorkflow(OLD, NEW), backwards=True)
    assert places(NEW) == set()
    assert places(OLD) == stored


def test_runs_continue_under_the_new_name(work):
    waits(OLD)
    first, ended = engine.start(OLD, guest="berta"), engine.start(OLD)
    work()
    engine.cancel(ended)
    forget(OLD)
    waits(NEW)
    run(RenameWorkflow(OLD, NEW))
    engine.signal("bell")
    work()
    assert (status(first), effects()) == ("completed", ["berta"])
    assert set(WorkflowRun.objects.values_list("name", flat=True)) == {NEW}


def test_a_run_that_old_workers_have_parked_resumes_automatically(work):
    waits(OLD)
    found = engine.start(OLD)
    work()
    forget(OLD)
    engine.signal("bell")
    work()
    assert status(found) == "parked"
    waits(NEW)
    run(RenameWorkflow(OLD, NEW))
    work(timezone.now() + HOUR)
    assert status(found) == "completed"


def test_what_is_planned_stays_planned_once(work):
    planned(OLD)
    book()
    forget(OLD)
    planned(NEW)
    run(RenameWorkflow(OLD, NEW))
    event = Event.objects.get(event_name="checkin_due")
    Reservation.objects.get().save()
    work(timezone.now() + 2 * HOUR)
    assert list(WorkflowRun.objects.values_list("name", "event", "status")) == [(NEW, event.pk, "completed")]


def test_a_key_stays_taken_by_the_run_that_was_started_under_the_old_name():
    waits(OLD)
    first = engine.start(OLD, key="order:12")
    forget(OLD)
    waits(NEW)
    run(RenameWorkflow(OLD, NEW))
    assert engine.start(NEW, key="order:12").pk == first.pk
    assert list(engine.runs(NEW, key="order:12")) == [first]
    again = engine.start(NEW, key="order:12", if_exists="restart")
    assert (again.pk != first.pk, status(first)) == (True, "cancelled")
    forget(NEW)
    waits("its_last_name")
    run(RenameWorkflow(NEW, "its_last_name"))
    assert engine.start("its_last_name", key="order:12").pk == again.pk


def test_a_limit_counts_what_was_started_under_the_old_name(work):
    waits(OLD, singleton=Singleton(on_conflict="skip", key="{{ ctx.guest }}"))
    engine.start(OLD)
    work()
    forget(OLD)
    waits(NEW, singleton=Singleton(on_conflict="skip", key="{{ ctx.guest }}"))
    run(RenameWorkflow(OLD, NEW))
    second = engine.start(NEW)
    work()
    assert status(second) == "cancelled"
    assert Limiter.objects.get().name == NEW


def test_limits_of_both_names_are_merged(work):
    waits(OLD, concurrency=Concurrency(1))
    waits(NEW, concurrency=Concurrency(1))
    for name in (OLD, NEW):
        engine.start(name)
    work()
    forget(OLD)
    Slot.objects.filter(limiter__name=OLD).update(state="held")
    run(RenameWorkflow(OLD, NEW, merge=True))
    assert Limiter.objects.count() <= 1
    assert Slot.objects.exclude(limiter__in=Limiter.objects.all()).count() == 0


def test_an_open_window_collects_under_the_new_name(work):
    collects(OLD)
    Reservation.objects.create(status="confirmed")
    work()
    forget(OLD)
    collects(NEW)
    run(RenameWorkflow(OLD, NEW))
    Reservation.objects.create(status="confirmed")
    work()
    assert effects() == ["2 together"]


def test_a_pause_is_kept(work):
    waits(OLD)
    engine.pause(workflow=OLD)
    found = engine.start(OLD)
    work()
    forget(OLD)
    waits(NEW)
    run(RenameWorkflow(OLD, NEW))
    assert HeldRow.objects.get().target == Pause.objects.get().target == f"workflow:{NEW}"
    engine.unpause(workflow=NEW)
    work()
    assert status(found) == "suspended"


def test_a_muted_problem_stays_muted():
    failed = WorkflowRun.objects.create(name=OLD, status="failed", error="ValueError: no", finished_at=timezone.now())
    mute(failed)
    waits(NEW)
    run(RenameWorkflow(OLD, NEW))
    failed.refresh_from_db()
    assert is_muted(key_of_row(failed), timezone.now())


def test_a_bulk_action_by_the_old_name_ends_first():
    WorkflowRun.objects.create(name=OLD)
    waits(NEW)
    action = BulkAction.objects.create(verb="cancel", row_kind="workflow", filter={"where": {"name": OLD}})
    with pytest.raises(DefinitionError, match=f"bulk action #{action.pk} selects rows by the name '{OLD}'"):
        run(RenameWorkflow(OLD, NEW))
    BulkAction.objects.update(status="completed")
    run(RenameWorkflow(OLD, NEW))


def test_a_worker_that_performs_a_step_keeps_its_lease(work):
    class Busy:
        Context = Guest

        @step(start=True)
        def begin(self):
            run(RenameWorkflow(OLD, NEW), atomic=False)
            leave("begun")
            return goto(self.end)

        @step()
        def end(self):
            return complete()

    if connection.vendor == "sqlite":
        Busy.begin = step(start=True, atomic=False)(Busy.begin)
    workflow(OLD)(Busy)
    found = engine.start(OLD)
    old = next(each for each in all_workflows() if each.name == OLD)
    unregister(old)
    waits(NEW)
    from django_ai.automation.workflows.definitions import register

    forget_new = next(each for each in all_workflows() if each.name == NEW)
    register(old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RenameWorkflow, "_check", lambda self: None)
        work()
    found.refresh_from_db()
    assert effects() == ["begun"]
    assert (found.name, found.lease, found.losses) == (NEW, None, 0)
    assert forget_new.name == NEW


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("", "b"), ("a", " "), ("a", "a"), ("a", "b" * 201), (1, "b")])
def test_invalid_names_are_refused_at_import(old, new):
    with pytest.raises(DefinitionError, match="RenameWorkflow"):
        RenameWorkflow(old, new)


def test_an_operation_is_written_as_it_was():
    operation = RenameWorkflow("a", "b", merge=True)
    assert operation.deconstruct() == ("RenameWorkflow", ["a", "b"], {"merge": True})
    assert repr(RenameStep("w", "a", "b", version=2)) == "RenameStep('w', 'a', 'b', version=2)"
    assert operation.describe() == "Rename the workflow 'a' to 'b'"


def test_without_runs_it_does_nothing():
    run(RenameWorkflow(OLD, NEW), RenameStep(OLD, "a", "b"))
    assert WorkflowRun.objects.count() == 0


def test_a_new_name_that_no_code_declares_is_refused():
    waits(OLD)
    engine.start(OLD)
    forget(OLD)
    waits("its_new_nam")
    with pytest.raises(DefinitionError, match=r"no workflow is called 'its_new_name'\. Did you mean 'its_new_nam'"):
        run(RenameWorkflow(OLD, NEW))


def test_a_workflow_that_the_code_still_declares_is_not_renamed():
    waits(OLD)
    engine.start(OLD)
    with pytest.raises(DefinitionError, match=f"still declares the workflow '{OLD}'"):
        run(RenameWorkflow(OLD, NEW))


def test_a_misspelt_old_name_is_refused():
    waits(OLD)
    engine.start(OLD)
    forget(OLD)
    with pytest.raises(DefinitionError, match=f"no run of 'a_fromer_name'. Did you mean '{OLD}'"):
        run(RenameWorkflow("a_fromer_name", NEW))


def test_a_new_name_that_has_runs_is_refused_unless_they_are_merged():
    for name in (OLD, NEW):
        waits(name)
        engine.start(name)
    forget(OLD)
    with pytest.raises(DefinitionError, match="add merge=True"):
        run(RenameWorkflow(OLD, NEW))
    run(RenameWorkflow(OLD, NEW, merge=True))
    assert list(WorkflowRun.objects.values_list("name", flat=True)) == [NEW, NEW]


def test_it_may_be_repeated_for_what_old_processes_have_started_meanwhile():
    waits(OLD)
    engine.start(OLD)
    forget(OLD)
    waits(NEW)
    run(RenameWorkflow(OLD, NEW))
    WorkflowRun.objects.create(name=OLD)
    run(RenameWorkflow(OLD, NEW))
    assert list(WorkflowRun.objects.values_list("name", flat=True)) == [NEW, NEW]


def test_a_second_plan_of_the_same_event_is_cancelled(work):
    planned(OLD)
    planned(NEW)
    book()
    forget(OLD)
    run(RenameWorkflow(OLD, NEW, merge=True))
    work(timezone.now() + 2 * HOUR)
    assert sorted(WorkflowRun.objects.values_list("name", "status")) == [(NEW, "cancelled"), (NEW, "completed")]
    assert len(effects()) == 1


def test_two_runs_that_one_event_has_started_are_refused_by_name(work):
    planned(OLD)
    planned(NEW)
    book()
    work(timezone.now() + 2 * HOUR)
    forget(OLD)
    with pytest.raises(DefinitionError, match=r"run #\d+ of 'a_former_name' and run #\d+ of 'its_new_name'"):
        run(RenameWorkflow(OLD, NEW, merge=True))


def test_a_migration_that_does_not_depend_on_the_tables_is_refused():
    with pytest.raises(DefinitionError, match='depend on \\("automation_workflows", "0001_initial"\\)'):
        run(RenameWorkflow(OLD, NEW), state=ProjectState())


def test_a_name_that_is_renamed_again_later_may_be_unknown(monkeypatch):
    later = [RenameWorkflow(OLD, NEW), RenameWorkflow(NEW, "its_last_name")]
    monkeypatch.setattr(data_operation, "_all_operations", lambda: tuple(later))
    waits(OLD)
    engine.start(OLD)
    forget(OLD)
    waits("its_last_name")
    run(*later)
    assert WorkflowRun.objects.get().name == "its_last_name"


def test_an_interrupted_rename_continues(monkeypatch):
    waits(OLD)
    for _ in range(5):
        engine.start(OLD)
    forget(OLD)
    waits(NEW)
    monkeypatch.setattr("django_ai.automation.queues.bites.ranges.__defaults__", (2, 0))
    from django_ai.automation.workflows import renaming

    rename = renaming._rename_runs

    def fail_later(what, old, new, rows):
        if WorkflowRun.objects.filter(name=NEW).exists():
            raise KeyboardInterrupt
        return rename(what, old, new, rows)

    monkeypatch.setattr("django_ai.automation.queues.bites.in_bites.__defaults__", (2,))
    monkeypatch.setattr(renaming, "_rename_runs", fail_later)
    with pytest.raises(KeyboardInterrupt):
        run(RenameWorkflow(OLD, NEW), atomic=False)
    assert WorkflowRun.objects.filter(name=NEW).count() == 2
    monkeypatch.setattr(renaming, "_rename_runs", rename)
    run(RenameWorkflow(OLD, NEW), atomic=False)
    assert WorkflowRun.objects.filter(name=NEW).count() == 5


# -- steps -------------------------------------------------------------------------------------------------------------


def stepping(name: str, step_name: str) -> type:
    """Declare a workflow whose second step has this name."""

    def second(self):
        if self.context.guest == "sleeper":
            return sleep(HOUR, then=getattr(self, step_name))
        leave(f"second {self.context.guest}")
        return complete()

    def begin(self):
        target = getattr(self, step_name)
        if self.context.guest == "waiter":
            return wait("bell", then=target, timeout=HOUR, on_timeout=target)
        return goto(target)

    second.__name__ = step_name

    def undo(self):
        return wait("never", then=getattr(self, step_name))

    body = {
        "Context": Guest,
        "begin": step(start=True)(begin),
        step_name: step()(second),
        "undo": on_cancel()(undo),
    }
    return workflow(name)(type("Stepping", (), body))


def test_every_stored_step_is_renamed(work):
    stepping("steps", "former_step")
    waiter = engine.start("steps", guest="waiter")
    sleeper = engine.start("steps", guest="sleeper")
    undone = engine.start("steps", guest="sleeper")
    done = engine.start("steps")
    work()
    engine.cancel(undone)
    work()
    WorkflowRun.objects.filter(pk=done.pk).update(wake_step="former_step")  # as between two attempts
    stored = places("former_step")
    assert stored == HOLDS["step"]
    forget("steps")
    stepping("steps", "later_step")
    run(RenameStep("steps", "former_step", "later_step"))
    assert places("former_step") == set()
    assert places("later_step") == stored
    engine.signal("bell")
    work()
    assert (status(waiter), status(done)) == ("completed", "completed")
    found = WorkflowRun.objects.get(pk=sleeper.pk)
    assert found.current_step == "later_step"
    run(RenameStep("steps", "former_step", "later_step"), backwards=True)
    assert places("later_step") == set()


def test_only_the_steps_of_one_workflow_and_version_are_renamed(work):
    for name in ("steps", "others"):
        stepping(name, "former_step")
        engine.start(name, guest="waiter")
    work()
    forget("steps")
    stepping("steps", "later_step")
    run(RenameStep("steps", "former_step", "later_step", version=7))
    assert Wait.objects.filter(then="former_step").count() == 2
    run(RenameStep("steps", "former_step", "later_step"))
    assert Wait.objects.get(then="former_step").run.name == "others"


def test_a_leased_run_at_the_step_is_attempted_again(work):
    stepping("steps", "former_step")
    found = engine.start("steps", guest="sleeper")
    work()
    WorkflowRun.objects.filter(pk=found.pk).update(lease="host:1:x", wake_at=timezone.now() + HOUR)
    forget("steps")
    stepping("steps", "later_step")
    run(RenameStep("steps", "former_step", "later_step"))
    found.refresh_from_db()
    assert (found.lease, found.current_step) == (None, "later_step")
    assert found.wake_at <= timezone.now()


def test_unknown_and_remaining_steps_are_refused():
    stepping("steps", "former_step")
    engine.start("steps")
    with pytest.raises(DefinitionError, match="still has the step 'former_step'"):
        run(RenameStep("steps", "former_step", "later_step"))
    with pytest.raises(DefinitionError, match=r"no step 'formr_step'\. Did you mean 'former_step'"):
        run(RenameStep("steps", "other", "formr_step"))
    WorkflowRun.objects.update(name="gone")
    with pytest.raises(DefinitionError, match="no workflow is called 'gone'"):
        run(RenameStep("gone", "former_step", "later_step"))


def test_a_branch_that_is_called_like_the_step_is_not_renamed(work):
    stepping("steps", "former_step")
    found = engine.start("steps", guest="waiter")
    work()
    found.steps.create(step="former_step", visit=1, attempt=0, finished=timezone.now(), outcome=StepExecution.ARRIVED)
    forget("steps")
    stepping("steps", "later_step")
    run(RenameStep("steps", "former_step", "later_step"))
    assert found.steps.get(outcome=StepExecution.ARRIVED).step == "former_step"


def test_a_column_that_no_key_decrypts_is_refused_with_its_row(work, settings):
    settings.AUTOMATION = {"CONTEXT_CODEC": "django_ai.automation.state.fernet.FernetCodec"}
    stepping("steps", "former_step")
    found = engine.start("steps", guest="waiter")
    work()
    settings.SECRET_KEY = "another key, and long enough to please the checks of Django: 0123456789"
    forget("steps")
    stepping("steps", "later_step")
    with pytest.raises(DecryptionError, match=rf"run #{found.pk}, before"):
        run(RenameStep("steps", "former_step", "later_step"))


def test_the_record_of_a_rename_is_no_work(work):
    waits(OLD)
    engine.start(OLD)
    forget(OLD)
    waits(NEW)
    run(RenameWorkflow(OLD, NEW))
    row = Maintenance.objects.get(name__startswith="renamed ")
    assert (row.wake_at, row.done) == (None, 1)
    assert row.completed_at is not None
