"""``CurrentRun`` records what runs now; only the project's code inside that run can see it."""

from __future__ import annotations

import pytest

from django_ai.automation import idempotency_key
from django_ai.automation.queues.causation import (
    CurrentRun,
    Owner,
    current_cause,
    current_run,
    end_own_run,
    inside,
    own_run_pk,
    running,
)
from django_ai.automation.workflows.current_run import View, Wake, WakeReason, get_context, get_run, get_wake


def of(kind: str, pk: int) -> CurrentRun:
    return CurrentRun(f"{kind}:{pk}", 1, f"key of {kind} {pk}", Owner(kind, pk))


def test_outside_of_everything_nothing_runs():
    assert current_cause() is None
    assert own_run_pk("workflow") is None
    assert not end_own_run("workflow", 1, "cancelled", "why")
    for read in (idempotency_key, get_context, get_run, get_wake):
        with pytest.raises(RuntimeError, match="only inside a step"):
            read()


@pytest.mark.parametrize(
    ("kind", "pk", "is_own"),
    [("workflow", 7, True), ("workflow", 8, False), ("agent", 7, False)],
    ids=["its own", "another of its kind", "another kind of the same key"],
)
def test_code_ends_its_own_run_and_no_other(kind, pk, is_own):
    with running(of("workflow", 7)), inside("view") as current:
        assert end_own_run(kind, pk, "cancelled", "why") is is_own
    assert current.ending == (("cancelled", "why") if is_own else None)


def test_only_the_code_of_the_project_is_inside():
    """While the engine works around a step (its commit, a child's Context), ``end_own_run`` returns False."""
    with running(of("workflow", 7)):
        assert current_run("workflow") is None
        with inside("view"):
            assert own_run_pk("workflow") == 7
        assert own_run_pk("workflow") is None
        assert not end_own_run("workflow", 7, "cancelled", "why")
        assert idempotency_key() == "key of workflow 7"


def test_an_end_that_was_asked_for_is_not_there_when_the_code_is_entered_again():
    with running(of("workflow", 7)):
        with inside("view"):
            end_own_run("workflow", 7, "cancelled", "why", at_once=True)
        with inside("view of another try") as current:
            assert (current.ending, current.ends_at_once) == (None, False)


def test_what_runs_inside_something_else_is_not_that():
    with running(of("workflow", 7)), inside("view"):
        with running(CurrentRun("callback:1", 1, "key of the callback")):
            assert current_run("workflow") is None
            assert idempotency_key() == "key of the callback"
        assert idempotency_key() == "key of workflow 7"
        assert own_run_pk("workflow") == 7


def test_a_step_sees_its_view_and_a_handler_has_none():
    class Instance:
        context = "the context"

    wake = Wake(WakeReason.TIMER)
    with running(of("workflow", 7)), inside(View(Instance(), wake, "the run")):
        assert (get_context(), get_wake(), get_run()) == ("the context", wake, "the run")
    with running(of("agent", 7)), inside("the agent"), pytest.raises(RuntimeError, match="only inside a step"):
        get_context()


def test_it_is_left_also_by_an_exception():
    with pytest.raises(ZeroDivisionError), running(of("workflow", 7)), inside("view"):
        raise ZeroDivisionError
    assert current_cause() is None
