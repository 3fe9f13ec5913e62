"""``engine.rewind``: a run continues at an earlier visit, with the Context that it had before it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from pydantic import BaseModel

from django_ai.automation import claims
from django_ai.automation.events.models import EventClaim
from django_ai.automation.exceptions import DefinitionError, StateError, UnknownStepError
from django_ai.automation.workflows.core import (
    Retry,
    complete,
    engine,
    event_workflow,
    fail,
    get_wake,
    goto,
    idempotency_key,
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_any,
)
from django_ai.automation.workflows.models import Signal, StepExecution, Wait, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, history, leave, status, the_run
from tests.support.workflows import flow, hook, run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
OLD, NEW = "o" * 40, "n" * 40


def three_steps():
    """Declare a workflow whose three steps count, and whose last one waits."""

    def add(target):
        def method(self):
            self.context.n += 1
            self.context.items.append(target)
            leave(f"{target} {self.context.n}")
            return goto(target)

        return method

    def third(self):
        leave(f"third {self.context.n}")
        return wait("word", then=self.fourth)

    def fourth(self):
        leave(f"fourth {get_wake().reason} {self.context.text}")
        return complete()

    flow(add("second"), second=add("third"), third=third, fourth=fourth)


def test_it_continues_with_the_context_before_the_visit(work):
    three_steps()
    found = run(work)
    assert (found.status, found.data["n"], found.visit) == ("suspended", 2, 4)
    rewound = engine.rewind(found, 2, reason="The sum was wrong.")
    assert (rewound.status, rewound.current_step, rewound.visit, rewound.data["n"]) == ("running", "second", 5, 1)
    assert rewound.data["items"] == ["second"]
    assert not Wait.objects.exists()
    work()
    assert (status(found), found.data["n"]) == ("suspended", 2)
    assert effects() == ["second 1", "third 2", "third 2", "third 2", "third 2"]
    assert [(name, outcome) for name, _, outcome in history(found)] == [
        ("first", "goto"),
        ("second", "goto"),
        ("third", "wait"),
        ("third", "rewind"),
        ("second", "goto"),
        ("third", "wait"),
    ]
    record = found.steps.get(outcome="rewind")
    assert record.error == "Rewound from visit 4 to visit 2 (second): The sum was wrong."


def test_the_first_visit_again_and_a_rewind_of_a_rewind(work):
    three_steps()
    found = run(work, n=10)
    engine.rewind(found, 1)
    work()
    assert found.steps.count() == 7
    found.refresh_from_db()
    assert found.data["n"] == 12
    engine.rewind(found, 6)  # the second step of the second time
    found.refresh_from_db()
    assert (found.current_step, found.data["n"]) == ("second", 11)


def test_a_visit_that_a_signal_has_woken_receives_it_again_and_others_are_new(work):
    three_steps()
    found = run(work)
    engine.signal("word", {"text": "hello"}, run=found)
    work()
    assert (status(found), found.data["text"]) == ("completed", "hello")
    engine.rewind(found, 4)
    work()
    assert effects()[-2:] == ["fourth signal hello"] * 2
    engine.rewind(found, 3)
    work()
    assert (status(found), found.data["text"]) == ("suspended", "")
    engine.signal("word", {"text": "again"}, run=found)
    work()
    assert effects()[-1] == "fourth signal again"


def test_a_visit_whose_signal_was_removed_is_refused(work):
    three_steps()
    found = run(work)
    engine.signal("word", run=found)
    work()
    Signal.objects.all().delete()
    with pytest.raises(StateError, match=r"was woken by the signal #\d+ then, which was removed"):
        engine.rewind(found, 4)


def test_a_branch_and_a_timeout_are_seen_again(work, clock):
    def after(self):
        wake = get_wake()
        leave(f"{wake.reason} {wake.branch} {self.context.n}")
        return wait("end")

    flow(lambda self: wait_any(a=wait("a"), b=sleep(HOUR), then=self.after), after=after)
    first, second = run(work), run(work)
    engine.signal("a", {"n": 5}, run=first)
    work()
    clock.tick(2 * HOUR)
    work()
    assert effects() == ["signal a 5", "timer b 0"]
    for found in (first, second):
        engine.rewind(found, 2)
        work()
    assert effects() == ["signal a 5", "timer b 0", "signal a 5", "timer b 0"]
    assert [status(found) for found in (first, second)] == ["suspended"] * 2


def test_each_visit_has_its_own_idempotency_key(work):
    def first(self):
        leave(idempotency_key())
        return wait("word")

    flow(first)
    found = run(work)
    engine.rewind(found, 1)
    work()
    assert len(set(effects())) == 2


def test_a_run_of_an_event_has_the_context_that_was_made_then(work):
    @event_workflow("reservation_confirmed", name="stay")
    class Stay:
        class Context(BaseModel):
            made: int
            n: int = 0

        @classmethod
        def create_context(cls, event):
            leave("made")
            return cls.Context(made=len(effects()))

        @step(start=True)
        def first(self):
            self.context.n += 1
            return wait("word")

    Reservation.objects.create(status="confirmed")
    work()
    found = engine.rewind(the_run(name="stay"), 1)
    assert found.data == {"made": 1, "n": 0}
    work()
    found.refresh_from_db()
    assert (found.data, effects()) == ({"made": 1, "n": 1}, ["made"])


def test_only_first_attempts_keep_the_context_and_a_failed_run_is_rewound(work):
    def second(self):
        self.context.items.append("kept")
        if self.context.text != "right":
            raise ValueError("wrong")
        return complete()

    flow(lambda self: goto(self.second), second=second, retry=Retry(max_attempts=2, base_delay=timedelta(0)))
    found = run(work)
    work()
    assert status(found) == "failed"
    kept = [each.before is not None for each in found.steps.order_by("pk")]
    assert kept == [True, True, False]
    engine.rewind(found, 2)
    engine.edit_context(found, {"text": "right"})
    work()
    found.refresh_from_db()
    assert (found.status, found.data["items"], found.attempt) == ("completed", ["kept"], 0)


def test_children_are_cancelled_and_a_completed_one_needs_again(work):
    flow(lambda self: wait("child"), "child")

    def after(self):
        return wait("end")

    flow(lambda self: run_subflow("child", then=self.after), "parent", version=2, after=after)
    found = run(work, "parent")
    (child,) = found.children.all()
    engine.rewind(found, 1)
    assert (status(child), child.error) == ("cancelled", f"Its parent {found} was rewound.")
    work()
    second = found.children.last()
    assert (second.status, second.pk != child.pk) == ("suspended", True)
    engine.signal("child", run=second)
    work()
    engine.signal("child", run=second)
    engine.cancel(second)
    work()
    engine.rewind(found, 1)
    work()
    third = found.children.last()
    WorkflowRun.objects.filter(pk=third.pk).update(status="completed", wake_at=None)
    with pytest.raises(StateError, match=rf"has started child #{third.pk} since then, which is completed.*again=True"):
        engine.rewind(found, 1)
    engine.rewind(found, 1, again=True)
    assert Signal.unfinished().count() == 0


def test_claims_of_the_present_end_and_earlier_ones_stay(work):
    def first(self):
        claims.hold("reservation_confirmed", {"pk": 1})
        return goto(self.second)

    def second(self):
        claims.hold("reservation_confirmed", {"pk": 2})
        return wait("word")

    flow(first, second=second)
    found = run(work)
    assert EventClaim.objects.count() == 2
    engine.rewind(found, 2)
    assert [claim.match for claim in EventClaim.objects.all()] == [{"pk": 1}]
    assert found.holds_claims is True
    work()
    engine.rewind(found, 1)
    assert (EventClaim.objects.count(), found.holds_claims) == (0, False)
    work()
    engine.cancel(found)
    with pytest.raises(StateError, match="is cancelled, and the claims that it held before that visit ended"):
        engine.rewind(found, 2)
    assert engine.rewind(found, 1).status == "running"


# -- the end of a run --------------------------------------------------------------------------------------------------


def test_a_completed_and_a_cancelled_run_continue_if_nobody_was_told(work):
    three_steps()
    found = run(work)
    engine.cancel(found)
    engine.rewind(found, 3)
    engine.signal("word", run=found)
    work()
    assert status(found) == "completed"
    engine.rewind(found, 3)
    assert (found.status, found.finished_at, found.error) == ("running", None, "")


def test_a_child_that_has_told_its_parent_is_not_rewound(work):
    flow(lambda self: complete(), "child")
    flow(lambda self: run_subflow("child", then=self.end), "parent", version=2, end=lambda self: complete())
    found = run(work, "parent")
    child = found.children.get()
    with pytest.raises(StateError, match=rf"is completed, and its parent parent #{found.pk} has been told"):
        engine.rewind(child, 1)


def test_what_was_undone_is_not_rewound(work):
    flow(lambda self: wait("word"), "undone", undo=hook(on_cancel, lambda self, error: complete()))
    found = run(work, "undone")
    engine.cancel(found)
    with pytest.raises(StateError, match=r"is running, on the path of its @on_cancel"):
        engine.rewind(found, 1)
    work()
    with pytest.raises(StateError, match=r"was cancelled, and its @on_cancel 'undo' has undone"):
        engine.rewind(found, 1)


def test_a_failed_run_leaves_its_path(work):
    flow(lambda self: fail("no"), "fails", undo=hook(on_fail, lambda self, error: complete()))
    found = run(work, "fails")
    assert found.status == "failed"
    engine.rewind(found, 1)
    assert (found.status, found.ending, found.current_step) == ("running", None, "first")


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_a_visit_that_is_not_there_names_those_that_are(work):
    three_steps()
    found = run(work)
    with pytest.raises(
        StateError, match=r"has no visit 9 in its history\. It can be rewound to: 1 \(first\), 2 \(second\), 3"
    ):
        engine.rewind(found, 9)
    with pytest.raises(DefinitionError, match="visit must be a number"):
        engine.rewind(found, "2")  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, 45])
def test_a_large_context_is_not_kept(work, limit):
    three_steps()
    with override_settings(AUTOMATION={"HISTORY_CONTEXT_BYTES": limit}):
        found = run(work)
    kept = {each.visit for each in found.steps.filter(before__isnull=False)}
    assert kept == (set() if limit == 0 else {1})
    with pytest.raises(StateError, match=r"has no Context of visit 3 in its history.*HISTORY_CONTEXT_BYTES"):
        engine.rewind(found, 3)


def test_a_step_that_was_removed_is_named(work):
    three_steps()
    found = run(work)
    StepExecution.objects.filter(visit=2).update(step="secnd")
    with pytest.raises(UnknownStepError, match="Did you mean 'second'"):
        engine.rewind(found, 2)


def _stored() -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {connection.ops.quote_name('before')} FROM {StepExecution._meta.db_table}")
        return str(cursor.fetchall())


def test_what_is_kept_is_encrypted_and_encrypted_again(work, capsys):
    flow(lambda self: wait("word"))
    codec = "django_ai.automation.state.fernet.FernetCodec"
    with override_settings(AUTOMATION={"CONTEXT_CODEC": codec, "CONTEXT_KEYS": [OLD]}):
        found = run(work, text="secret")
        assert "secret" not in _stored()
    with override_settings(AUTOMATION={"CONTEXT_CODEC": codec, "CONTEXT_KEYS": [NEW, OLD]}):
        call_command("automation_reencrypt")
    with override_settings(AUTOMATION={"CONTEXT_CODEC": codec, "CONTEXT_KEYS": [NEW]}):
        assert "secret" not in _stored()
        found.refresh_from_db()
        assert engine.rewind(found, 1).context.text == "secret"
