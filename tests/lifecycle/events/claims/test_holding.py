"""Claims: one run reserves an event for itself, for a time, for a number of events, or until the run ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import claims
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import EventClaim
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    goto,
    step,
    wait,
    wait_for_event,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Guest, Reservation
from tests.support.claims import UPLOADED, begin, does, listen, started, upload
from tests.support.rows import effects, leave, status

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


# -- holding -----------------------------------------------------------------------------------------------------------


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


def test_another_run_gets_an_error_that_names_the_holder(clock, work):
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


# -- effect on other subscribers ---------------------------------------------------------------------------------------


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


def test_claims_are_evaluated_when_the_execution_starts(clock, work):
    holder = begin()
    upload()  # before the claim; its run has not started yet
    claims.hold(UPLOADED, owner=holder)
    upload()
    clock.tick(HOUR)  # the claim expires before the runs start
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


def test_claims_are_evaluated_when_a_planned_run_begins(clock, work):
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
    """A claim belongs to a run, not to its workflow: another run of the same workflow skips the event."""

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


def test_claims_are_not_evaluated_again_for_a_retry(clock, work):
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
