"""``wait_any``: the first branch wins, once, and the others are withdrawn with the same commit."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_ai.automation.exceptions import NotResumableError
from django_ai.automation.queues.wakeable import at_text
from django_ai.automation.workflows import run_session
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    get_wake,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import Signal, Wait, WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.choosing_runs import Fields, chooser, heard
from tests.support.marks import only_on
from tests.support.rows import effects, history, leave, status, the_run
from tests.support.waiting_runs import begin
from tests.support.workflows import flow, run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
ONCE = Retry(max_attempts=1)


def four(self):
    """Wait for an event, another, a signal, or an hour."""
    return wait_any(
        papers=wait_for_event("document_uploaded", match={}),
        confirmed=wait_for_event("reservation_confirmed", match={}),
        bell=wait("bell"),
        later=sleep(HOUR),
        then=self.then,
    )


WINS = {
    "papers": lambda clock: Document.objects.create(reservation=Reservation.objects.create()),
    "confirmed": lambda clock: Reservation.objects.create(status="confirmed"),
    "bell": lambda clock: engine.signal("bell"),
    "later": lambda clock: clock.tick(HOUR),
}
REASONS = {"papers": "event", "confirmed": "event", "bell": "signal", "later": "timer"}


@pytest.mark.parametrize("branch", WINS)
def test_each_branch_can_win_and_withdraws_the_others(branch, clock, work):
    chooser(four)
    found = begin(work, "chooser")
    assert (found.status, found.waits.count(), found.wake_at) == ("suspended", 4, clock() + HOUR)
    WINS[branch](clock)
    work()
    assert (status(found), effects()) == ("completed", [f"then: {REASONS[branch]} {branch}"])
    assert not Wait.objects.exists()
    for other in WINS.values():
        other(clock)
        work()
    assert len(effects()) == 1
    found.refresh_from_db()
    assert found.branches is None


@pytest.mark.parametrize("branch", ["papers", "confirmed", "bell"])
def test_what_came_before_the_wait_wins_at_once(branch, clock, work):
    chooser(four)
    engine.start("chooser")
    WINS[branch](clock)
    work()
    assert effects() == [f"then: {REASONS[branch]} {branch}"]


def test_of_two_that_came_before_the_earlier_wins(work):
    chooser(lambda self: wait_any(a=wait("a"), b=wait("b"), then="then"))
    engine.start("chooser")
    engine.signal("b")
    engine.signal("a")
    work()
    assert effects() == ["then: signal b"]


def test_what_comes_after_the_winner_is_kept_for_the_next_wait(clock, work):
    chooser(lambda self: wait_any(a=wait("a"), b=wait("b")) if self.context.n < 3 else complete(), again=True)
    found = begin(work, "chooser", n=0)
    engine.signal("a")
    engine.signal("b")
    work()
    assert effects() == ["first: signal a", "first: signal b"]
    assert (status(found), Wait.objects.count()) == ("suspended", 2)


def test_a_payload_is_merged_and_handed_over_as_with_a_single_wait(work):
    seen = []

    def then(self):
        seen.append((self.context.n, get_wake().payload, get_wake().branch, dict(get_wake().branches)))
        return complete()

    flow(lambda self: wait_any(a=wait("a"), b=wait("b"), then=self.after), after=then)
    run(work)
    engine.signal("b", {"n": 7, "unknown": 1})
    work()
    assert seen == [(7, {"n": 7, "unknown": 1}, "b", {})]


def test_a_branch_may_name_its_own_next_step(clock, work):
    chooser(lambda self: wait_any(a=wait("a", then=self.other), b=wait("b"), c=sleep(HOUR, then="other"), then="then"))
    for name in ("a", "b"):
        begin(work, "chooser")
        engine.signal(name)
        work()
    begin(work, "chooser")
    clock.tick(HOUR)
    work()
    assert effects() == ["other: signal a", "then: signal b", "other: timer c"]


def test_without_a_next_step_the_same_step_is_entered_again(work):
    chooser(lambda self: wait_any(a=wait("a"), b=wait("b")))
    found = begin(work, "chooser")
    engine.signal("b")
    work()
    assert (status(found), effects()) == ("completed", ["first: signal b"])


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_branch_whose_own_timeout_passes_is_over_and_wins(clock, work):
    chooser(lambda self: wait_any(a=wait("a", HOUR), b=wait("b", 2 * HOUR, "other"), then="then"))
    found = begin(work, "chooser")
    assert found.wake_at == clock() + HOUR
    clock.tick(HOUR - timedelta(microseconds=1))
    assert work() == 0
    clock.tick(timedelta(microseconds=1))
    work()
    assert (status(found), effects()) == ("completed", ["then: timeout a"])
    chooser(lambda self: wait_any(a=wait("a"), b=wait("b", HOUR, "other"), then="then"))
    begin(work, "chooser")
    clock.tick(HOUR)
    work()
    assert effects()[1:] == ["other: timeout b"]


@pytest.mark.parametrize("on_timeout", [None, "other"])
def test_the_timeout_of_the_whole_has_no_branch(on_timeout, clock, work):
    chooser(lambda self: wait_any(a=wait("a"), b=wait("b"), then="then", timeout=HOUR, on_timeout=on_timeout))
    found = begin(work, "chooser")
    clock.tick(HOUR)
    work()
    assert (status(found), effects()) == ("completed", [f"{on_timeout or 'first'}: timeout"])
    assert not Wait.objects.exists()
    engine.signal("a")
    work()
    assert len(effects()) == 1


def test_a_signal_that_was_sent_before_a_worker_fires_the_timer_wins(clock, work):
    chooser(four)
    begin(work, "chooser")
    clock.tick(2 * HOUR)
    engine.signal("bell")
    work()
    assert effects() == ["then: signal bell"]


def test_a_timer_is_fixed_before_its_step_runs(clock, work):
    """A signal that comes while the step of the timer is tried again is too late."""
    tries = []

    @workflow("retried")
    class Retried:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait_any(a=wait("a"), later=sleep(HOUR), then=self.late)

        @step()
        def late(self):
            tries.append(heard())
            if len(tries) == 1:
                raise RuntimeError
            return complete()

    found = begin(work, "retried")
    clock.tick(HOUR)
    work()
    engine.signal("a")
    clock.tick(HOUR)
    work()
    assert (status(found), tries) == ("completed", ["timer later"] * 2)


def test_a_retry_sees_the_same_branch_and_merges_once(clock, work):
    tries = []

    def after(self):
        tries.append((heard(), self.context.n))
        self.context.n += 1
        if len(tries) < 3:
            raise RuntimeError
        return complete()

    flow(lambda self: wait_any(a=wait("a"), b=wait("b"), then=self.after), after=after)
    found = run(work)
    engine.signal("b", {"n": 5})
    work()
    for _ in range(2):
        clock.tick(HOUR)
        work()
    assert tries == [("signal b", 5), ("signal b", 6), ("signal b", 7)]
    assert status(found) == "completed"


def test_a_failed_run_that_is_resumed_sees_the_same_branch(work):
    broken = [True]

    def after(self):
        leave(heard())
        if broken:
            raise RuntimeError
        return complete()

    flow(lambda self: wait_any(a=wait("a"), b=wait("b"), then=self.after), after=after, retry=ONCE)
    found = run(work)
    engine.signal("a")
    work()
    assert status(found) == "failed"
    broken.clear()
    found.resume()
    work()
    assert (status(found), effects()) == ("completed", ["signal a"])


def test_a_failed_run_that_is_resumed_at_a_step_has_no_branch(work):
    def after(self):
        leave(heard())
        raise RuntimeError

    def end(self):
        leave(f"{heard()}{get_wake().branch}")
        return complete()

    flow(lambda self: wait_any(a=wait("a"), then=self.after), after=after, end=end, retry=ONCE)
    found = run(work)
    engine.signal("a")
    work()
    engine.resume(found, "end")
    work()
    assert (status(found), effects()) == ("completed", ["first"])


# -- where the worker dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", [None, *WINS])
def test_a_worker_that_dies_after_the_registration_only_delays_the_look(branch, clock, work, monkeypatch):
    chooser(four)
    with monkeypatch.context() as patch:
        patch.setattr(run_session, "settle", lambda *arguments: None)
        found = begin(work, "chooser")
    assert found.wake_at <= clock() + HOUR / 10
    if branch:
        WINS[branch](clock)
        work()
    clock.tick(timedelta(minutes=1))
    work()
    if branch:
        assert effects() == [f"then: {REASONS[branch]} {branch}"]
    else:
        found.refresh_from_db()
        assert (found.status, effects()) == ("suspended", [])
        assert found.wake_at > clock()


@only_on("postgresql", reason="counts the statements of one database")
def test_a_wake_up_of_many_runs_takes_the_same_statements_for_each_branch(work):
    chooser(lambda self: wait_any(a=wait("a"), b=wait("b"), then="then"))
    for _ in range(20):
        engine.start("chooser")
    work()
    engine.signal("a")
    with CaptureQueriesContext(connection) as queries:
        work()
    woken = [each["sql"] for each in queries if '"branches" =' in each["sql"] and "SUSPENDED" not in each["sql"]]
    assert len([sql for sql in woken if "\"wake_reason\" = 'signal'" in sql]) == 1
    assert WorkflowRun.objects.filter(status="completed").count() == 20


# -- children ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def child():
    def first(self):
        if self.context.n:
            return complete(n=self.context.n + 1)
        return wait("go on", then=self.end)

    flow(first, "child", version=2, end=lambda self: complete(n=100))


@pytest.mark.usefixtures("child")
def test_a_child_that_ends_first_wins(work):
    def after(self):
        leave(f"{heard()} {get_wake().payload['status']} {get_wake().payload['data']['n']} {self.context.n}")
        return complete()

    flow(lambda self: wait_any(child=run_subflow("child", n=5), bell=wait("bell"), then=self.after), after=after)
    found = run(work)
    assert (status(found), effects()) == ("completed", ["signal child completed 6 0"])


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("how", ["signal", "branch timeout", "timeout"])
def test_a_child_that_loses_is_cancelled_and_not_heard_of(how, clock, work):
    def first(self):
        whole = {"timeout": HOUR, "on_timeout": self.after} if how == "timeout" else {}
        bell = wait("bell", HOUR if how == "branch timeout" else None)
        return wait_any(one=run_subflow("child"), two=run_subflow("child"), bell=bell, then=self.after, **whole)

    flow(first, after=lambda self: sleep(HOUR, then="end"), end=lambda self: complete())
    found = run(work)
    assert WorkflowRun.objects.filter(parent=found, status="suspended").count() == 2
    if how == "signal":
        engine.signal("bell")
    else:
        clock.tick(HOUR)
    work()
    children = WorkflowRun.objects.filter(parent=found)
    assert {(each.status, each.parent_channel) for each in children} == {("cancelled", "")}
    assert all("no longer waits for it" in each.error for each in children)
    assert not Signal.objects.filter(run=found).exists()
    clock.tick(2 * HOUR)
    work()
    assert status(found) == "completed"


@pytest.mark.usefixtures("child")
def test_a_cancelled_parent_takes_the_children_of_its_branches_with_it(work):
    flow(lambda self: wait_any(one=run_subflow("child"), two=run_subflow("child"), bell=wait("bell")))
    found = run(work)
    engine.cancel(found)
    assert set(WorkflowRun.objects.filter(parent=found).values_list("status", flat=True)) == {"cancelled"}


@pytest.mark.usefixtures("child")
def test_the_child_of_a_branch_is_not_started_twice_by_accident(work):
    flow(lambda self: wait_any(child=run_subflow("child", n=1), then=self.after), after=lambda self: 1 / 0, retry=ONCE)
    found = run(work)
    assert status(found) == "failed"
    with pytest.raises(NotResumableError, match=r"'first' has started child #.*--again"):
        engine.resume(found, "first")
    engine.resume(found, "first", again=True)
    work()
    assert WorkflowRun.objects.filter(parent=found).count() == 2


def test_an_unknown_child_of_a_branch_fails_the_step(work):
    flow(lambda self: wait_any(a=wait("a"), b=run_subflow("flwo")))
    found = run(work)
    assert (status(found), Wait.objects.count()) == ("failed", 0)
    assert "Did you mean 'flow'" in found.error


# -- events of the run's own entity ------------------------------------------------------------------------------------


@pytest.fixture
def hosting():
    @event_workflow("reservation_confirmed", name="hosting")
    class Hosting:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait_any(
                docs=wait_for_event("guest_docs_uploaded"), due=wait_for_event("checkout_due"), bell=wait("bell"),
                then=self.end,
            )  # fmt: skip

        @step()
        def end(self):
            leave(f"{heard()} {self.context.docs_ready}")
            return complete()


@pytest.mark.usefixtures("hosting")
def test_the_event_of_its_own_entity_wins_and_no_others(work):
    stay, other = (Reservation.objects.create(status="confirmed") for _ in range(2))
    work()
    other.docs = True
    other.save()
    work()
    assert effects() == ["event docs True"]
    assert the_run(entity_id=stay.pk).status == "suspended"


@pytest.mark.usefixtures("hosting")
def test_the_deletion_of_its_entity_leaves_the_other_branches(work):
    stay = Reservation.objects.create(status="confirmed")
    work()
    pk = stay.pk
    stay.delete()
    work()
    assert the_run(entity_id=pk).status == "suspended"
    engine.signal("bell")
    work()
    assert effects() == ["signal bell False"]


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "about to wait"])
def test_a_run_of_whose_branches_none_can_come_any_more_is_cancelled(late, work):
    @event_workflow("reservation_confirmed", name="hosting")
    class Hosting:
        Context = Fields

        @step(start=True)
        def first(self):
            if late:
                Reservation.objects.all().delete()
            return wait_any(
                docs=wait_for_event("guest_docs_uploaded"), due=wait_for_event("checkout_due"), timeout=HOUR
            )

    stay = Reservation.objects.create(status="confirmed")
    work()
    Reservation.objects.filter(pk=stay.pk).delete()
    work()
    found = the_run(name="hosting")
    assert found.status == "cancelled"
    assert "whose event it waited for, was deleted" in found.error


# -- what operators see ------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_all_branches_are_named(clock, work):
    def first(self):
        return wait_any(
            papers=wait_for_event("document_uploaded", match={"kind": "visa"}),
            bell=wait("bell", HOUR), later=sleep(2 * HOUR), child=run_subflow("child"), timeout=3 * HOUR,
        )  # fmt: skip

    flow(lambda self: wait("never"), "child", version=2)
    flow(first)
    found = run(work)
    child = the_run(parent=found)
    found.refresh_from_db()
    one, two, three = (at_text(clock() + number * HOUR) for number in (1, 2, 3))
    assert found.waits_for(clock()) == (
        f"the event 'document_uploaded' with {{'kind': 'visa'}} (papers) or the signal 'bell' (bell), until {one}"
        f" or its timer, {two} (later) or its child {child} (child), until {three}"
    )


def test_history_names_the_choice_and_what_was_consumed(work):
    chooser(lambda self: wait_any(a=wait("a"), b=wait("b"), then="then"))
    found = begin(work, "chooser")
    signal = engine.signal("a")
    work()
    assert history(found) == [("first", 1, "wait_any"), ("then", 1, "complete")]
    last = found.steps.last()
    assert (last.wake_reason, last.wake_ref) == ("signal", signal.pk)


def test_a_loop_of_choices_consumes_each_signal_once(work):
    def first(self):
        wake = get_wake()
        if wake.branch:
            leave(f"{wake.branch}{wake.payload['n']}")
        return complete() if wake.branch == "stop" else goto(self.listen)

    flow(first, listen=lambda self: wait_any(a=wait("a"), b=wait("b"), stop=wait("stop"), then=self.first))
    found = run(work)
    for number, name in enumerate("abaab"):
        engine.signal(name, {"n": number})
    engine.signal("stop", {"n": 9})
    work()
    assert (status(found), effects()) == ("completed", ["a0", "b1", "a2", "a3", "b4", "stop9"])
