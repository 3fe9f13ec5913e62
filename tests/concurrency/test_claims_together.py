"""Claims from many threads at once: exactly one of them succeeds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from django_ai.automation import claims, engine
from django_ai.automation.events.claim_lookup import count_events
from django_ai.automation.events.models import Event, EventClaim, RoutingShape
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.race import together

pytestmark = pytest.mark.django_db(transaction=True)

UPLOADED = "document_uploaded"
MATCH = {"kind": "visa"}


def runs(number: int) -> list[WorkflowRun]:
    return [engine.start("story:listen") for _ in range(number)]


def holding(run: WorkflowRun, **options: object) -> Callable[[], object]:
    return lambda: claims.hold(UPLOADED, MATCH, owner=run, **options)  # type: ignore[arg-type]


def one_winner(raised: list[BaseException], among: list[WorkflowRun]) -> EventClaim:
    assert {type(error) for error in raised} == {ClaimedError}
    assert len(raised) == len(among) - 1
    (claim,) = EventClaim.objects.all()
    assert claim.owner in among
    return claim


def test_of_many_who_hold_one_wins():
    mine = runs(8)
    one_winner(together(*(holding(run) for run in mine)), mine)


def test_of_many_who_hold_in_transactions_one_wins():
    mine = runs(8)

    def hold(run: WorkflowRun) -> Callable[[], object]:
        def work() -> None:
            with transaction.atomic():
                holding(run)()

        return work

    one_winner(together(*(hold(run) for run in mine)), mine)


@pytest.mark.parametrize("ended", ["expired", "owner ended", "used up"])
def test_of_many_who_take_over_what_has_ended_one_wins(ended):
    (old,), mine = runs(1), runs(8)
    claim = claims.hold(UPLOADED, MATCH, owner=old, expires_in=None)
    if ended == "expired":
        EventClaim.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    elif ended == "used up":
        EventClaim.objects.update(events_left=0)
    else:
        WorkflowRun.objects.filter(pk=old.pk).update(status="completed", wake_at=None)
    taken = one_winner(together(*(holding(run) for run in mine)), mine)
    assert taken.pk == claim.pk
    assert taken.seq == claim.seq + 1


def test_of_many_who_bump_one_holds_it_in_the_end():
    (old,), mine = runs(1), runs(6)
    claims.hold(UPLOADED, MATCH, owner=old, priority=9)
    assert together(*(holding(run, bump=True) for run in mine)) == []
    (claim,) = EventClaim.objects.all()
    assert (claim.owner in mine, claim.seq) == (True, 6)


def test_of_many_who_hold_with_a_priority_the_highest_wins():
    (old,), mine = runs(1), runs(6)
    claims.hold(UPLOADED, MATCH, owner=old)
    raised = together(*(holding(run, priority=number) for number, run in enumerate(mine, 1)))
    assert {type(error) for error in raised} <= {ClaimedError}
    (claim,) = EventClaim.objects.all()
    assert (claim.owner, claim.priority) == (mine[-1], 6)


def test_one_run_that_holds_many_times_has_one_claim():
    (run,) = runs(1)
    assert together(*(holding(run) for _ in range(6))) == []
    assert EventClaim.objects.get().owner == run


def test_hold_and_release_at_once():
    one, two = runs(2)
    claims.hold(UPLOADED, MATCH, owner=one)
    released: list[bool] = []
    raised = together(lambda: released.append(claims.release(UPLOADED, MATCH, owner=one)), holding(two))
    assert released == [True]
    assert {type(error) for error in raised} <= {ClaimedError}
    assert claims.holder(UPLOADED, MATCH) is None if raised else claims.holder(UPLOADED, MATCH).owner == two


def test_many_release_and_one_did():
    (run,) = runs(1)
    claims.hold(UPLOADED, MATCH, owner=run)
    released: list[bool] = []
    assert together(*(lambda: released.append(claims.release(UPLOADED, MATCH, owner=run)) for _ in range(6))) == []
    assert sorted(released) == [False] * 5 + [True]


def events(number: int) -> list[Event]:
    stay = Reservation.objects.create()
    for _ in range(number):
        Document.objects.create(reservation=stay, kind="visa")
    return list(Event.objects.filter(event_name=UPLOADED).order_by("pk"))


def test_many_who_count_one_event_count_it_once():
    found = events(2)
    claims.hold(UPLOADED, MATCH, owner=runs(1)[0], expires_after_events=5)
    shapes = RoutingShape.of(found)
    assert together(*(lambda: count_events(found, shapes) for _ in range(6))) == []
    claim = EventClaim.objects.get()
    assert (claim.events_left, sorted(claim.counted)) == (3, [event.pk for event in found])


def test_two_who_count_the_last_event():
    first, second = events(2)
    claims.hold(UPLOADED, MATCH, owner=runs(1)[0], expires_after_events=1)
    shapes = RoutingShape.of([first, second])
    assert together(lambda: count_events([first], shapes), lambda: count_events([second], shapes)) == []
    claim = EventClaim.objects.get()
    assert claim.events_left == 0
    assert claim.counted in ([first.pk], [second.pk])
    assert claims.holder(UPLOADED, MATCH) is None


def test_events_that_occur_at_once_are_all_counted():
    claims.hold(UPLOADED, MATCH, owner=runs(1)[0], expires_after_events=50)
    stay = Reservation.objects.create()

    def upload() -> None:
        for _ in range(3):
            Document.objects.create(reservation=stay, kind="visa")

    assert together(upload, upload, upload, upload) == []
    drain()
    claim = EventClaim.objects.get()
    assert (claim.events_left, len(claim.counted)) == (38, 12)


def test_counting_and_taking_over_at_once():
    """Counting locks the row, and events counted for the old holder do not reduce the new holder's budget."""
    one, two = runs(2)
    (event,) = events(1)
    claims.hold(UPLOADED, MATCH, owner=one, expires_after_events=9)
    shapes = RoutingShape.of([event])
    raised = together(
        lambda: count_events([event], shapes), holding(two, priority=1, bump=True, expires_after_events=5)
    )
    assert raised == []
    claim = EventClaim.objects.get()
    assert claim.owner == two
    # An event counted after the change of holder reduces the new budget; one counted before it does not.
    assert (claim.events_left, claim.counted) in [(5, []), (4, [event.pk])]


def test_an_end_and_a_claim_at_once():
    """A run that ends during ``claims.hold`` holds no claim: the claim is refused, or ends with the run."""
    (run,) = runs(1)
    raised = together(lambda: engine.cancel(WorkflowRun.objects.get(pk=run.pk)), holding(run))
    assert all(isinstance(error, DefinitionError) and "has ended" in str(error) for error in raised)
    assert WorkflowRun.objects.get(pk=run.pk).status == "cancelled"
    assert claims.holder(UPLOADED, MATCH) is None
