"""``engine.skip_wait``: a run continues although what it waits for has not come."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils.translation import override
from pydantic import BaseModel

from django_ai.automation.exceptions import DefinitionError, InvalidContextError, StateError
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    get_wake,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
)
from django_ai.automation.workflows.models import Signal, Wait
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, history, leave, status, the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def seen(title):
    """Return a step that records why it was entered."""

    def method(self):
        wake = get_wake()
        leave(f"{title} {wake.reason} {dict(sorted(wake.payload.items()))} {wake.branch}".strip())
        return complete()

    return method


def then(outcome, **more):
    """Declare a workflow that returns ``outcome``, and continues at ``after``, or ``late`` after its timeout."""
    flow(lambda self: outcome(self), after=seen("after"), late=seen("late"), **more)


def test_a_wait_continues_as_after_its_timeout(work):
    then(lambda self: wait("word", timeout=HOUR, on_timeout=self.late, then=self.after))
    found = run(work)
    with override("de"):  # what is stored is English, whoever asks for it
        engine.skip_wait(found, reason="Nobody answers.")
    work()
    assert (status(found), effects()) == ("completed", ["late timeout {}"])
    record = found.steps.get(outcome="skip_wait")
    assert record.error.startswith("Skipped the signal 'word', until ")
    assert record.error.endswith(": Nobody answers.")
    assert not Wait.objects.exists()


def test_a_wait_without_a_timeout_continues_at_its_own_step(work):
    def first(self):
        if get_wake().reason == "timeout":
            return complete(text="skipped")
        return wait("word", then=self.after)

    flow(first, after=seen("after"))
    found = run(work)
    engine.skip_wait(found.pk)
    work()
    found.refresh_from_db()
    assert (found.status, found.data["text"], effects()) == ("completed", "skipped", [])


def test_a_payload_is_received_like_a_signal_and_merged(work):
    then(lambda self: wait("word", timeout=HOUR, on_timeout=self.late, then=self.after))
    found = run(work)
    engine.skip_wait(found, {"n": 7, "by": "phone"})
    work()
    assert (status(found), effects()) == ("completed", ["after signal {'by': 'phone', 'n': 7}"])
    assert found.data["n"] == 7
    signal = Signal.objects.get()
    assert found.steps.get(step="after").wake_ref == signal.pk
    assert (signal.run_id, signal.name, signal.wake_at, Signal.unfinished().count()) == (found.pk, "word", None, 0)


def test_a_wait_for_an_event_is_skipped_with_and_without_payload(work):
    for name in ("events 1", "events 2"):

        @event_workflow("reservation_confirmed", name=name)
        class Follows:
            class Context(BaseModel):
                entity_id: int
                text: str = ""

            @step(start=True)
            def first(self):
                return wait_for_event("reservation_cancelled", then=self.after)

            @step()
            def after(self):
                leave(f"{get_wake().reason} {self.context.text}".strip())
                return complete()

    Reservation.objects.create(status="confirmed")
    work()
    engine.skip_wait(the_run(name="events 2"), {"text": "by hand", "entity_id": "4711"})
    work()
    assert effects() == ["signal by hand"]
    engine.skip_wait(the_run(name="events 1"))  # at its own step, which waits again
    work()
    assert the_run(name="events 1").status == "suspended"


def test_a_sleep_is_over_now(work):
    then(lambda self: sleep(HOUR, then=self.after))
    found = run(work)
    with pytest.raises(StateError, match="a sleep brings no payload"):
        engine.skip_wait(found, {"n": 1})
    engine.skip_wait(found)
    work()
    assert (status(found), effects()) == ("completed", ["after timer {}"])
    assert history(found)[1] == ("after", 0, "skip_wait")


def test_a_child_run_is_cancelled_and_its_end_may_be_given(work):
    flow(lambda self: wait("never"), "child")
    then_ends = {"status": "completed", "data": {"n": 3}}
    for version, payload in enumerate((None, then_ends), 2):
        flow(
            lambda self: run_subflow("child", then=self.after),
            f"parent {version}",
            version=version,
            after=seen("after"),
        )
        found = run(work, f"parent {version}")
        child = found.children.get()
        engine.skip_wait(found, payload)
        work()
        assert status(child) == "cancelled"
        assert "no longer waits for it: its wait was skipped" in child.error
    assert found.status != "suspended"
    assert effects()[-1] == "after signal {'data': {'n': 3}, 'status': 'completed'}"
    assert Signal.unfinished().count() == 0


def test_a_choice_without_a_timeout_needs_the_branch_that_wins(work):
    then(lambda self: wait_any(paid=wait("paid"), later=sleep(HOUR), then=self.after))
    found = run(work)
    with pytest.raises(StateError, match=r"say which one wins, as in branch='paid'\. Open: 'paid', 'later'"):
        engine.skip_wait(found)
    with pytest.raises(StateError, match="say which gets the payload, branch='paid'"):
        engine.skip_wait(found, {"n": 1})
    with pytest.raises(StateError, match=r"no branch 'payd'\. Did you mean 'paid'"):
        engine.skip_wait(found, branch="payd")
    with pytest.raises(StateError, match="sleeps in its branch 'later'"):
        engine.skip_wait(found, {"n": 1}, branch="later")
    engine.skip_wait(found, {"n": 1}, branch="paid")
    work()
    other = run(work)
    engine.skip_wait(other, branch="later")
    work()
    assert effects() == ["after signal {'n': 1} paid", "after timer {} later"]


def test_a_whole_choice_continues_as_after_its_timeout(work):
    then(
        lambda self: wait_any(a=wait("a"), b=run_subflow("child"), timeout=HOUR, on_timeout=self.late, then=self.after)
    )
    flow(lambda self: wait("never"), "child", version=2)
    found = run(work)
    engine.skip_wait(found)
    work()
    assert effects() == ["late timeout {}"]
    assert status(found.children.get()) == "cancelled"


def test_of_wait_all_one_branch_or_the_rest_is_skipped(work):
    def after(self):
        wake = get_wake()
        leave(f"{wake.reason} " + " ".join(f"{name}={each.reason}" for name, each in wake.branches.items()))
        return complete()

    flow(lambda self: wait_all(a=wait("a"), b=wait("b"), c=wait("c"), then=self.after), after=after)
    found = run(work)
    engine.signal("a", {"n": 1})
    work()
    engine.skip_wait(found, {"n": 2}, branch="b")
    work()
    assert status(found) == "suspended"
    engine.skip_wait(found)
    work()
    assert (status(found), effects()) == ("completed", ["timeout a=signal b=signal"])
    assert found.data["n"] == 2


def test_a_payload_that_the_context_does_not_accept_changes_nothing(work):
    then(lambda self: wait("word", then=self.after))
    found = run(work)
    with pytest.raises(
        InvalidContextError, match=r"the payload does not fit the Context:\n  n: .*\(value: 'many'\)"
    ) as refused:
        engine.skip_wait(found, {"n": "many"})
    assert list(refused.value.errors) == ["n"]
    with pytest.raises(DefinitionError, match="must be a dict"):
        engine.skip_wait(found, 3)  # type: ignore[arg-type]
    assert (status(found), found.waits.count(), Signal.objects.count()) == ("suspended", 1, 0)


def test_what_cannot_be_skipped_names_the_state_and_the_fix(work):
    def failing(self):
        raise ValueError

    flow(failing, "failing", retry=Retry(max_attempts=3, base_delay=HOUR))
    flow(lambda self: complete(), "done", version=2)
    with pytest.raises(StateError, match=r"failing #\d+ is waiting and waits for attempt 2.*engine\.try_now\(\)"):
        engine.skip_wait(run(work, "failing"))
    with pytest.raises(StateError, match=r"done #\d+ is completed"):
        engine.skip_wait(run(work, "done"))
    with pytest.raises(StateError, match=r"done #\d+ is running.*due without help"):
        engine.skip_wait(engine.start("done"))


def test_a_signal_after_the_skip_is_kept_for_the_next_wait(work):
    def first(self):
        return wait("word", then=self.again)

    def again(self):
        leave(get_wake().reason)
        return wait("word", then=self.after)

    flow(first, again=again, after=seen("after"))
    found = run(work)
    engine.skip_wait(found, {})
    engine.signal("word", {"text": "late"}, run=found)
    work()
    assert (status(found), effects()) == ("completed", ["signal", "after signal {'text': 'late'}"])
