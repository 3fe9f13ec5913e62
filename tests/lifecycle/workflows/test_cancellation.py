"""Cancellation: the path of ``@on_cancel``, and what it does to the children, the parent and the claims of a run."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from django_ai.automation.events import claims
from django_ai.automation.events.models import EventClaim
from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_run,
    get_wake,
    on_cancel,
    on_fail,
    run_subflow,
    step,
    wait,
    wait_any,
    wait_for_event,
)
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.choosing_runs import Fields
from tests.support.marks import not_on
from tests.support.race import elsewhere
from tests.support.rows import effects, leave, status, the_run
from tests.support.workflows import flow, hook, run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
ONCE, TWICE = Retry(max_attempts=1), Retry(max_attempts=2, base_delay=SECOND)


def undoing(work, **options):
    """Return a run that has been cancelled, and whose path waits."""

    def undo(self, error):
        leave("undo")
        return wait("undone", then=self.more)

    def more(self):
        leave("more")
        return complete()

    flow(lambda self: wait("bell"), undo=hook(on_cancel, undo), more=more, **options)
    found = run(work)
    assert engine.cancel(found, "first")
    work()
    return found


def test_a_second_cancellation_changes_nothing(work):
    found = undoing(work)
    assert engine.cancel(found, "second") is False
    assert found.status == "suspended"
    engine.signal("undone")
    work()
    assert (status(found), found.error, effects()) == ("cancelled", "first", ["undo", "more"])
    assert engine.cancel(found) is False


def test_a_cancellation_at_once_ends_the_path(work):
    found = undoing(work)
    assert engine.cancel(found, "second", at_once=True) is True
    assert (found.status, found.waits.count()) == ("cancelled", 0)
    assert found.error == "first\n\nThen its @on_cancel was ended at once:\n\nsecond"
    engine.signal("undone")
    work()
    assert effects() == ["undo"]
    engine.resume(found)
    work()
    assert (status(found), found.error, effects()) == ("cancelled", "first", ["undo", "undo", "more"])


def test_a_cancellation_at_once_skips_the_path(work):
    flow(lambda self: wait("bell"), undo=hook(on_cancel, lambda *_: leave("undo")))
    found = run(work)
    assert engine.cancel(found, "now", at_once=True) is True
    assert (found.status, found.error, found.ending) == ("cancelled", "now", None)

    def first(self):
        engine.cancel(get_run(), "now", at_once=True)
        return complete()

    flow(first, "own", version=2, undo=hook(on_cancel, lambda *_: leave("undo")))
    assert run(work, "own").status == "cancelled"
    assert effects() == []


def test_a_run_on_the_path_of_its_failure_is_not_cancelled(work):
    flow(
        lambda self: fail("no"),
        undo=hook(on_fail, lambda self, error: wait("undone", then=self.more)),
        off=hook(on_cancel, lambda *_: leave("cancelled")),
        more=lambda self: complete(),
    )
    found = run(work)
    assert engine.cancel(found, "off") is False
    assert engine.cancel(found, "off", at_once=True) is True
    assert (found.status, effects()) == ("failed", [])
    assert found.error == "no\n\nThen its @on_fail was ended at once:\n\noff"


@not_on("sqlite", reason="SQLite has one writer")
def test_a_step_that_runs_when_its_run_is_cancelled_keeps_nothing(work):
    def first(self):
        leave("rolled back")
        pk = get_run().pk
        elsewhere(lambda: engine.cancel(pk, "from outside"))
        return complete()

    flow(first, undo=hook(on_cancel, lambda *_: leave("undo")))
    found = run(work)
    assert (found.status, found.error, effects()) == ("cancelled", "from outside", ["undo"])


def test_a_run_whose_event_has_not_started_it_has_nothing_to_undo(work):
    @event_workflow("checkin_due", name="planned", offset=-HOUR)
    class Planned:
        Context = Fields

        @step(start=True)
        def first(self):
            return complete()

        @on_cancel
        def undo(self):
            leave("undo")

    Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + 2 * HOUR)
    found = the_run(name="planned")
    assert engine.cancel(found) is True
    assert found.status == "cancelled"
    work()
    assert effects() == []


def test_a_run_of_another_release_ends_at_once(work):
    flow(lambda self: wait("bell"), undo=hook(on_cancel, lambda *_: leave("undo")))
    found = run(work)
    definitions.unregister(definitions.find_workflow("flow"))
    assert engine.cancel(found) is True
    assert found.status == "cancelled"


def test_a_path_that_cannot_continue_ends_as_failed(work):
    @event_workflow("reservation_confirmed", name="hosting")
    class Hosting:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait("bell")

        @on_cancel
        def undo(self):
            leave("undo")
            return wait_for_event("checkout_due", then="end")

        @step()
        def end(self):
            return complete()

    stay = Reservation.objects.create(status="confirmed")
    work()
    found = the_run(name="hosting")
    engine.cancel(found, "left")
    work()
    assert status(found) == "suspended"
    stay.delete()
    work()
    assert status(found) == "failed"
    assert found.error.startswith("left\n\nThen its @on_cancel failed:")
    assert "was deleted" in found.error


def test_the_deletion_of_its_entity_lets_a_run_enter_its_path(work):
    @event_workflow("reservation_confirmed", name="hosting")
    class Hosting:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait_for_event("checkout_due")

        @on_cancel
        def undo(self, error):
            leave(error[-13:])

    stay = Reservation.objects.create(status="confirmed")
    work()
    stay.delete()
    work()
    assert (the_run(name="hosting").status, effects()) == ("cancelled", ["was deleted."]) or effects()[0].endswith(
        "deleted."
    )


# -- families, claims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_parent_hears_of_its_child_when_the_path_has_ended(how, work):
    def child(self):
        return fail("no") if how == "failed" else wait("bell")

    def undo(self, error):
        return wait("undone", then=self.more)

    decorator = on_fail if how == "failed" else on_cancel
    flow(child, "child", version=2, undo=hook(decorator, undo), more=lambda self: complete(text="undone"))

    def after(self):
        payload = get_wake().payload
        leave(f"{payload['status']} {payload['error']} {payload['data']['text']}")
        return complete()

    flow(lambda self: run_subflow("child", then=self.after), "parent", after=after)
    parent = run(work, "parent")
    if how == "cancelled":
        engine.cancel(the_run(name="child"), "no")
        work()
    assert (status(parent), effects()) == ("suspended", [])
    engine.signal("undone")
    work()
    assert (status(parent), effects()) == ("completed", [f"{how} no undone"])


@pytest.mark.parametrize("at_once", [False, True])
def test_the_children_of_a_cancelled_run_enter_their_own_paths(at_once, work):
    flow(lambda self: wait("bell"), "child", version=2, undo=hook(on_cancel, lambda *_: leave("child")))
    flow(lambda self: run_subflow("child"), "parent", undo=hook(on_cancel, lambda *_: leave("parent")))
    parent = run(work, "parent")
    engine.cancel(parent, at_once=at_once)
    work()
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"cancelled"}
    assert sorted(effects()) == ([] if at_once else ["child", "parent"])


def test_a_child_that_loses_enters_its_path_and_its_parent_hears_nothing(work):
    flow(lambda self: wait("bell"), "child", version=2, undo=hook(on_cancel, lambda *_: leave("undo")))

    def first(self):
        return wait_any(child=run_subflow("child"), go=wait("go"), then=self.after)

    flow(first, "parent", after=lambda self: wait("more"))
    parent = run(work, "parent")
    engine.signal("go")
    work()
    assert (the_run(name="child").status, effects()) == ("cancelled", ["undo"])
    assert not Signal.objects.filter(run=parent).exists()


def test_claims_are_kept_until_the_path_has_ended(work):
    def first(self):
        claims.hold("document_uploaded", {"kind": "visa"})
        return wait("bell")

    def undo(self, error):
        return wait("undone", then=self.more)

    flow(first, undo=hook(on_cancel, undo), more=lambda self: complete())
    found = run(work)
    engine.cancel(found)
    work()
    assert EventClaim.objects.get().owner == found
    engine.signal("undone")
    work()
    assert not EventClaim.objects.exists()


def test_what_the_run_waited_for_is_kept_for_its_path(work):
    """A signal that no step has consumed is received by a wait of the path."""
    flow(lambda self: wait("bell"), undo=hook(on_cancel, lambda self, error: wait("gong", then=self.more)),
         more=lambda self: complete())  # fmt: skip
    found = run(work)
    engine.signal("gong")
    work()
    engine.cancel(found)
    work()
    assert status(found) == "cancelled"
