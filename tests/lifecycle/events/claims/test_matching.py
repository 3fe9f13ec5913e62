"""Which events a claim covers, and which of several matching claims applies."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation import claims
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import EventClaim, RoutingShape
from django_ai.automation.exceptions import ClaimedError
from django_ai.automation.workflows.core import engine
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Chore, Document, Guest, Reservation, Suite
from tests.support.claims import UPLOADED, begin, listen, started, upload

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


# -- matching ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    assert EventClaim.objects.count() == 5  # an empty match equals no match
    assert claims.release(UPLOADED, same[2], owner=one)


def test_residual_values_distinguish_claims(work):
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
    """Start a run that holds a claim on ``match``."""
    run = begin()
    claims.hold(UPLOADED, match, owner=run, **options)
    return run


def claimed_by(work, run) -> bool:
    """Return whether the listener's run for the next document is skipped because of a claim of ``run``."""
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
