"""How long a claim lasts, and what ends it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import claims
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.claim_lookup import count_events
from django_ai.automation.events.models import Event, EventClaim, RoutingShape
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    fail,
    get_run,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation, Room
from tests.support.claims import UPLOADED, begin, does, started, upload
from tests.support.rows import effects, leave, status

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


# -- duration ----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_it_stands_until_the_moment_it_expires(clock, work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, owner=one, expires_in=10 * SECOND)
    clock.tick(10 * SECOND - timedelta(microseconds=1))
    upload()
    assert started(work) == ["cancelled"]
    with pytest.raises(ClaimedError):
        claims.hold(UPLOADED, owner=two)
    clock.tick(timedelta(microseconds=1))
    assert claims.holder(UPLOADED) is None
    upload()
    assert started(work) == ["cancelled", "completed"]
    assert claims.hold(UPLOADED, owner=two).owner == two
    assert EventClaim.objects.count() == 1


def test_it_stands_as_long_as_its_run_lives(clock, work):
    run = begin()
    work()
    claims.hold(UPLOADED, owner=run, expires_in=None)
    assert EventClaim.objects.get().expires_at is None
    clock.tick(4000 * DAY)
    assert claims.holder(UPLOADED).owner == run
    engine.signal("end")
    work()
    assert (status(run), EventClaim.objects.count()) == ("completed", 0)


@pytest.mark.exact_times
def test_the_same_run_renews_it(clock, work):
    run = begin()
    first = claims.hold(UPLOADED, owner=run, expires_after_events=2, priority=2)
    upload()
    clock.tick(HOUR / 2)
    again = claims.hold(UPLOADED, owner=run, expires_in=2 * HOUR, expires_after_events=3, priority=1)
    assert again.pk == first.pk
    assert (again.held_at, again.expires_at) == (clock(), clock() + 2 * HOUR)
    assert (again.events_left, again.counted, again.priority) == (3, [], 1)
    forever = claims.hold(UPLOADED, owner=run, expires_in=None)
    assert (forever.expires_at, forever.events_left) == (None, None)


def test_it_ends_after_a_number_of_events(work):
    claims.hold(UPLOADED, {"kind": "visa"}, owner=begin(), expires_after_events=2)
    for kind in ("visa", "passport", "visa"):
        upload(kind)
    work()
    upload("visa")
    assert started(work) == ["cancelled", "completed", "cancelled", "completed"]
    assert claims.holder(UPLOADED, {"kind": "visa"}) is None


def test_the_event_that_ends_it_is_still_kept_from_others(work):
    claims.hold(UPLOADED, owner=begin(), expires_after_events=1)
    upload()
    upload()
    # Both events occur before any run starts: the claim covers the first and is used up before the second.
    assert started(work) == ["cancelled", "completed"]


def test_a_claim_that_has_had_its_events_can_be_taken(work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, owner=one, expires_after_events=1)
    upload()
    taken = claims.hold(UPLOADED, owner=two, expires_after_events=1)
    assert (taken.owner, taken.events_left, taken.counted) == (two, 1, [])


def test_an_event_is_counted_once_though_it_is_notified_twice(work):
    claims.hold(UPLOADED, owner=begin(), expires_after_events=3)
    upload()
    event = Event.objects.get(event_name=UPLOADED)
    for _ in range(3):
        count_events([event], RoutingShape.of([event]))
    assert EventClaim.objects.get().events_left == 2
    Event.objects.filter(pk=event.pk).update(pending_notifications=[""], wake_at=event.occurred_at)
    work()
    assert EventClaim.objects.get().events_left == 2


def test_an_event_that_occurred_before_the_claim_does_not_count(work):
    upload()
    claims.hold(UPLOADED, owner=begin(), expires_after_events=1)
    work()
    assert EventClaim.objects.get().events_left == 1


def test_events_count_when_nobody_listens(work):
    claims.hold("room_cleaned", {"number__startswith": "1"}, owner=begin(), expires_after_events=1)
    Room.objects.create(number="2", is_clean=True)
    work()
    assert EventClaim.objects.get().events_left == 1
    Room.objects.create(number="1", is_clean=True)
    work()
    assert EventClaim.objects.get().events_left == 0


def test_an_event_that_is_rolled_back_does_not_count(work):
    claims.hold(UPLOADED, owner=begin(), expires_after_events=1)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        upload()
        raise ZeroDivisionError
    work()
    assert EventClaim.objects.get().events_left == 1


def test_only_occurrences_count(clock, work):
    """The creation of an event and its offsets do not count towards a claim."""
    on_event("checkin_due", offset=-HOUR)(lambda event: None)
    claims.hold("checkin_due", owner=begin(), expires_in=None, expires_after_events=1)
    Reservation.objects.create(status="confirmed", checkin_at=clock() + 2 * HOUR)
    clock.tick(HOUR)
    work()
    assert EventClaim.objects.get().events_left == 1
    clock.tick(HOUR)
    work()
    assert EventClaim.objects.get().events_left == 0


# -- release and end ---------------------------------------------------------------------------------------------------


def test_release(work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, {"kind": "visa"}, owner=one)
    assert claims.release(UPLOADED, {"kind": "visa"}, owner=two) is False
    assert claims.release(UPLOADED, owner=one) is False  # a different match
    assert claims.release(UPLOADED, {"kind": "visa"}, owner=one) is True
    assert claims.release(UPLOADED, {"kind": "visa"}, owner=one) is False
    claims.hold(UPLOADED, {"kind": "visa"}, owner=two)


def test_a_step_releases_what_another_step_held(work):
    @workflow("two steps")
    class TwoSteps:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            claims.hold(UPLOADED)
            return goto(self.second)

        @step()
        def second(self):
            leave(claims.release(UPLOADED))
            return wait("end")

    engine.start("two steps")
    work()
    assert (effects(), EventClaim.objects.count()) == (["True"], 0)


def ended_by_complete(self):
    return complete()


def ended_by_fail(self):
    return fail("no")


def ended_by_error(self):
    return goto(self.fall)


@pytest.mark.parametrize("ending", [ended_by_complete, ended_by_fail, ended_by_error])
@pytest.mark.parametrize("atomic", [True, False])
def test_it_ends_with_its_run(clock, work, ending, atomic):
    def first(self):
        claims.hold(UPLOADED, expires_in=None)
        leave(claims.holder(UPLOADED) is not None)
        return ending(self)

    run = does(first, retry=Retry(max_attempts=1), atomic=atomic)
    for _ in range(4):
        work()
        clock.tick(10 * SECOND)
    assert status(run) in ("completed", "failed")
    assert (effects(), EventClaim.objects.count()) == (["True"], 0)


def test_it_ends_when_its_run_is_cancelled(work):
    run = does(lambda self: claims.hold(UPLOADED) and goto(self.rest))
    work()
    assert EventClaim.objects.count() == 1
    engine.cancel(run)
    assert EventClaim.objects.count() == 0


def test_it_ends_when_its_run_cancels_itself(work):
    run = does(lambda self: claims.hold(UPLOADED) and engine.cancel(get_run(), "enough") and None)
    work()
    assert (status(run), EventClaim.objects.count()) == ("cancelled", 0)


def test_it_ends_when_a_run_that_holds_from_outside_ends(work):
    run = begin()
    claims.hold(UPLOADED, owner=run, expires_in=None)
    work()
    assert EventClaim.objects.count() == 1
    engine.signal("end")
    work()
    assert EventClaim.objects.count() == 0


def test_it_lives_through_waits_retries_and_steps(clock, work):
    @workflow("long")
    class Long:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def first(self):
            claims.hold(UPLOADED, expires_in=None)
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            self.context.tries += 1
            if self.context.tries < 2:
                raise ZeroDivisionError
            return wait("end", then=self.third)

        @step()
        def third(self):
            return complete()

    run = engine.start("long")
    for tick in (timedelta(0), HOUR, 10 * SECOND):
        clock.tick(tick)
        work()
        assert claims.holder(UPLOADED).owner == run
    engine.signal("end")
    work()
    assert (status(run), EventClaim.objects.count()) == ("completed", 0)


def test_a_child_is_a_run_of_its_own(work):
    def child(self):
        try:
            claims.hold(UPLOADED)
        except ClaimedError:
            leave("my parent has it")

    def parent(self):
        claims.hold(UPLOADED)
        return run_subflow("child", then=self.rest)

    does(child, "child")
    WorkflowRun.objects.all().delete()
    run = does(parent, "parent")
    work()
    work()
    assert effects() == ["my parent has it"]
    assert claims.holder(UPLOADED).owner == run


def test_a_child_that_is_cancelled_with_its_parent_lets_go(work):
    does(lambda self: claims.hold(UPLOADED) and goto(self.rest), "child")
    WorkflowRun.objects.all().delete()
    parent = does(lambda self: run_subflow("child"), "parent")
    work()
    assert EventClaim.objects.count() == 1
    engine.cancel(parent)
    assert EventClaim.objects.count() == 0


def test_a_step_that_fails_has_held_nothing(clock, work):
    def first(self):
        if self.context.tries < 3:
            claims.hold(UPLOADED)
            raise ZeroDivisionError
        return wait("end")

    run = does(first)
    work()
    assert (status(run), EventClaim.objects.count()) == ("waiting", 0)
    for _ in range(2):
        clock.tick(10 * SECOND)
        work()
    assert (status(run), EventClaim.objects.count()) == ("suspended", 0)


def test_outside_a_transaction_a_claim_outlives_the_failure_of_its_step(clock, work):
    def first(self):
        if self.context.tries == 1:
            claims.hold(UPLOADED)
            raise ZeroDivisionError
        return complete()

    run = does(first, atomic=False)
    work()
    assert (status(run), claims.holder(UPLOADED).owner) == ("waiting", run)
    clock.tick(10 * SECOND)
    work()
    assert (status(run), EventClaim.objects.count()) == ("completed", 0)


def test_a_step_that_only_releases(work):
    run = begin()
    claims.hold(UPLOADED, owner=run)
    other = does(lambda self: leave(claims.release(UPLOADED)))
    work()
    assert (status(other), effects()) == ("completed", ["False"])
    assert claims.holder(UPLOADED).owner == run


@pytest.mark.parametrize("fate", ["finished", "deleted"])
def test_a_dead_owners_claim_does_not_stand(work, fate):
    one, two = begin(), begin()
    claims.hold(UPLOADED, owner=one, expires_in=None, priority=100)
    rows = WorkflowRun.objects.filter(pk=one.pk)
    if fate == "deleted":
        rows.delete()
    else:
        rows.update(status="completed")  # as if its process died before it released the claim
    assert claims.holder(UPLOADED) is None
    upload()
    assert started(work) == ["completed"]
    assert claims.hold(UPLOADED, owner=two).owner == two


def test_a_parked_run_keeps_its_claims(work):
    run = begin()
    claims.hold(UPLOADED, owner=run, expires_in=None)
    WorkflowRun.objects.filter(pk=run.pk).update(status="parked", wake_at=None)
    assert claims.holder(UPLOADED).owner == run


def test_a_run_that_has_ended_holds_nothing(work):
    run = begin()
    engine.cancel(run)
    with pytest.raises(DefinitionError, match="has ended"):
        claims.hold(UPLOADED, owner=run)
    assert claims.holder(UPLOADED) is None
    assert claims.release(UPLOADED, owner=run) is False


def test_ended_claims_are_removed(clock, work):
    keep, gone = begin(), begin()
    claims.hold(UPLOADED, {"kind": "a"}, owner=keep, expires_in=None)
    claims.hold(UPLOADED, {"kind": "b"}, owner=keep, expires_in=SECOND)
    claims.hold(UPLOADED, {"kind": "c"}, owner=gone, expires_in=None)
    claims.hold(UPLOADED, {"kind": "d"}, owner=keep, expires_in=900 * DAY)
    WorkflowRun.objects.filter(pk=gone.pk).update(status="completed", finished_at=clock())
    cleanup_old()
    assert EventClaim.objects.count() == 4
    clock.tick(400 * DAY)
    claims.hold(UPLOADED, {"kind": "e"}, owner=keep, expires_in=SECOND)
    clock.tick(2 * SECOND)
    cleanup_old()
    assert sorted(claim.match["kind"] for claim in EventClaim.objects.all()) == ["a", "d", "e"]


def test_used_up_claims_are_removed(clock, work):
    claims.hold(UPLOADED, owner=begin(), expires_in=None, expires_after_events=1)
    upload()
    clock.tick(400 * DAY)
    cleanup_old()
    assert not EventClaim.objects.exists()


def test_a_claim_is_rolled_back_with_its_transaction(work):
    run = begin()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        claims.hold(UPLOADED, owner=run)
        raise ZeroDivisionError
    assert claims.holder(UPLOADED) is None


def test_a_claim_says_who_has_what(work):
    run = begin()
    claim = claims.hold(UPLOADED, {"kind": "visa"}, owner=run)
    assert str(claim) == f"'{UPLOADED}' with {{'kind': 'visa'}} is claimed by workflow holder #{run.pk}"
    claim = claims.hold(UPLOADED, owner=run)
    WorkflowRun.objects.all().delete()
    assert str(claim) == f"'{UPLOADED}' is claimed by workflow #{run.pk}"


def test_the_admin_shows_claims(client, work):
    run = begin()
    claim = claims.hold(UPLOADED, {"kind": "visa"}, owner=run)
    lost = claims.hold(UPLOADED, owner=begin("holder"))
    lost.owner.delete()
    client.force_login(User.objects.create_superuser("root", password="x"))
    page = client.get(reverse("admin:automation_events_eventclaim_changelist"))
    assert page.status_code == 200
    assert f"holder #{run.pk}" in page.content.decode()
    assert client.get(reverse("admin:automation_events_eventclaim_change", args=[claim.pk])).status_code == 200
    assert client.get(reverse("admin:automation_events_eventclaim_add")).status_code == 403
