"""``wait_all``: each branch receives one thing, once, and the last of them wakes the run."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from django_ai.automation.exceptions import NotResumableError
from django_ai.automation.queues.lease import revoke
from django_ai.automation.queues.operations.reencrypt import reencrypt
from django_ai.automation.queues.wakeable import at_text
from django_ai.automation.workflows import run_session
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_wake,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_for_event,
)
from django_ai.automation.workflows.models import Signal, StepExecution, Wait, WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.choosing_runs import Fields, chooser, heard
from tests.support.rows import effects, history, leave, status, the_run
from tests.support.waiting_runs import begin
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
ONCE = Retry(max_attempts=1)


def three(self):
    return wait_all(papers=wait_for_event("document_uploaded", match={}), bell=wait("bell"), later=sleep(HOUR))


COMES = {
    "papers": lambda clock: Document.objects.create(reservation=Reservation.objects.create(), kind="visa"),
    "bell": lambda clock: engine.signal("bell", {"text": "ding"}),
    "later": lambda clock: clock.tick(HOUR),
}
ORDERS = [("papers", "bell", "later"), ("later", "bell", "papers"), ("bell", "later", "papers")]
REASONS = {"papers": "event", "bell": "signal", "later": "timer"}


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_the_last_branch_wakes_the_run_whatever_the_order(order, clock, work):
    chooser(three)
    found = begin(work, "chooser")
    for number, name in enumerate(order):
        assert (status(found), found.waits.count()) == ("suspended", 3 - number)
        COMES[name](clock)
        work()
    expected = " ".join(f"{name}={REASONS[name]}" for name in order)
    assert (status(found), effects()) == ("completed", [f"first: all {expected}"])
    assert (found.branches, Wait.objects.count()) == (None, 0)
    assert (found.data["kind"], found.data["text"]) == ("visa", "ding")


@pytest.mark.parametrize("before", [("papers",), ("bell",), ("papers", "bell")], ids="-".join)
def test_what_came_before_the_wait_counts(before, clock, work):
    chooser(three)
    found = engine.start("chooser")
    for name in before:
        COMES[name](clock)
    work()
    assert (status(found), found.waits.count()) == ("suspended", 3 - len(before))
    for name in COMES:
        if name not in before:
            COMES[name](clock)
            work()
    assert (status(found), len(effects())) == ("completed", 1)


def test_each_branch_has_its_own_payload_and_the_step_its_reason(work):
    seen = []

    def after(self):
        wake = get_wake()
        seen.append(
            (
                wake.reason,
                wake.branch,
                dict(wake.payload),
                {name: dict(each.payload) for name, each in wake.branches.items()},
            )
        )
        return complete()

    flow(lambda self: wait_all(a=wait("a"), b=wait("b"), then=self.after), after=after)
    found = run(work)
    engine.signal("b", {"n": 1, "text": "of b", "x": 0})
    engine.signal("a", {"n": 2})
    work()
    assert seen == [("all", "", {}, {"b": {"n": 1, "text": "of b", "x": 0}, "a": {"n": 2}})]
    found.refresh_from_db()
    assert (found.data["n"], found.data["text"]) == (2, "of b")


def test_one_signal_ends_one_branch(work):
    chooser(lambda self: wait_all(one=wait("approval"), two=wait("approval"), then="then"))
    found = begin(work, "chooser")
    engine.signal("approval", {"n": 1})
    work()
    assert (status(found), [each.branch for each in found.waits.all()]) == ("suspended", ["two"])
    engine.signal("approval", {"n": 2})
    work()
    assert (status(found), effects(), found.data["n"]) == ("completed", ["then: all one=signal two=signal"], 2)


@pytest.mark.parametrize("mine", [False, True], ids=["to all", "to one run"])
def test_signals_that_wait_in_a_row_each_end_a_branch(mine, work):
    chooser(lambda self: wait_all(one=wait("approval"), two=wait("approval"), three=wait("more"), then="then"))
    found = engine.start("chooser")
    for _ in range(3):
        engine.signal("approval", run=found if mine else None)
    work()
    assert (status(found), found.waits.count()) == ("suspended", 1)
    engine.signal("more", run=found if mine else None)
    work()
    assert effects() == ["then: all one=signal two=signal three=signal"]
    if mine:
        assert Signal.objects.filter(run=found, consumed_at=None).count() == 1


def test_one_event_ends_one_branch(work):
    def any_paper(self):
        return wait_for_event("document_uploaded", match={})

    chooser(lambda self: wait_all(one=any_paper(self), two=any_paper(self), then="then"))
    found = begin(work, "chooser")
    COMES["papers"](None)
    work()
    assert (status(found), found.waits.count()) == ("suspended", 1)
    COMES["papers"](None)
    work()
    assert effects() == ["then: all one=event two=event"]


def test_what_a_branch_has_received_is_not_received_again(work):
    """Neither by another branch, nor by a later wait: the history records each."""

    def first(self):
        if get_wake().reason == "all":
            leave("all")
            return goto(self.again)
        return wait_all(a=wait("a"), b=wait("b"))

    flow(first, again=lambda self: wait("a", then=self.end), end=lambda self: complete())
    found = run(work)
    for name in "ab":
        engine.signal(name)
    work()
    assert (status(found), effects()) == ("suspended", ["all"])
    signals = dict(Signal.objects.values_list("name", "pk"))
    assert history(found)[:3] == [("first", 1, "wait_all"), ("a", 0, "arrived"), ("b", 0, "arrived")]
    consumed = found.steps.filter(outcome=StepExecution.ARRIVED).values_list("wake_reason", "wake_ref")
    assert list(consumed) == [("signal", signals["a"]), ("signal", signals["b"])]
    engine.signal("a")
    work()
    assert status(found) == "completed"


def test_without_branches_the_run_continues_at_once(work):
    chooser(lambda self: wait_all({}, then="then"))
    found = begin(work, "chooser")
    assert (found.status, effects(), Wait.objects.count()) == ("completed", ["then: all"], 0)
    chooser(lambda self: wait_all())
    found = begin(work, "chooser")
    assert (found.status, effects()[1:]) == ("completed", ["first: all"])


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
@pytest.mark.parametrize("on_timeout", [None, "other"])
def test_the_timeout_of_the_whole_hands_over_what_has_come(on_timeout, clock, work):
    chooser(
        lambda self: wait_all(a=wait("a"), b=wait("b"), c=wait("c"), then="then", timeout=HOUR, on_timeout=on_timeout)
    )
    found = begin(work, "chooser")
    engine.signal("b", {"n": 3})
    work()
    found.refresh_from_db()
    assert found.wake_at == clock() + HOUR
    clock.tick(HOUR)
    work()
    assert (status(found), effects()) == ("completed", [f"{on_timeout or 'first'}: timeout b=signal"])
    assert (found.data["n"], Wait.objects.count(), found.branches) == (3, 0, None)
    engine.signal("a")
    work()
    assert len(effects()) == 1


def test_what_came_before_the_timeout_fires_wins_even_late(clock, work):
    chooser(lambda self: wait_all(a=wait("a"), b=wait("b"), then="then", timeout=HOUR, on_timeout="other"))
    begin(work, "chooser")
    clock.tick(2 * HOUR)
    for name in "ab":
        engine.signal(name)
    work()
    assert effects() == ["then: all a=signal b=signal"]


@pytest.mark.exact_times
def test_a_branch_whose_own_timeout_passes_is_over(clock, work):
    chooser(lambda self: wait_all(a=wait("a", HOUR), b=wait("b", 2 * HOUR), c=wait("c"), then="then"))
    found = begin(work, "chooser")
    assert found.wake_at == clock() + HOUR
    clock.tick(HOUR)
    work()
    found.refresh_from_db()
    assert (found.status, found.wake_at, found.waits.count()) == ("suspended", clock() + HOUR, 2)
    engine.signal("a")  # too late
    engine.signal("b")
    work()
    engine.signal("c")
    work()
    assert effects() == ["then: all a=timeout b=signal c=signal"]


@pytest.mark.exact_times
def test_several_timers_are_over_at_once_after_an_outage(clock, work):
    chooser(lambda self: wait_all(a=sleep(HOUR), b=sleep(2 * HOUR), c=wait("c", 3 * HOUR), then="then"))
    begin(work, "chooser")
    clock.tick(DAY)
    work()
    assert effects() == ["then: all a=timer b=timer c=timeout"]


# -- attempts ----------------------------------------------------------------------------------------------------------


def test_each_attempt_sees_the_same_branches_and_merges_once(clock, work):
    tries = []

    def after(self):
        tries.append((heard(), self.context.n))
        self.context.n += 1
        if len(tries) < 3:
            raise RuntimeError
        return complete()

    flow(lambda self: wait_all(a=wait("a"), b=wait("b"), then=self.after), after=after)
    found = run(work)
    engine.signal("b", {"n": 5})
    engine.signal("a")
    work()
    for _ in range(2):
        clock.tick(HOUR)
        work()
    assert tries == [("all b=signal a=signal", number) for number in (5, 6, 7)]
    assert status(found) == "completed"


def test_the_payload_outlives_its_signal(work):
    """The last branch may come long after ``RETENTION_SIGNALS``."""
    chooser(lambda self: wait_all(a=wait("a"), b=wait("b"), then="then"))
    found = begin(work, "chooser")
    engine.signal("a", {"n": 4})
    work()
    Signal.objects.all().delete()
    engine.signal("b")
    work()
    assert (status(found), found.data["n"]) == ("completed", 4)


def test_a_payload_that_does_not_fit_parks_the_run_and_names_its_signal(work):
    chooser(lambda self: wait_all(a=wait("a"), b=wait("b"), then="then"))
    found = begin(work, "chooser")
    engine.signal("a", {"n": "many"})
    engine.signal("b")
    work()
    assert status(found) == "parked"
    assert "The payload of 'a'" in found.error
    branches = [{**each, "payload": {}} for each in found.branches]
    revoke(WorkflowRun.objects.filter(pk=found.pk), branches=branches)
    found.resume()
    work()
    assert (status(found), effects()) == ("completed", ["then: all a=signal b=signal"])


def test_payloads_are_encrypted_while_the_run_waits(settings, work):
    old = {**settings.AUTOMATION, "CONTEXT_CODEC": "django_ai.automation.state.fernet.FernetCodec"}
    settings.AUTOMATION = old
    chooser(lambda self: wait_all(a=wait("a"), b=wait("b"), then="then"))
    found = begin(work, "chooser")
    engine.signal("a", {"text": "secret"})
    work()
    with connection.cursor() as cursor:
        cursor.execute("SELECT branches FROM automation_workflows_workflowrun")
        (stored,) = cursor.fetchone()
    assert "secret" not in str(stored)
    assert "$sealed" in str(stored)
    assert ("automation_workflows.WorkflowRun", "branches", 1, 0) in list(reencrypt(10))
    settings.SECRET_KEY = "another"
    engine.signal("b")
    work()
    found.refresh_from_db()
    assert found.status == "parked"
    assert "DecryptionError" in found.error
    settings.SECRET_KEY_FALLBACKS = ["tests"]
    assert found.wake_at is not None


# -- where the worker dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [(), ("papers",), ("papers", "bell")], ids=str)
def test_a_worker_that_dies_after_the_registration_only_delays_the_look(before, clock, work, monkeypatch):
    chooser(three)
    found = engine.start("chooser")
    for name in before:
        COMES[name](clock)
    with monkeypatch.context() as patch:
        patch.setattr(run_session, "settle", lambda *arguments: None)
        work()
    clock.tick(timedelta(minutes=1))
    work()
    assert (status(found), found.waits.count()) == ("suspended", 3 - len(before))
    for name in COMES:
        if name not in before:
            COMES[name](clock)
            work()
    assert len(effects()) == 1
    assert status(found) == "completed"


# -- children ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def children(work):
    """A parent of three children, each of which completes when it is told so, and a way to tell them."""

    def child(self):
        return wait(f"go on {self.context.n}", then=self.end)

    def end(self):
        if self.context.text == "fail":
            return fail(f"number {self.context.n}")
        leave(f"child {self.context.n}")
        return complete(n=self.context.n * 10)

    flow(child, "child", version=2, end=end)

    def first(self):
        return wait_all({f"number {n}": run_subflow("child", n=n) for n in (1, 2, 3)}, then=self.after)

    def after(self):
        ends = get_wake().branches
        leave(" ".join(f"{ends[name].payload['status']} {ends[name].payload['data']['n']}" for name in sorted(ends)))
        failed = [name for name, each in ends.items() if each.payload["status"] != "completed"]
        return fail(f"{failed[0]} failed") if failed else complete(n=7)

    flow(first, "parent", after=after, retry=ONCE)
    return run(work, "parent")


def test_a_parent_waits_for_all_its_children(children, work):
    for n in (2, 3, 1):
        assert status(children) == "suspended"
        engine.signal(f"go on {n}")
        work()
    assert (status(children), children.data["n"]) == ("completed", 7)
    assert effects() == ["child 2", "child 3", "child 1", "completed 10 completed 20 completed 30"]
    assert not Signal.objects.filter(run=children, consumed_at=None).exists()


def test_a_parent_of_many_children_completes(work):
    flow(lambda self: complete(n=self.context.n + 1), "child", version=2)

    def first(self):
        if get_wake().reason == "all":
            return complete(n=sum(each.payload["data"]["n"] for each in get_wake().branches.values()))
        return wait_all({str(n): run_subflow("child", n=n) for n in range(40)})

    flow(first, "parent")
    parent = run(work, "parent")
    assert (parent.status, parent.data["n"]) == ("completed", sum(range(1, 41)))


def test_a_timeout_cancels_the_children_that_are_left(clock, work):
    flow(lambda self: wait(f"go on {self.context.n}"), "child", version=2)

    def first(self):
        children = {str(n): run_subflow("child", n=n) for n in (1, 2)}
        return wait_all(children, timeout=HOUR, on_timeout=self.late)

    flow(first, "parent", late=lambda self: complete(text=",".join(get_wake().branches)))
    parent = run(work, "parent")
    engine.cancel(the_run(name="child", data__n=1))
    work()
    clock.tick(HOUR)
    work()
    assert (status(parent), parent.data["text"]) == ("completed", "1")
    assert set(WorkflowRun.objects.filter(name="child").values_list("status", flat=True)) == {"cancelled"}


def test_a_repaired_child_is_heard_of_when_its_parent_is_resumed(children, work):
    engine.signal("go on 2", {"text": "fail"})
    for n in (1, 3):
        engine.signal(f"go on {n}")
    work()
    assert (status(children), children.error) == ("failed", "number 2 failed")
    child = the_run(name="child", status="failed")
    WorkflowRun.objects.filter(pk=child.pk).update(data={**child.data, "text": ""})
    child.resume(step="end")
    work()
    with pytest.raises(NotResumableError, match="has not received the final end of its child"):
        children.resume(step="first")
    children.resume()
    work()
    assert status(children) == "completed"
    assert effects()[-1] == "completed 10 completed 20 completed 30"
    assert not Signal.objects.filter(run=children, consumed_at=None).exists()


def test_a_child_that_is_under_way_again_is_waited_for(children, clock, work):
    engine.signal("go on 2", {"text": "fail"})
    for n in (1, 3):
        engine.signal(f"go on {n}")
    work()
    child = the_run(name="child", status="failed")
    WorkflowRun.objects.filter(pk=child.pk).update(data={**child.data, "text": ""})
    child.resume(step="first")
    children.resume()
    work()
    assert (status(children), children.wake_reason) == ("suspended", "all")
    assert f"its child {child} (number 2)" in children.waits_for(timezone.now())
    engine.signal("go on 2")
    work()
    assert status(children) == "completed"
    assert effects()[-1] == "completed 10 completed 20 completed 30"
    assert WorkflowRun.objects.filter(name="child").count() == 3


# -- events of the run's own entity ------------------------------------------------------------------------------------


def hosting() -> None:
    @event_workflow("reservation_confirmed", name="hosting")
    class Hosting:
        Context = Fields

        @step(start=True)
        def first(self):
            return wait_all(docs=wait_for_event("guest_docs_uploaded"), bell=wait("bell"), then=self.end)

        @step()
        def end(self):
            leave(f"{heard()} {self.context.docs_ready}")
            return complete()


def test_the_event_of_its_own_entity_counts_and_no_others(work):
    hosting()
    stay, other = (Reservation.objects.create(status="confirmed") for _ in range(2))
    work()
    for entity in (other, stay):
        entity.docs = True
        entity.save()
        work()
    engine.signal("bell")
    work()
    assert effects() == ["all docs=event bell=signal True"] * 2


def test_the_deletion_of_its_entity_cancels_a_run_that_cannot_receive_all(work):
    hosting()
    stay = Reservation.objects.create(status="confirmed")
    work()
    stay.delete()
    work()
    assert the_run(name="hosting").status == "cancelled"


# -- what operators see ------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_the_branches_that_are_left_are_named(clock, work):
    flow(lambda self: wait_all(a=wait("a"), b=wait("b"), c=sleep(HOUR), timeout=2 * HOUR))
    found = run(work)
    engine.signal("a")
    work()
    found.refresh_from_db()
    one, two = (at_text(clock() + number * HOUR) for number in (1, 2))
    assert found.waits_for(clock()) == f"the signal 'b' (b) and its timer, {one} (c), until {two}"
