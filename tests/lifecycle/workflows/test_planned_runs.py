"""Planned runs: a workflow with an offset has a WAITING row before it starts, and that row is the timer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.db import transaction
from pydantic import BaseModel

from django_ai.automation import EventDefinition, engine
from django_ai.automation.exceptions import NotResumableError
from django_ai.automation.queues.runtimes.tasks import cleanup_old, poll_due
from django_ai.automation.workflows.core import complete, event_workflow, sleep, step
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave, status_of, the_run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def flow(offset, event="checkin_due", name="planned"):
    @event_workflow(event, offset=offset, name=name)
    class Planned:
        class Context(BaseModel):
            pk: int
            note: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(pk=event.entity.pk, note=event.entity.note)

        @step(start=True)
        def run(self):
            leave(f"{name} {self.context.pk} {self.context.note}".strip())
            return complete()

    return Planned


def book(clock, ahead=5 * HOUR, **values) -> Reservation:
    return Reservation.objects.create(**{"status": "confirmed", "checkin_at": clock() + ahead, **values})


def withdrawn() -> str:
    """Return why the only run was withdrawn."""
    run = the_run()
    assert (run.status, run.wake_at, run.lease, run.started_at) == ("withdrawn", None, None, None)
    assert run.finished_at is not None
    return run.error.removeprefix("Withdrawn before it was to start: ").removesuffix(".")


@pytest.mark.exact_times
def test_it_waits_without_data_until_it_starts(clock, work):
    flow(-HOUR)
    stay = book(clock)
    run = the_run()
    assert (run.status, run.wake_at, run.data, run.started_at) == ("waiting", clock() + 4 * HOUR, {}, None)
    assert (run.entity_type, run.entity_id, run.event.entity) == ("app.reservation", str(stay.pk), stay)
    Reservation.objects.filter(pk=stay.pk).update(note="changed")
    clock.tick(4 * HOUR)
    work()
    run.refresh_from_db()
    assert (run.status, run.started_at, run.data) == ("completed", clock(), {"pk": stay.pk, "note": "changed"})
    assert effects() == [f"planned {stay.pk} changed"]


@pytest.mark.parametrize(
    ("offset", "when"),
    [
        (timedelta(hours=-1), datetime(2030, 3, 31, 12, tzinfo=UTC)),
        (timedelta(hours=1), datetime(2030, 3, 31, 14, tzinfo=UTC)),
        (timedelta(days=-1), datetime(2030, 3, 30, 13, tzinfo=UTC)),
        (relativedelta(days=-1), datetime(2030, 3, 30, 14, tzinfo=UTC)),  # 15:00 in Berlin, in winter
        (relativedelta(months=-1), datetime(2030, 2, 28, 14, tzinfo=UTC)),
        (relativedelta(hour=9, minute=0), datetime(2030, 3, 31, 7, tzinfo=UTC)),
    ],
)
def test_its_time_is_the_date_and_the_offset(offset, when, clock, work):
    flow(offset)
    Reservation.objects.create(status="confirmed", checkin_at=datetime(2030, 3, 31, 13, tzinfo=UTC))
    assert the_run().wake_at == when
    clock.now = when - timedelta(seconds=1)
    work()
    assert effects() == []
    clock.now = when
    work()
    assert len(effects()) == 1


@pytest.mark.exact_times
@pytest.mark.parametrize("by", [-2 * HOUR, 3 * DAY])
def test_it_moves_with_the_date(by, clock):
    flow(-HOUR)
    stay = book(clock)
    pk = the_run().pk
    stay.checkin_at += by
    stay.save()
    assert (the_run().pk, the_run().wake_at) == (pk, clock() + 4 * HOUR + by)


@pytest.mark.exact_times
def test_it_moves_and_goes_in_the_same_transaction(clock):
    flow(-HOUR)
    stay = book(clock)
    for change in ({"checkin_at": clock() + DAY}, {"status": "cancelled"}):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            for name, value in change.items():
                setattr(stay, name, value)
            stay.save()
            raise ZeroDivisionError
        stay.refresh_from_db()
        assert the_run().wake_at == clock() + 4 * HOUR


@pytest.mark.exact_times
def test_there_is_none_while_the_condition_is_false_and_one_when_it_turns_true(clock, work):
    flow(-HOUR)
    stay = book(clock, status="pending")
    assert not WorkflowRun.objects.exists()
    for _ in range(2):
        stay.status = "confirmed"
        stay.save()
        assert the_run().wake_at == clock() + 4 * HOUR
        stay.status = "cancelled"
        stay.save()
        assert withdrawn() == "the condition of its event is no longer true"
    stay.status = "confirmed"
    stay.save()
    assert (the_run().status, the_run().error, the_run().finished_at) == ("waiting", "", None)
    clock.tick(5 * HOUR)
    work()
    assert effects() == [f"planned {stay.pk}"]


def test_what_was_not_saved_plans_nothing(clock):
    flow(-HOUR)
    stay = book(clock, status="pending")
    stay.status, stay.note = "confirmed", "x"
    stay.save(update_fields=["note"])
    assert not WorkflowRun.objects.exists()


@pytest.mark.exact_times
def test_it_goes_with_the_date(clock):
    flow(-HOUR)
    stay = book(clock)
    stay.checkin_at = None
    stay.save()
    assert withdrawn() == "its event no longer has a date"
    stay.checkin_at = clock() + DAY
    stay.save()
    assert the_run().wake_at == clock() + DAY - HOUR


def test_it_goes_with_the_entity(clock, work):
    flow(-HOUR)
    stay = book(clock)
    stay.delete()
    assert withdrawn() == "its entity was deleted"
    clock.tick(DAY)
    work()
    assert effects() == []


def test_it_goes_with_the_event(clock):
    from tests.support.rows import event_of

    flow(-HOUR)
    stay = book(clock)
    event_of(stay, "checkin_due").cancel()
    assert withdrawn() == "its event is cancelled"
    stay.checkin_at += HOUR
    stay.save()
    assert the_run().status == "withdrawn"


def test_it_starts_once(clock, work):
    flow(-HOUR)
    stay = book(clock)
    clock.tick(4 * HOUR)
    work()
    stay.checkin_at += DAY
    stay.save()
    for status in ("cancelled", "confirmed"):
        stay.status = status
        stay.save()
    clock.tick(3 * DAY)
    poll_due(clock())
    work()
    assert effects() == [f"planned {stay.pk}"]
    assert WorkflowRun.objects.count() == 1


@pytest.mark.exact_times
def test_what_has_started_goes_on(clock, work):
    @event_workflow("checkin_due", offset=-HOUR, name="long")
    class Long:
        class Context(BaseModel):
            naps: int = 0

        @step(start=True)
        def nap(self):
            self.context.naps += 1
            return sleep(HOUR) if self.context.naps < 3 else complete()

    stay = book(clock)
    clock.tick(4 * HOUR)
    work()
    stay.status = "cancelled"
    stay.checkin_at += DAY
    stay.save()
    assert the_run().wake_at == clock() + HOUR
    for _ in range(2):
        clock.tick(HOUR)
        work()
    assert (the_run().status, the_run().data) == ("completed", {"naps": 3})


def test_a_last_minute_booking_runs_at_once(clock, work):
    flow(-DAY)
    stay = book(clock)
    work()
    assert effects() == [f"planned {stay.pk}"]
    assert status_of(stay, "checkin_due") == "pending"


def test_a_date_that_is_long_past_plans_nothing(clock, work):
    flow(-HOUR)
    flow(2 * DAY, name="after")
    book(clock, ahead=-3 * DAY)
    assert not WorkflowRun.objects.exists()
    work()
    assert effects() == []


def test_after_an_outage_it_still_runs(clock, work):
    flow(-HOUR)
    stay = book(clock)
    clock.tick(100 * DAY)
    work()
    assert effects() == [f"planned {stay.pk}"]


def test_two_workflows_on_one_event_and_offset_are_two(clock, work):
    flow(-HOUR, name="one")
    flow(-HOUR, name="two")
    stay = book(clock)
    assert WorkflowRun.objects.count() == 2
    clock.tick(4 * HOUR)
    work()
    assert sorted(effects()) == [f"one {stay.pk}", f"two {stay.pk}"]


@pytest.mark.exact_times
def test_a_positive_offset_runs_after_the_event(clock, work):
    flow(HOUR)
    stay = book(clock)
    clock.tick(5 * HOUR)
    work()
    assert (status_of(stay, "checkin_due"), effects()) == ("processed", [])
    assert the_run().wake_at == clock() + HOUR
    clock.tick(HOUR)
    work()
    assert effects() == [f"planned {stay.pk}"]
    assert WorkflowRun.objects.count() == 1


@pytest.mark.parametrize("how", ["delete", "cancel"])
def test_a_positive_offset_goes_with_the_entity_alone(how, clock, work):
    flow(DAY)
    stay = book(clock)
    clock.tick(6 * HOUR)
    work()
    if how == "delete":
        stay.delete()
    else:
        stay.status = "cancelled"
        stay.save()
    clock.tick(2 * DAY)
    work()
    if how == "delete":
        assert (the_run().status, effects()) == ("cancelled", [])
        assert "was deleted" in the_run().error
    else:
        assert effects() == [f"planned {stay.pk}"]


@pytest.mark.exact_times
def test_an_offset_from_an_immediate_event_counts_from_its_occurrence(clock, work):
    flow(HOUR, event="reservation_confirmed")
    stay = Reservation.objects.create()
    assert not WorkflowRun.objects.exists()
    clock.tick(DAY)
    stay.status = "confirmed"
    stay.save()
    assert (the_run().status, the_run().wake_at) == ("waiting", clock() + HOUR)
    clock.tick(HOUR)
    work()
    assert effects() == [f"planned {stay.pk}"]


def test_without_an_offset_the_run_begins_with_the_occurrence(clock, work):
    flow(None)
    stay = book(clock)
    assert not WorkflowRun.objects.exists()
    clock.tick(5 * HOUR)
    work()
    assert effects() == [f"planned {stay.pk}"]
    assert WorkflowRun.objects.count() == 1


# -- writes that bypass Django's signals -------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_date_that_an_update_put_off_is_noticed_at_the_latest_when_it_wakes(clock, work):
    flow(-HOUR)
    stay = book(clock)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=clock() + DAY)
    clock.tick(4 * HOUR)
    work()
    assert effects() == []
    assert (the_run().status, the_run().wake_at) == ("waiting", clock() + 19 * HOUR)
    clock.tick(19 * HOUR)
    work()
    assert effects() == [f"planned {stay.pk}"]


@pytest.mark.exact_times
def test_a_date_that_an_update_brought_forward_is_found(clock, work):
    flow(-HOUR)
    stay = book(clock, ahead=10 * DAY)
    Reservation.objects.filter(pk=stay.pk).update(checkin_at=clock() + HOUR + timedelta(minutes=10))
    poll_due(clock())
    assert the_run().wake_at == clock() + timedelta(minutes=10)
    clock.tick(timedelta(minutes=10))
    work()
    assert effects() == [f"planned {stay.pk}"]


def test_a_condition_that_an_update_made_false_is_noticed_when_it_wakes(clock, work):
    flow(-HOUR)
    stay = book(clock)
    Reservation.objects.filter(pk=stay.pk).update(status="cancelled")
    clock.tick(4 * HOUR)
    work()
    assert (effects(), withdrawn()) == ([], "the condition of its event is no longer true")
    stay.refresh_from_db()
    stay.status = "confirmed"
    stay.save()
    work()
    assert effects() == [f"planned {stay.pk}"]


@pytest.mark.exact_times
def test_a_workflow_that_a_deployment_adds_gets_its_runs(clock, work):
    stay = book(clock)
    flow(-HOUR)
    clock.tick(3 * HOUR + timedelta(minutes=50))
    poll_due(clock())
    assert the_run().wake_at == clock() + timedelta(minutes=10)
    clock.tick(timedelta(minutes=10))
    work()
    assert effects() == [f"planned {stay.pk}"]


def test_a_condition_that_raises_parks_the_run(clock, work, monkeypatch):
    from tests.support.rows import definition_of

    flow(-HOUR)
    stay = book(clock)
    definition = definition_of(Reservation, "checkin_due")
    right = definition.condition
    monkeypatch.setattr(definition, "condition", lambda stay: 1 / 0)
    clock.tick(4 * HOUR)
    for _ in range(5):
        work(the_run().wake_at)
    run = the_run()
    assert run.status == "parked"
    assert "ZeroDivisionError" in run.error
    monkeypatch.setattr(definition, "condition", right)
    run.resume()
    work()
    assert effects() == [f"planned {stay.pk}"]


def test_a_workflow_that_is_gone_parks_its_planned_runs(clock, work):
    from django_ai.automation.workflows.definitions import find_workflow, unregister

    flow(-HOUR)
    stay = book(clock)
    unregister(find_workflow("planned"))
    clock.tick(4 * HOUR)
    work()
    run = the_run()
    assert run.status == "parked"
    assert "planned" in run.error
    flow(-HOUR)
    run.resume()
    work()
    assert effects() == [f"planned {stay.pk}"]


def test_it_goes_with_the_name_of_its_event(clock, declare):
    declare(Reservation, EventDefinition("stay_in:{{ instance.note }}", date_field="checkin_at"))
    flow(-HOUR, event="stay_in:north")
    stay = book(clock, note="north")
    stay.note = "south"
    stay.save()
    assert withdrawn() == "its event now has the name 'stay_in:south'"
    stay.note = "north"
    stay.save()
    assert the_run().status == "waiting"


def test_a_date_that_moves_to_where_it_comes_too_late_withdraws_it(clock):
    flow(-HOUR)
    stay = book(clock)
    stay.checkin_at = clock() - timedelta(days=400)
    stay.save()
    assert withdrawn() == "the date of its event was moved too far into the past"


@pytest.mark.exact_times
def test_one_that_is_planned_anew_counts_from_then(clock, work):
    """A run that is planned again has the creation time and the attempt count of a new run."""
    flow(-HOUR)
    stay = book(clock)
    planned_at = clock()
    for status in ("cancelled", "confirmed"):
        clock.tick(HOUR)
        stay.status = status
        stay.save()
    run = the_run()
    assert (run.status, run.created_at, run.wake_at) == ("waiting", clock(), planned_at + 4 * HOUR)
    assert run.attempt == 0


def test_one_that_an_operator_has_cancelled_is_not_planned_anew(clock, work):
    flow(-HOUR)
    stay = book(clock)
    engine.cancel(the_run())
    for status in ("cancelled", "confirmed"):
        stay.status = status
        stay.save()
    assert the_run().status == "cancelled"


def test_what_was_withdrawn_is_kept_for_the_retention(clock, work):
    """Pruning deletes a withdrawn run even if its event still exists: it never started, so nothing can run twice."""
    flow(-HOUR)
    stay = book(clock, ahead=400 * DAY)
    stay.status = "cancelled"
    stay.save()
    for _ in range(2):
        cleanup_old(clock())
        assert the_run().status == "withdrawn"
        clock.tick(29 * DAY)
    cleanup_old(clock())
    assert not WorkflowRun.objects.exists()
    stay.status = "confirmed"
    stay.save()
    assert the_run().status == "waiting"


def test_a_withdrawn_run_cannot_be_resumed_or_cancelled(clock):
    flow(-HOUR)
    book(clock).delete()
    run = the_run()
    with pytest.raises(NotResumableError, match="is withdrawn"):
        run.resume()
    assert engine.cancel(run) is False
