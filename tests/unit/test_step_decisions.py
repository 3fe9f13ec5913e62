"""``workflows.transitions.decide``: each thing that the attempt of a step may give, in each state of its run.

What never reaches it is not here: a lost lease, a failure of the database and the end of the process are for
``attempt``, which then keeps nothing of the try (tests/lifecycle/operations/test_attempts.py).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from django_ai.automation import Retry
from django_ai.automation.exceptions import (
    AttemptTimeoutError,
    ClaimedError,
    ContextError,
    ControlFlowError,
    DefinitionError,
    OutcomeError,
    PayloadError,
    UnknownStepError,
)
from django_ai.automation.values.failures import Raised
from django_ai.automation.workflows.core import (
    complete,
    event_workflow,
    fail,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_for_event,
)
from django_ai.automation.workflows.current import WakeReason
from django_ai.automation.workflows.models import FINISHED, WorkflowRun, WorkflowStatus
from django_ai.automation.workflows.transitions import Returned, State, decide

STARTED = datetime(2030, 1, 1, tzinfo=UTC)
NOW = STARTED + timedelta(seconds=2)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
DATA = '{"word": "kept"}'


class Context(BaseModel):
    word: str = ""


@pytest.fixture
def definition():
    @event_workflow("paid", name="table", namespace="north", default_retry=Retry(max_attempts=3, base_delay=SECOND))
    class Table:
        Context = globals()["Context"]

        @step(start=True)
        def first(self):
            pass

        @step(retry=Retry(max_attempts=1))
        def once(self):
            pass

        @wait_for_event("arrived", timeout=HOUR, on_timeout="once")
        @step()
        def below(self):
            pass

    return Table.__workflow__


def run_of(**columns) -> WorkflowRun:
    defaults = {"status": WorkflowStatus.RUNNING, "current_step": "first", "visit": 4, "started_at": STARTED - HOUR}
    return WorkflowRun(pk=7, **{**defaults, "lease": "mine", **columns})


def state_of(definition, run: WorkflowRun | None = None, name: str = "first", **more) -> State:
    found = run_of() if run is None else run
    reason = more.pop("reason", WakeReason.FIRST)
    return State(found, definition, definition.steps[name], reason, STARTED, NOW, depth=more.pop("depth", 0), **more)


def raised(error: Exception, data: str | None = DATA, note: str = "") -> Raised:
    return Raised(error, "the trace", data, note)


def returned(outcome, ending=None) -> Returned:
    return Returned(outcome, Context, ending)


@pytest.mark.parametrize(
    ("outcome", "name", "expected"),
    [
        (goto("once"), "goto", {"status": "running", "current_step": "once", "wake_reason": "first"}),
        (
            sleep(HOUR),
            "sleep",
            {
                "status": "waiting",
                "current_step": "first",
                "wake_at": NOW + HOUR,
                "lease": None,
                "wake_reason": "timer",
            },
        ),
        (sleep(HOUR, then="once"), "sleep", {"current_step": "once", "wake_reason": "timer"}),
        (sleep(until=NOW - HOUR), "sleep", {"status": "waiting", "wake_at": NOW - HOUR, "lease": None}),
        (wait("word"), "wait", {"status": "suspended", "current_step": "first", "lease": None}),
        (run_subflow("other", then="once"), "subflow", {"status": "suspended", "current_step": "first", "lease": None}),
        (goto("below"), "goto", {"status": "suspended", "current_step": "below", "lease": None}),
        (complete(), "complete", {"status": "completed", "error": "", "finished_at": NOW, "lease": None}),
        (complete(word="done"), "complete", {"status": "completed", "wake_at": None}),
        (fail("no money"), "fail", {"status": "failed", "error": "no money", "finished_at": NOW, "wake_at": None}),
    ],
)
def test_each_outcome(definition, outcome, name, expected):
    decision = decide(state_of(definition), returned(outcome))
    assert {key: decision.changes.get(key, "missing") for key in expected} == expected
    assert decision.changes["visit"] == 5
    assert decision.outcome == name
    assert decision.ends is (name in ("complete", "fail"))
    assert decision.failure == ("no money" if name == "fail" else None)
    assert decision.child == (outcome if name == "subflow" else None)
    assert decision.fields == ({"word": "done"} if outcome == complete(word="done") else {})


@pytest.mark.parametrize(
    ("outcome", "signal", "namespace", "timeout"),
    [
        (wait("word"), "word", "north", None),
        (wait_for_event("arrived", namespace="*"), "event:arrived", "*", None),
        (goto("below"), "event:arrived", "north", HOUR),
        (run_subflow("other"), "subflow:7:4", "north", None),
        (complete(), None, None, None),
        (sleep(HOUR), None, None, None),
    ],
)
def test_what_is_waited_for_then(definition, outcome, signal, namespace, timeout):
    decision = decide(state_of(definition), returned(outcome))
    if signal is None:
        assert decision.wait is None
    else:
        waits = (decision.wait.signal, decision.wait.namespace, decision.wait.timeout)
        assert waits == (signal, namespace, timeout)
        assert decision.changes["wake_at"] > NOW  # in case this worker dies before it has looked


@pytest.mark.parametrize(
    ("outcome", "error", "said"),
    [
        (None, OutcomeError, "forget `return complete"),
        ("done", OutcomeError, "'done', which is not an outcome"),
        (goto("onse"), UnknownStepError, "Did you mean 'once'"),
        (sleep(HOUR, then="nowhere"), UnknownStepError, "nowhere"),
        (wait("word", then="nowhere"), UnknownStepError, "nowhere"),
        (wait("word", timeout=HOUR, on_timeout="nowhere"), UnknownStepError, "nowhere"),
        (run_subflow("other", then="nowhere"), UnknownStepError, "nowhere"),
        (complete(wrd="done"), ContextError, "complete.wrd=.*It has: word"),
    ],
)
def test_what_no_step_may_return_is_raised(definition, outcome, error, said):
    with pytest.raises(error, match=said):
        decide(state_of(definition), returned(outcome))


@pytest.mark.parametrize("outcome", [None, goto("nowhere"), complete(), fail("no"), run_subflow("other")])
@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_a_step_that_has_ended_its_own_run_ends_it_whatever_it_returns(definition, outcome, status):
    decision = decide(state_of(definition), returned(outcome, (WorkflowStatus(status), "by hand")))
    ended = {"status": status, "error": "by hand", "finished_at": NOW, "wake_at": None, "lease": None}
    assert {key: decision.changes[key] for key in ended} == ended
    assert (decision.ends, decision.child, decision.wait, decision.fields) == (True, None, None, {})
    assert decision.failure == ("by hand" if status == "failed" else None)


def test_a_goto_gives_the_run_back_only_where_the_share_of_time_is_used(definition):
    assert "lease" not in decide(state_of(definition), returned(goto("once"))).changes
    changes = decide(state_of(definition, is_budget_spent=True), returned(goto("once"))).changes
    assert (changes["lease"], changes["wake_at"], changes["status"]) == (None, NOW, "running")


@pytest.mark.parametrize(
    ("columns", "more", "expected"),
    [
        ({}, {}, {"depth": None, "started_at": None, "wake_step": None, "holds_claims": None, "error": None}),
        ({"depth": 3}, {"depth": 3}, {"depth": None}),
        ({"depth": 3}, {"depth": 0}, {"depth": 0}),
        ({"started_at": None}, {}, {"started_at": STARTED, "position": None}),
        ({"started_at": None, "planned": True, "position": 9}, {}, {"started_at": STARTED, "position": 9}),
        ({"planned": True, "position": 9}, {}, {"position": None}),
        ({"wake_step": "first"}, {}, {"wake_step": ""}),
        ({}, {"holds_claims": True}, {"holds_claims": True}),
        ({"holds_claims": True}, {"holds_claims": True}, {"holds_claims": None}),
        ({"error": "of the try before"}, {}, {"error": ""}),
    ],
)
def test_columns_that_do_not_change_are_left_out(definition, columns, more, expected):
    changes = decide(state_of(definition, run_of(**columns), **more), returned(goto("once"))).changes
    assert {key: changes.get(key) for key in expected} == expected


def test_a_long_sleep_ends_the_chain_of_causes(definition):
    state = state_of(definition, run_of(depth=3), depth=3)
    assert decide(state, returned(sleep(SECOND))).changes["depth"] == 0
    assert "depth" not in decide(state, returned(sleep(SECOND / 2))).changes


ORDINARY = [ValueError("bad"), AttemptTimeoutError(), ControlFlowError(), ClaimedError()]
MISUSE = [DefinitionError("wrong"), OutcomeError("wrong"), ContextError("wrong")]


@pytest.mark.parametrize("error", ORDINARY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("tried", "name", "delay"), [(0, "first", SECOND), (1, "first", 2 * SECOND), (2, "first", None), (0, "once", None)]
)
def test_a_failure_is_tried_again_while_there_are_tries_left(definition, error, tried, name, delay):
    decision = decide(state_of(definition, run_of(attempt=tried), name), raised(error))
    assert decision.changes["attempt"] == tried + 1
    assert decision.changes["current_step"] == name
    assert (decision.outcome, decision.error) == ("error", "the trace")
    assert "visit" not in decision.changes  # its idempotency key stays
    if delay is None:
        assert (decision.changes["status"], decision.failure) == ("failed", "the trace")
        assert (decision.changes["wake_at"], decision.changes["finished_at"]) == (None, NOW)
    else:
        assert (decision.changes["status"], decision.failure) == ("waiting", None)
        assert decision.changes["wake_at"] == NOW + delay
        assert "finished_at" not in decision.changes
    assert decision.changes["lease"] is None


@pytest.mark.parametrize("error", MISUSE, ids=lambda error: type(error).__name__)
def test_misuse_fails_at_once_and_says_what_is_wrong_first(definition, error):
    decision = decide(state_of(definition), raised(error))
    assert (decision.changes["status"], decision.changes["attempt"]) == ("failed", 1)
    assert decision.failure == f"{type(error).__name__}: wrong\n\nthe trace"


def test_a_payload_that_does_not_fit_parks_the_run_for_an_operator_and_costs_no_try(definition):
    decision = decide(state_of(definition, run_of(attempt=1, losses=2)), raised(PayloadError("no field")))
    assert decision.changes["status"] == "parked"
    assert decision.changes["error"].startswith("PayloadError: no field")
    assert (decision.changes["wake_at"], decision.changes["parked_at"], decision.changes["lease"]) == (None, NOW, None)
    assert "attempt" not in decision.changes
    assert (decision.ends, decision.failure) == (False, None)


@pytest.mark.parametrize(
    ("data", "columns", "more", "expected"),
    [
        (DATA, {}, {}, {"data": DATA, "wake_reason": "signal", "current_step": "first"}),
        (DATA, {}, {}, {"started_at": STARTED - HOUR}),
        (None, {}, {}, {"data": None, "started_at": None}),
        (DATA, {"started_at": None}, {}, {"started_at": STARTED, "position": None}),
        (DATA, {"started_at": None, "planned": True, "position": 9}, {}, {"started_at": STARTED, "position": 9}),
        (None, {"started_at": None, "planned": True, "position": 9}, {}, {"started_at": None, "position": None}),
        (DATA, {"wake_step": "first"}, {"took_payload": True}, {"wake_step": ""}),
        (DATA, {"wake_step": "first"}, {"took_payload": False}, {"wake_step": None}),
        (None, {"wake_step": "first"}, {"took_payload": True}, {"wake_step": None}),
        (DATA, {}, {"waits_first": True}, {"current_step": None, "wake_reason": None}),
        (DATA, {}, {"holds_claims": True}, {"holds_claims": True}),
    ],
)
def test_what_a_failed_attempt_leaves(definition, data, columns, more, expected):
    state = state_of(definition, run_of(**columns), reason=WakeReason.SIGNAL, **more)
    changes = decide(state, raised(ValueError(), data)).changes
    assert {key: changes.get(key) for key in expected} == expected


def test_a_context_that_cannot_be_kept_is_said_in_the_error(definition):
    decision = decide(state_of(definition), raised(ValueError(), None, "\nlost: why"))
    assert decision.error == decision.changes["error"] == "the trace\nlost: why"


GIVEN = [
    *(returned(each) for each in (goto("once"), goto("below"), sleep(HOUR), wait("word"), run_subflow("other"))),
    *(returned(each) for each in (complete(), fail("no"))),
    returned(None, (WorkflowStatus.CANCELLED, "by hand")),
    *(raised(each, data) for each in [*ORDINARY, *MISUSE, PayloadError()] for data in (DATA, None)),
]
STATES = [
    {"attempt": attempt, "started_at": started_at, "planned": planned, "wake_step": wake_step, "depth": depth}
    for attempt, started_at, planned, wake_step, depth in product(
        (0, 1, 2, 9), (None, STARTED), (False, True), ("", "first"), (0, 5)
    )
]


@pytest.mark.parametrize(
    "gave", GIVEN, ids=lambda gave: str(getattr(gave, "outcome", None) or getattr(gave, "error", ""))
)
def test_nothing_hangs_and_nothing_else_is_touched(definition, gave):
    """Whatever comes of an attempt: the run goes on in this worker, is due, is parked or has ended."""
    for columns, share_used, claims in product(STATES, (False, True), (False, True)):
        run = run_of(**columns)
        before = dict(run.__dict__)
        state = state_of(definition, run, is_budget_spent=share_used, holds_claims=claims)
        decision = decide(state, gave)
        assert run.__dict__ == before
        assert decide(state, gave) == decision
        after = SimpleNamespace(**{**before, **decision.changes})
        if after.status in FINISHED:
            assert decision.ends
            assert (after.lease, after.wake_at, after.finished_at) == (None, None, NOW)
        elif after.status == WorkflowStatus.PARKED:
            assert (after.lease, after.parked_at) == (None, NOW)
            assert after.error
        elif after.lease is None:
            assert after.wake_at >= NOW
        else:
            assert (after.status, after.lease) == (WorkflowStatus.RUNNING, "mine")
            assert not share_used
        assert (decision.wait is not None) == (after.status == WorkflowStatus.SUSPENDED)
        assert (after.visit == run.visit + 1) == isinstance(gave, Returned)
