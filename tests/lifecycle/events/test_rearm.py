"""``rearm``: an event occurs again when its condition becomes true again or its date moves."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from django_ai.automation.events.callbacks import on_event, on_event_cancelled
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.event_options import confirmed, hear, occurred, pass_by, rows, starts
from tests.support.rows import change, effects, leave, use_up_attempts

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


@pytest.mark.exact_times
def test_a_condition_that_turns_true_again(clock, declare, work):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    hear("on")
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="confirmed", note="x")
    assert occurred("on") == 1
    change(stay, status="pending")
    assert occurred("on") == 1
    clock.tick(HOUR)
    change(stay, status="confirmed")
    found = rows("on")
    assert [(row.status, row.occurred_at) for row in found] == [("processed", clock() - HOUR), ("processed", clock())]
    assert [row.active_key is not None for row in found] == [False, True]
    work()
    assert effects() == [f"on {stay.pk}"] * 2


def test_without_rearm_it_does_not_occur_again(declare):
    declare(Reservation, EventDefinition("on", confirmed))
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    change(stay, status="confirmed")
    assert len(rows("on")) == 1


def test_there_and_back_in_one_transaction_is_one_more(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create(status="confirmed")
    with transaction.atomic():
        change(stay, status="pending")
        change(stay, status="confirmed")
        change(stay, status="pending")
        change(stay, status="confirmed")
    assert occurred("on") == 2


def test_a_rearmed_event_that_is_rolled_back(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change(stay, status="confirmed")
        raise ZeroDivisionError
    (row,) = rows("on")
    assert (row.active_key is not None, row.armed) == (True, False)
    change(stay, status="confirmed")
    assert occurred("on") == 2


def test_a_rearmed_condition_that_is_false_by_the_commit(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    with transaction.atomic():
        change(stay, status="confirmed")
        Reservation.objects.update(status="pending")
    assert occurred("on") == 1
    change(stay, status="confirmed")
    assert occurred("on") == 2


def test_rearm_starts_its_workflows_again(declare, work):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    starts("on")
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    change(stay, status="confirmed")
    work()
    assert effects() == ["started"] * 2


def test_offsets_of_a_rearmed_event(clock, declare, work):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))

    @on_event("on", offset=HOUR)
    def later(event):
        leave(f"{event.at:%H:%M}")

    stay = Reservation.objects.create(status="confirmed")
    clock.tick(timedelta(minutes=10))
    change(stay, status="pending")
    clock.tick(timedelta(minutes=10))
    change(stay, status="confirmed")
    clock.tick(timedelta(minutes=40))
    work()
    clock.tick(timedelta(minutes=20))
    work()
    assert effects() == ["12:00", "12:20"]


def test_a_cancelled_event_does_not_occur_though_it_could_again(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create()
    assert rows("on")[0].cancel()
    change(stay, status="confirmed")
    assert [row.status for row in rows("on")] == ["cancelled"]


def test_a_parked_event_is_not_armed_again(declare, work):
    declare(Reservation, EventDefinition("on", lambda stay: stay.status in stay.note[0], rearm=True))
    stay = Reservation.objects.create()
    use_up_attempts(rows("on")[0], work)
    assert [row.status for row in rows("on")] == ["parked"]
    change(stay, note="pending")
    assert [row.status for row in rows("on")] == ["parked"]


@pytest.fixture
def scheduled(clock, declare):
    """Declare ``in`` with rearm and ``out`` without, each with callbacks at -1 h, 0 and +1 h."""
    declare(
        Reservation,
        EventDefinition("in", date_field="checkin_at", rearm=True),
        EventDefinition("out", date_field="checkout_at"),
    )
    for name in ("in", "out"):
        for title, offset in (("before", -HOUR), ("at", None), ("after", HOUR)):

            @on_event(name, offset=offset, name=f"{title} {name}")
            def heard(event, title=title, name=name):
                leave(f"{title} {name}")

    def make(**dates):
        return Reservation.objects.create(**{name: clock() + delta for name, delta in dates.items()})

    return make


def test_a_date_that_moves_after_it_has_occurred(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR, checkout_at=2 * HOUR)
    whole = ["before in", "before out", "at in", "at out", "after in", "after out"]
    assert sorted(pass_by(clock, work, 4)) == sorted(whole)
    change(stay, checkin_at=clock() + 2 * HOUR, checkout_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 4) == ["before in", "at in", "after in"]
    assert [row.status for row in rows("in")] == ["processed"] * 2
    assert [row.status for row in rows("out")] == ["processed"]
    assert [row.active_key is not None for row in rows("in")] == [False, True]


def test_the_same_date_again_is_no_move(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 4)
    change(stay, note="x")
    change(stay, checkin_at=stay.checkin_at)
    assert pass_by(clock, work, 4) == []
    assert len(rows("in")) == 1


def test_a_date_that_moves_after_its_negative_offset_has_fired(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR, checkout_at=2 * HOUR)
    assert sorted(pass_by(clock, work, 1.5)) == ["before in", "before out"]
    change(stay, checkin_at=clock() + 2 * HOUR, checkout_at=clock() + 2 * HOUR)
    came = pass_by(clock, work, 4)
    assert [each for each in came if each.endswith("in")] == ["before in", "at in", "after in"]
    assert [each for each in came if each.endswith("out")] == ["at out", "after out"]
    assert [row.status for row in rows("in")] == ["cancelled", "processed"]


def test_a_date_that_moves_before_anything_has_fired_is_one_event(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR)
    change(stay, checkin_at=clock() + 3 * HOUR)
    assert pass_by(clock, work, 5) == ["before in", "at in", "after in"]
    assert len(rows("in")) == 1


def test_a_date_that_moves_before_the_positive_offset_takes_it_along(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    assert pass_by(clock, work, 1) == ["before in", "at in"]
    change(stay, checkin_at=clock() + 5 * HOUR)
    assert pass_by(clock, work, 7) == ["before in", "at in", "after in"]


def test_a_date_that_is_taken_away_and_given_again(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    change(stay, checkin_at=None)
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 4) == ["before in", "at in", "after in"]


def test_a_date_that_moves_to_where_it_is_too_late(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    change(stay, checkin_at=clock() - 3 * DAY)
    assert pass_by(clock, work, 1) == []
    assert len(rows("in")) == 1


def test_a_date_that_moves_twice(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    change(stay, checkin_at=clock() + 2 * HOUR)
    change(stay, checkin_at=clock() + 4 * HOUR)
    assert pass_by(clock, work, 6) == ["before in", "at in", "after in"]
    assert len(rows("in")) == 2


def test_a_move_that_is_rolled_back(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change(stay, checkin_at=clock() + HOUR)
        raise ZeroDivisionError
    assert pass_by(clock, work, 3) == []
    assert len(rows("in")) == 1


@pytest.mark.slow
def test_a_date_that_moves_behind_djangos_back_after_it_has_occurred(clock, scheduled):
    scheduled(checkin_at=HOUR)
    pass_by(clock, poll_due, 3)
    Reservation.objects.update(checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, poll_due, 4) == ["before in", "at in", "after in"]


@pytest.mark.slow
def test_a_date_that_moves_behind_djangos_back_while_an_offset_is_still_to_come(clock, scheduled):
    """The offset's wake-up reads the entity before reconciliation; the move must still rearm the event."""
    scheduled(checkin_at=HOUR)
    assert pass_by(clock, poll_due, 1) == ["before in", "at in"]
    Reservation.objects.update(checkin_at=clock() + 10 * HOUR)
    assert pass_by(clock, poll_due, 12) == ["before in", "at in", "after in"]


def test_rearm_of_a_date_plans_its_workflows_again(clock, declare, work):
    declare(Reservation, EventDefinition("in", date_field="checkin_at", rearm=True))
    starts("in", "early", offset=-HOUR)
    starts("in", "sharp")
    stay = Reservation.objects.create(checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 3) == ["early", "sharp"]
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 1.5) == ["early"]
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 3) == ["early", "sharp"]
    assert WorkflowRun.objects.filter(status="completed").count() == 5


def test_a_cancelled_date_does_not_come_back_by_moving(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR)
    assert rows("in")[0].cancel()
    change(stay, checkin_at=clock() + 3 * HOUR)
    assert pass_by(clock, work, 5) == []


def test_a_moved_event_is_not_notified_as_cancelled(clock, scheduled, work):
    """A moved event occurs at its new date, so ``on_event_cancelled`` is not called."""

    @on_event_cancelled("in")
    def gone(event):
        leave("cancelled")

    stay = scheduled(checkin_at=2 * HOUR)
    pass_by(clock, work, 1)
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 4) == ["before in", "at in", "after in"]
