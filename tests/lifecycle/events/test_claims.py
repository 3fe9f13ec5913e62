"""Claims: one run keeps an event to itself, for a while, for a number of events, or until it ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import claims
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.claims import count
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event, EventClaim, RoutingShape
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_run,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Chore, Document, Guest, Reservation, Room, Suite
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
UPLOADED = "document_uploaded"


@pytest.fixture(autouse=True)
def holders():
    """``holder`` lives until somebody rings; ``listener`` wants every uploaded document."""

    @workflow("holder")
    class Holder:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return wait("end", then=self.last)

        @step()
        def last(self):
            return complete()

    listen(UPLOADED, "listener")


def listen(event: str, name: str, **options) -> None:
    """Declare a workflow that the event starts; it leaves its entity."""

    @event_workflow(event, name=name, **options)
    class Listener:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def first(self):
            leave(self.context.entity_id)
            return complete()


def begin(name="holder") -> WorkflowRun:
    return engine.start(name)


def upload(kind="passport", stay=None) -> Document:
    return Document.objects.create(reservation=stay or Reservation.objects.create(), kind=kind)


def started(work, name="listener") -> list[str]:
    """Work, and say how the listeners' runs ended, the eldest first."""
    work()
    return list(WorkflowRun.objects.filter(name=name).order_by("pk").values_list("status", flat=True))


def does(function, name="doer", **options) -> WorkflowRun:
    """Start a run whose only step calls ``function``, and completes if that returns nothing."""

    @workflow(name)
    class Doer:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True, **options)
        def first(self):
            self.context.tries += 1
            return function(self) or complete()

        @step()
        def rest(self):
            return wait("end")

        @step()
        def fall(self):
            raise ZeroDivisionError

    return engine.start(name)


def status(run: WorkflowRun) -> str:
    run.refresh_from_db()
    return str(run.status)


# -- who holds ---------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_step_holds_for_its_run(clock, work):
    run = does(lambda self: claims.hold(UPLOADED, {"kind": "visa"}) and goto(self.rest))
    work()
    (claim,) = EventClaim.objects.all()
    assert (claim.event_name, claim.match, claim.owner_kind, claim.owner) == (
        UPLOADED,
        {"kind": "visa"},
        "workflow",
        run,
    )
    assert (claim.priority, claim.held_at, claim.expires_at) == (0, clock(), clock() + HOUR)
    assert claims.holder(UPLOADED, {"kind": "visa"}) == claim
    assert claims.holder(UPLOADED, {"kind": "passport"}) is None
    assert claims.holder(UPLOADED) is None


def test_outside_a_flow_an_owner_is_needed(work):
    for call in (claims.hold, claims.release):
        with pytest.raises(DefinitionError, match=r"needs an owner.*owner= \(a run\)"):
            call(UPLOADED)
    with pytest.raises(DefinitionError, match="must be the run of an agent or a workflow"):
        claims.hold(UPLOADED, owner=Guest.objects.create(name="Ann"))
    assert not EventClaim.objects.exists()


def test_a_plain_automation_is_no_flow(work):
    caught = []

    @on_event(UPLOADED)
    def grab(event):
        try:
            claims.hold(UPLOADED)
        except DefinitionError as error:
            caught.append(str(error))

    upload()
    work()
    assert "needs an owner" in caught[0]


def test_a_plain_automation_may_hold_for_a_run(work):
    run = begin()

    @on_event(UPLOADED)
    def grab(event):
        claims.hold(UPLOADED, owner=run)

    upload()
    work()
    assert claims.holder(UPLOADED).owner == run


def test_somebody_else_is_told_who_holds_it(clock, work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, {"kind": "visa"}, owner=one, priority=3)
    with pytest.raises(ClaimedError) as raised:
        claims.hold(UPLOADED, {"kind": "visa"}, owner=two)
    text = str(raised.value)
    for part in ("'document_uploaded'", "{'kind': 'visa'}", f"holder #{one.pk}", "2030-01-07 13:00:00", "priority 3"):
        assert part in text
    assert "bump=True" in text
    assert claims.holder(UPLOADED, {"kind": "visa"}).owner == one


def test_who_finds_it_claimed_is_retried(clock, work):
    one = begin()
    claims.hold(UPLOADED, owner=one, expires_in=5 * SECOND)
    run = does(
        lambda self: claims.hold(UPLOADED) and goto(self.rest), retry=Retry(max_attempts=5, base_delay=3 * SECOND)
    )
    work()
    assert (status(run), "ClaimedError" in run.error) == ("waiting", True)
    clock.tick(3 * SECOND)
    work()
    assert status(run) == "waiting"
    clock.tick(6 * SECOND)
    work()
    assert (status(run), run.data["tries"], claims.holder(UPLOADED).owner) == ("suspended", 3, run)


def test_who_finds_it_claimed_too_often_fails(clock, work):
    claims.hold(UPLOADED, owner=begin())
    run = does(lambda self: claims.hold(UPLOADED) and None, retry=Retry(max_attempts=2))
    work()
    clock.tick(SECOND)
    work()
    assert (status(run), "is claimed by workflow holder" in run.error) == ("failed", True)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_step_may_catch_it(work, atomic):
    claims.hold(UPLOADED, owner=begin())

    def careful(self):
        try:
            claims.hold(UPLOADED)
        except ClaimedError:
            leave("taken")

    run = does(careful, atomic=atomic)
    work()
    assert (status(run), effects()) == ("completed", ["taken"])


WRONG = [
    ({"event_name": ""}, "name one event"),
    ({"event_name": None}, "name one event"),
    ({"event_name": "*"}, r"without '\*'"),
    ({"event_name": "document_*"}, r"without '\*'"),
    ({"match": ["kind"]}, "match="),
    ({"match": {"kind": "{{ ctx.kind }}"}}, "give the value itself"),
    ({"match": {"kimd": "visa"}}, "Did you mean 'kind'"),
    ({"match": {"kind__containz": "visa"}}, "'kind__containz'"),
    ({"match": {"kind__in": "visa"}}, "needs a list"),
    ({"priority": "high"}, "priority='high'"),
    ({"priority": 1.5}, "priority=1.5"),
    ({"priority": True}, "priority=True"),
    ({"expires_in": 60}, "expires_in"),
    ({"expires_in": timedelta(0)}, "expires_in"),
    ({"expires_in": -HOUR}, "expires_in"),
    ({"expires_after_events": 0}, "expires_after_events=0"),
    ({"expires_after_events": 1001}, "1 to 1000"),
    ({"expires_after_events": 1.0}, "expires_after_events=1.0"),
    ({"expires_after_events": True}, "expires_after_events=True"),
]


def test_what_makes_no_sense_is_refused():
    run = begin()
    for arguments, named in WRONG:
        with pytest.raises(DefinitionError, match=named):
            claims.hold(**{"event_name": UPLOADED, "owner": run, **arguments})
    assert not EventClaim.objects.exists()


def test_wrong_use_in_a_step_is_not_retried(clock, work):
    run = does(lambda self: claims.hold("*"))
    work()
    assert (status(run), run.data["tries"]) == ("failed", 1)


# -- what it keeps from others -----------------------------------------------------------------------------------------


def test_the_event_workflows_of_others_pass_it_by(work):
    holder = begin()
    claims.hold(UPLOADED, {"kind": "visa"}, owner=holder)
    visa, passport = upload("visa"), upload("passport")
    assert started(work) == ["cancelled", "completed"]
    assert effects() == [str(passport.pk)]
    skipped = WorkflowRun.objects.filter(name="listener").first()
    assert "claimed by workflow holder" in skipped.error
    assert (skipped.entity_id, skipped.wake_at, skipped.data) == (str(visa.pk), None, {})
    claims.release(UPLOADED, {"kind": "visa"}, owner=holder)
    upload("visa")
    assert started(work) == ["cancelled", "completed", "completed"]


def test_ignores_claims(work):
    listen(UPLOADED, "stubborn", ignores_claims=True)
    claims.hold(UPLOADED, owner=begin())
    upload()
    assert started(work) == ["cancelled"]
    assert started(work, "stubborn") == ["completed"]


def test_plain_automations_always_run(work):
    @on_event(UPLOADED)
    @on_event(UPLOADED, offset=timedelta(0), name="again")
    def heard(event):
        leave("heard")

    claims.hold(UPLOADED, owner=begin())
    upload()
    assert started(work) == ["cancelled"]
    assert effects() == ["heard", "heard"]


def test_it_is_judged_when_the_execution_starts(clock, work):
    holder = begin()
    upload()  # before the claim, and its run has not begun yet
    claims.hold(UPLOADED, owner=holder)
    upload()
    clock.tick(HOUR)  # the claim has ended before the runs begin
    assert started(work) == ["completed", "completed"]
    upload()
    claims.hold(UPLOADED, owner=holder)
    assert started(work)[2:] == ["cancelled"]


def test_what_has_begun_goes_on(work):
    @event_workflow(UPLOADED, name="long")
    class Long:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return wait("go", then=self.last)

        @step()
        def last(self):
            return complete()

    upload()
    work()
    claims.hold(UPLOADED, owner=begin())
    engine.signal("go")
    work()
    assert WorkflowRun.objects.get(name="long").status == "completed"


def test_a_planned_run_is_judged_when_it_begins(clock, work):
    listen("checkin_due", "early", offset=-HOUR)
    holder = begin()
    for number in (2, 3):
        Reservation.objects.create(status="confirmed", checkin_at=clock() + number * HOUR)
    claims.hold("checkin_due", owner=holder, expires_in=2 * HOUR)
    for _ in range(2):
        clock.tick(HOUR)
        work()
    runs = WorkflowRun.objects.filter(name="early").order_by("pk")
    assert [run.status for run in runs] == ["cancelled", "completed"]
    assert "claimed by" in runs[0].error


def test_the_holders_own_event_workflow_is_another_run(work):
    """A claim is a run's, not a workflow's: a new run of the same workflow passes the event by, too."""

    @event_workflow(UPLOADED, name="greedy")
    class Greedy:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            claims.hold(UPLOADED, expires_in=None)
            return wait("end")

    upload()
    work()
    upload()
    work()
    assert [run.status for run in WorkflowRun.objects.filter(name="greedy").order_by("pk")] == [
        "suspended",
        "cancelled",
    ]


def test_a_retry_of_a_run_that_has_begun_is_not_judged_again(clock, work):
    @event_workflow(UPLOADED, name="stumbling")
    class Stumbling:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def first(self):
            self.context.tries += 1
            if self.context.tries == 1:
                raise ZeroDivisionError
            return complete()

    upload()
    work()
    claims.hold(UPLOADED, owner=begin())
    clock.tick(10 * SECOND)
    work()
    assert WorkflowRun.objects.get(name="stumbling").status == "completed"


def test_runs_that_are_started_by_hand_know_no_claims(work):
    claims.hold(UPLOADED, owner=begin())
    run = does(lambda self: leave("done"))
    work()
    assert (status(run), effects()) == ("completed", ["done"])


def test_waits_are_not_kept_from_their_event(work):
    run = does(lambda self: wait_for_event(UPLOADED, match={}, then=self.rest))
    work()
    claims.hold(UPLOADED, owner=begin())
    upload()
    work()
    run.refresh_from_db()
    assert run.current_step == "rest"


# -- matching ----------------------------------------------------------------------------------------------------------


def test_matches_of_many_shapes(work):
    ann, bob = (Guest.objects.create(name=name) for name in ("Ann", "O'Brien"))
    mine, other = Reservation.objects.create(guest=bob), Reservation.objects.create(guest=ann)
    for match in (
        {"reservation": mine},
        {"reservation": mine.pk},
        {"reservation_id": str(mine.pk)},
        {"reservation__guest__name": "O'Brien"},
        {"reservation__guest": bob.pk, "kind": "visa"},
        {"kind__exact": "visa", "reservation_id": mine.pk},
        {"kind__in": ["visa", "permit"], "reservation_id": mine.pk},
        {"reservation_id__in": [mine.pk]},
        {"reservation__guest__name__startswith": "O'"},
        {"reservation_id__lte": mine.pk},
    ):
        EventClaim.objects.all().delete()
        WorkflowRun.objects.all().delete()
        claims.hold(UPLOADED, match, owner=begin())
        upload("visa", mine)
        upload("visa", other)
        assert started(work) == ["cancelled", "completed"], match


def test_amounts(work):
    listen("suite_opened", "opened")
    claims.hold("suite_opened", {"stars__gte": 7}, owner=begin())
    for number, stars in enumerate((6, 7, 8, 5)):
        Suite.objects.create(number=str(number), stars=stars)
    assert started(work, "opened") == ["completed", "cancelled", "cancelled", "completed"]


def test_two_texts_of_one_match_are_one_claim(work):
    one, two = begin(), begin()
    stay = Reservation.objects.create()
    same = [
        {"reservation_id": stay.pk, "kind": "visa"},
        {"kind": "visa", "reservation_id": str(stay.pk)},
        {"kind__exact": "visa", "reservation_id": stay},
    ]
    claims.hold(UPLOADED, same[0], owner=one)
    for match in same:
        with pytest.raises(ClaimedError):
            claims.hold(UPLOADED, match, owner=two)
        assert claims.holder(UPLOADED, match).owner == one
    for other in ({"kind": "visa"}, {"reservation_id": stay.pk}, {}, None, {"kind__in": ["visa"]}):
        claims.hold(UPLOADED, other, owner=two, bump=False)
    assert EventClaim.objects.count() == 5  # an empty match and none are the same
    assert claims.release(UPLOADED, same[2], owner=one)


def test_residual_values_tell_claims_apart(work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, {"kind__in": ["a", "b"]}, owner=one)
    claims.hold(UPLOADED, {"kind__in": ["a", "c"]}, owner=two)
    with pytest.raises(ClaimedError):
        claims.hold(UPLOADED, {"kind__in": ("a", "b")}, owner=two)
    with pytest.raises(ClaimedError):
        claims.hold(UPLOADED, {"kind__in": {"b", "a"}}, owner=two)


def test_an_event_of_a_deletion(declare, work):
    declare(Document, EventDefinition(UPLOADED, trigger=EventTrigger.DELETE))
    claims.hold(UPLOADED, {"kind": "visa"}, owner=begin())
    claims.hold(UPLOADED, {"kind__in": ["permit"]}, owner=begin())
    for kind in ("visa", "permit", "passport"):
        upload(kind).delete()
    assert started(work) == ["cancelled", "cancelled", "completed"]


def test_a_claim_on_one_templated_name(declare, work):
    listen("done:*", "done")
    declare(Chore, EventDefinition("done:{{ instance.pk }}", lambda chore: chore.done))
    one, two = Chore.objects.create(), Chore.objects.create()
    claims.hold(f"done:{two.pk}", owner=begin())
    claims.hold(f"done:{one.pk}", {"done": False}, owner=begin())
    for chore in (one, two):
        chore.done = True
        chore.save()
    assert started(work, "done") == ["completed", "cancelled"]


def test_a_claim_on_an_event_that_nobody_declares_is_held(work):
    claims.hold("nothing_of_ours", {"anything": 1}, owner=begin())
    assert claims.holder("nothing_of_ours", {"anything": 1}) is not None


def test_shapes_are_kept_once(work):
    run = begin()
    for number in range(5):
        claims.hold(UPLOADED, {"reservation_id": number}, owner=run)
    assert RoutingShape.objects.filter(used_by="claims").count() == 1


# -- how long ----------------------------------------------------------------------------------------------------------


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
    # Both have occurred before any run begins: the first was counted, the second came too late.
    assert started(work) == ["cancelled", "completed"]


def test_a_claim_that_has_had_its_events_can_be_taken(work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, owner=one, expires_after_events=1)
    upload()
    taken = claims.hold(UPLOADED, owner=two, expires_after_events=1)
    assert (taken.owner, taken.events_left, taken.counted) == (two, 1, [])


def test_an_event_is_counted_once_though_it_is_told_twice(work):
    claims.hold(UPLOADED, owner=begin(), expires_after_events=3)
    upload()
    event = Event.objects.get(event_name=UPLOADED)
    for _ in range(3):
        count([event], RoutingShape.of([event]))
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
    """Neither offsets nor creations are events that a claim covers."""
    on_event("checkin_due", offset=-HOUR)(lambda event: None)
    claims.hold("checkin_due", owner=begin(), expires_in=None, expires_after_events=1)
    Reservation.objects.create(status="confirmed", checkin_at=clock() + 2 * HOUR)
    clock.tick(HOUR)
    work()
    assert EventClaim.objects.get().events_left == 1
    clock.tick(HOUR)
    work()
    assert EventClaim.objects.get().events_left == 0


# -- priority ----------------------------------------------------------------------------------------------------------


def test_a_higher_priority_takes_it_over(work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, owner=one, priority=5)
    for options in ({}, {"priority": 4}, {"priority": 5}):
        with pytest.raises(ClaimedError):
            claims.hold(UPLOADED, owner=two, **options)
    taken = claims.hold(UPLOADED, owner=two, priority=6)
    assert (taken.owner, taken.priority, EventClaim.objects.count()) == (two, 6, 1)
    assert claims.release(UPLOADED, owner=one) is False
    assert claims.holder(UPLOADED).owner == two
    with pytest.raises(ClaimedError):
        claims.hold(UPLOADED, owner=one, priority=5)


@pytest.mark.parametrize("priority", [4, 5, 6])
def test_bump_takes_it_over_whatever_the_priority(work, priority):
    one, two = begin(), begin()
    claims.hold(UPLOADED, owner=one, priority=5)
    taken = claims.hold(UPLOADED, owner=two, priority=priority, bump=True)
    assert (taken.owner, taken.priority, EventClaim.objects.count()) == (two, priority, 1)
    assert claims.release(UPLOADED, owner=one) is False


def test_a_claim_that_was_bumped_is_not_released_with_its_old_run(work):
    one, two = begin(), begin()
    work()
    claims.hold(UPLOADED, owner=one)
    claims.hold(UPLOADED, owner=two, bump=True)
    engine.cancel(one)
    assert claims.holder(UPLOADED).owner == two


def holding(match, **options) -> WorkflowRun:
    """Start a run that holds ``match``."""
    run = begin()
    claims.hold(UPLOADED, match, owner=run, **options)
    return run


def claimed_by(work, run) -> bool:
    """Say whether the listener's run of the next document is skipped because of ``run``."""
    WorkflowRun.objects.filter(name="listener").delete()
    upload("visa")
    work()
    (skipped,) = WorkflowRun.objects.filter(name="listener")
    return f"holder #{run.pk}" in skipped.error


def test_of_several_claims_the_highest_priority_counts_and_then_the_eldest(clock, work):
    low = holding({"kind": "visa"})
    assert claimed_by(work, low)
    clock.tick(SECOND)
    high = holding({}, priority=2)
    assert claimed_by(work, high)
    clock.tick(SECOND)
    equal = holding({"kind__in": ["visa"]}, priority=2)
    assert claimed_by(work, high)
    claims.release(UPLOADED, {}, owner=high)
    assert claimed_by(work, equal)
    claims.release(UPLOADED, {"kind__in": ["visa"]}, owner=equal)
    assert claimed_by(work, low)


def test_a_claim_that_has_ended_does_not_hide_another(clock, work):
    short = holding({}, priority=9, expires_in=SECOND)
    other = holding({"kind": "visa"})
    assert claimed_by(work, short)
    clock.tick(SECOND)
    assert claimed_by(work, other)


def test_negative_priorities(work):
    low = holding({"kind": "visa"}, priority=-1)
    assert claimed_by(work, low)
    normal = holding({"kind": "visa"}, bump=True)
    assert claimed_by(work, normal)


# -- the end of it -----------------------------------------------------------------------------------------------------


def test_release(work):
    one, two = begin(), begin()
    claims.hold(UPLOADED, {"kind": "visa"}, owner=one)
    assert claims.release(UPLOADED, {"kind": "visa"}, owner=two) is False
    assert claims.release(UPLOADED, owner=one) is False  # another match
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
        rows.update(status="completed")  # its process died before it could let go
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
