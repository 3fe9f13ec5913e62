"""``workflows.transitions.decide``: every result of a step's attempt, in every state of its run.

Lost leases, database failures and shutdowns are not tested here: ``attempt`` handles them, and keeps nothing of the
attempt (tests/lifecycle/operations/test_attempts.py).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from django_ai.automation import GiveUp, Retry, RetryAfter
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
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
)
from django_ai.automation.workflows.current_run import WakeReason
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
        (
            wait_any(a=wait("word"), b=sleep(HOUR), then="once"),
            "wait_any",
            {"status": "suspended", "current_step": "first", "lease": None, "wake_reason": "first"},
        ),
        (
            wait_all(a=wait("word"), b=wait("other"), then="once"),
            "wait_all",
            {"status": "suspended", "current_step": "first", "wake_reason": "all", "wake_step": "once", "branches": []},
        ),
        (
            wait_all(then="once"),
            "wait_all",
            {"status": "running", "lease": "missing", "wake_reason": "all", "wake_step": "once", "branches": []},
        ),
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
    ("outcome", "before", "written"),
    [
        (goto("once"), None, "missing"),
        (goto("once"), 0.5, "missing"),
        (goto("once", progress=0.4), None, 0.4),
        (goto("once", progress=0), 0.5, 0.0),
        (goto("below", progress=0.4), None, 0.4),
        (sleep(HOUR), 0.5, "missing"),
        (complete(), None, "missing"),
        (complete(), 0.5, 1.0),
        (fail("no"), 0.5, "missing"),
    ],
)
def test_progress_is_written_only_where_it_is_used(definition, outcome, before, written):
    decision = decide(state_of(definition, run_of(progress=before)), returned(outcome))
    assert decision.changes.get("progress", "missing") == written


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
        assert decision.changes["wake_at"] > NOW  # if this worker dies before its look-back, the run is due again


def test_the_branches_of_a_choice_have_the_namespace_of_the_workflow(definition):
    choice = wait_any(a=wait_for_event("arrived"), b=wait_for_event("arrived", namespace="*"), c=sleep(HOUR))
    branches = decide(state_of(definition), returned(choice)).wait.branches
    assert [getattr(each, "namespace", None) for each in branches.values()] == ["north", "*", None]


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
        (wait_any(a=wait("word"), then="nowhere"), UnknownStepError, "nowhere"),
        (wait_any(a=wait("word", then="nowhere")), UnknownStepError, "nowhere"),
        (wait_all(a=wait("word"), timeout=HOUR, on_timeout="nowhere"), UnknownStepError, "nowhere"),
        (wait_all(then="nowhere"), UnknownStepError, "nowhere"),
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
        ({"branches": [{"branch": "a"}]}, {}, {"branches": None}),
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
LATER = RetryAfter(30 * SECOND, "HTTP 429")


@pytest.mark.parametrize("error", ORDINARY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("tried", "name", "delay"), [(0, "first", SECOND), (1, "first", 2 * SECOND), (2, "first", None), (0, "once", None)]
)
def test_a_failure_is_tried_again_while_there_are_tries_left(definition, error, tried, name, delay):
    decision = decide(state_of(definition, run_of(attempt=tried), name), raised(error))
    assert decision.changes["attempt"] == tried + 1
    assert decision.changes["current_step"] == name
    assert (decision.outcome, decision.error) == ("error", "the trace")
    assert "visit" not in decision.changes  # the idempotency key does not change
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


@pytest.mark.parametrize(("tried", "name"), [(0, "first"), (2, "first"), (0, "once")])
@pytest.mark.parametrize("deferrals", [0, 7])
def test_retry_after_costs_no_attempt_and_counts_the_deferrals_in_a_row(definition, tried, name, deferrals):
    run = run_of(attempt=tried, deferrals=deferrals)
    decision = decide(state_of(definition, run, name), raised(LATER))
    changes = decision.changes
    assert (changes["status"], changes["wake_at"], changes["lease"]) == ("waiting", NOW + 30 * SECOND, None)
    assert (changes["deferrals"], changes["error"]) == (deferrals + 1, "the trace")
    assert "attempt" not in changes
    assert "visit" not in changes
    assert (decision.outcome, decision.ends, decision.failure) == ("retry_after", False, None)


def test_a_counted_retry_after_is_an_attempt_and_the_last_one_fails(definition):
    counted = raised(RetryAfter(30 * SECOND, counts=True))
    decision = decide(state_of(definition, run_of(attempt=1, deferrals=2)), counted)
    assert (decision.changes["attempt"], decision.changes["deferrals"], decision.outcome) == (2, 0, "error")
    assert decision.changes["wake_at"] == NOW + 30 * SECOND
    last = decide(state_of(definition, run_of(attempt=2)), counted)
    assert (last.changes["attempt"], last.failure, last.outcome) == (3, "the trace", "error")


def test_give_up_fails_at_once_and_says_why_first(definition):
    decision = decide(state_of(definition, run_of(deferrals=3)), raised(GiveUp("stolen")))
    assert (decision.changes["status"], decision.changes["attempt"], decision.changes["deferrals"]) == ("failed", 1, 0)
    assert decision.failure == "GiveUp: stolen\n\nthe trace"


@pytest.mark.parametrize("error", [ValueError(), PayloadError(), RetryAfter(SECOND, counts=True)])
@pytest.mark.parametrize(("deferrals", "expected"), [(0, None), (4, 0)])
def test_whatever_else_an_attempt_gives_ends_a_series_of_deferrals(definition, error, deferrals, expected):
    run = run_of(deferrals=deferrals)
    assert decide(state_of(definition, run), raised(error)).changes.get("deferrals") == expected
    assert decide(state_of(definition, run), returned(goto("once"))).changes.get("deferrals") == expected


@pytest.mark.parametrize(
    ("error", "depth"),
    [
        (ValueError(), 0),
        (LATER, 0),
        (RetryAfter(timedelta(0)), 0),
        (RetryAfter(SECOND / 2, counts=True), None),
        (GiveUp(), None),
    ],
)
def test_a_long_pause_before_the_next_attempt_ends_the_chain_of_causes(definition, error, depth):
    assert decide(state_of(definition, run_of(depth=3), depth=3), raised(error)).changes.get("depth") == depth
    assert "depth" not in decide(state_of(definition), raised(error)).changes


def test_the_jitter_of_a_step_is_that_of_its_idempotency_key(definition):
    retry = Retry(max_attempts=3, base_delay=HOUR, max_delay=HOUR, jitter=1)
    run = run_of(attempt=1)
    state = replace(state_of(definition, run), definition=replace(definition, default_retry=retry))
    assert decide(state, raised(ValueError())).changes["wake_at"] == NOW + retry.delay(2, run.idempotency_key)


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
    *(returned(each) for each in (wait_any(a=wait("word"), b=sleep(HOUR)), wait_all(a=wait("word")), wait_all())),
    *(returned(each) for each in (complete(), fail("no"))),
    returned(None, (WorkflowStatus.CANCELLED, "by hand")),
    *(raised(each, data) for each in [*ORDINARY, *MISUSE, PayloadError(), LATER, GiveUp()] for data in (DATA, None)),
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
    """After every result the run continues in this worker, is due, is parked or has ended."""
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


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def careful():
    @event_workflow("paid", name="careful", default_retry=Retry(max_attempts=3, base_delay=SECOND))
    class Careful:
        Context = globals()["Context"]

        @step(start=True)
        def first(self):
            pass

        @step(retry=Retry(max_attempts=1))
        def once(self):
            pass

        @on_fail(retry=Retry(max_attempts=2, base_delay=HOUR))
        def undo(self):
            pass

        @on_cancel
        def clean(self):
            pass

    return Careful.__workflow__


ENDING = {
    "status": "failed", "error": "no money", "seq": 9, "current_step": "first", "visit": 4, "attempt": 3,
    "wake_reason": "signal", "wake_ref": 8, "wake_step": "", "branches": None,
}  # fmt: skip


def on_path(definition, name: str = "undo", **columns) -> State:
    found = definition.entered(name, "failed")
    run = run_of(**{"ending": ENDING, "current_step": name, "error": "no money", **columns})
    return State(run, definition, found, WakeReason.FIRST, STARTED, NOW)


ENDS = [
    (returned(fail("no money")), "failed", "no money", "undo", 5, 0),
    (raised(ContextError("bad")), "failed", "ContextError: bad\n\nthe trace", "undo", 4, 1),
    (returned(None, (WorkflowStatus.CANCELLED, "by hand")), "cancelled", "by hand", "clean", 5, 0),
]


@pytest.mark.parametrize(
    ("gave", "status", "error", "hook", "visit", "attempt"), ENDS, ids=["fails", "raises", "cancels"]
)
def test_an_end_that_has_a_path_enters_it(careful, gave, status, error, hook, visit, attempt):
    columns = {"wake_reason": "signal", "wake_ref": 8, "seq": 9, "branches": [{"branch": "a"}]}
    decision = decide(state_of(careful, run_of(**columns), reason=WakeReason.SIGNAL), gave)
    changes = decision.changes
    assert (changes["status"], changes["current_step"], changes["visit"], changes["attempt"]) == (
        "running",
        hook,
        visit,
        0,
    )
    assert (changes["wake_at"], changes["lease"], changes["wake_reason"], changes["wake_ref"]) == (
        NOW,
        None,
        "first",
        None,
    )
    assert (changes["error"], changes["branches"]) == (error, None)
    assert changes["ending"] == {
        **ENDING, "status": status, "error": error, "visit": visit, "attempt": attempt, "branches": [{"branch": "a"}],
    }  # fmt: skip
    assert (decision.ends, decision.failure, decision.error) == (False, None, error)


def test_an_end_at_once_skips_its_path(careful):
    decision = decide(state_of(careful), Returned(None, Context, (WorkflowStatus.CANCELLED, "now"), ends_at_once=True))
    assert (decision.changes["status"], decision.ends) == ("cancelled", True)
    assert "ending" not in decision.changes


@pytest.mark.parametrize(("visit", "after"), [(4, 4), (6, 7)], ids=["the method alone", "with more steps"])
def test_a_path_that_completes_ends_the_run_where_it_had_failed(careful, visit, after):
    decision = decide(on_path(careful, visit=visit, wake_ref=55), returned(complete(word="undone")))
    changes = decision.changes
    assert (changes["status"], changes["error"], changes["finished_at"]) == ("failed", "no money", NOW)
    assert (changes["current_step"], changes["attempt"], changes["visit"]) == ("first", 3, after)
    assert (changes["wake_reason"], changes["wake_ref"], changes["ending"]) == ("signal", 8, None)
    assert (decision.ends, decision.failure, decision.error, decision.fields) == (
        True,
        "no money",
        "",
        {"word": "undone"},
    )


@pytest.mark.parametrize(
    ("gave", "name", "columns"),
    [
        (returned(fail("not undone")), "undo", {}),
        (returned(fail("not undone")), "once", {"visit": 6}),
        (raised(ValueError()), "undo", {"attempt": 1}),
        (raised(ValueError()), "once", {"visit": 6}),
        (returned(None, (WorkflowStatus.CANCELLED, "not undone")), "once", {}),
    ],
)
def test_a_path_that_fails_ends_the_run_where_it_is_with_both_errors(careful, gave, name, columns):
    decision = decide(on_path(careful, name, **columns), gave)
    problem = "the trace" if isinstance(gave, Raised) else "not undone"
    assert (decision.changes["status"], decision.ends) == ("failed", True)
    assert decision.changes["error"] == f"no money\n\nThen its @on_fail failed:\n\n{problem}" == decision.failure
    assert decision.error == problem
    assert "ending" not in decision.changes
    assert decision.changes["current_step"] == name


@pytest.mark.parametrize(("status", "hook"), [("failed", "undo"), ("cancelled", "clean")])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_path_that_does_not_end_itself_has_failed_unless_its_end_was_requested(careful, status, hook, at_once):
    run = run_of(ending={**ENDING, "status": status}, error="no money")
    state = State(run, careful, careful.entered(hook, status), WakeReason.FIRST, STARTED, NOW)
    decision = decide(state, Returned(None, Context, (WorkflowStatus.CANCELLED, "why"), ends_at_once=at_once))
    path = "@on_fail" if status == "failed" else "@on_cancel"
    error = f"no money\n\nThen its {path} {'was ended at once' if at_once else 'failed'}:\n\nwhy"
    ended = status if at_once else "failed"
    assert (decision.changes["status"], decision.changes["error"], decision.error) == (ended, error, "why")
    assert decision.failure == (error if ended == "failed" else None)
    assert "ending" not in decision.changes


def test_a_path_is_retried_by_its_own_rule(careful):
    changes = decide(on_path(careful), raised(ValueError())).changes
    assert (changes["status"], changes["wake_at"], changes["error"]) == ("waiting", NOW + HOUR, "the trace")
    after = decide(on_path(careful, attempt=1, error="the trace"), returned(goto("once"))).changes
    assert after["error"] == "no money"  # until the run has ended, this is why


@pytest.mark.parametrize(
    "gave", GIVEN, ids=lambda gave: str(getattr(gave, "outcome", None) or getattr(gave, "error", ""))
)
@pytest.mark.parametrize("ending", [None, ENDING], ids=["before", "on the path"])
def test_nothing_hangs_on_a_path(careful, gave, ending):
    if getattr(gave, "outcome", None) == goto("below"):
        return
    run = run_of(ending=ending)
    name = "first" if ending is None else "undo"
    decision = decide(State(run, careful, careful.entered(name, "failed"), WakeReason.FIRST, STARTED, NOW), gave)
    after = SimpleNamespace(**{**run.__dict__, **decision.changes})
    if after.status in FINISHED:
        assert (after.lease, after.wake_at, after.finished_at) == (None, None, NOW)
        assert ending is not None or after.status == "completed"
    else:
        assert after.status == "parked" or after.lease == "mine" or after.wake_at >= NOW
    assert ending is None or after.status != "completed"
