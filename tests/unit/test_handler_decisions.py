"""``agents.transitions.decide``: every result of a handler's attempt, in every state of its agent.

Lost leases, database failures and shutdowns are not tested here: ``attempt`` handles them, and keeps nothing of the
attempt.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from django_ai.automation import GiveUp, Retry, RetryAfter
from django_ai.automation.agents.models import AgentStatus, HandlerStatus
from django_ai.automation.agents.transitions import MissingCode, Returned, Skipped, State, decide
from django_ai.automation.exceptions import AttemptTimeoutError, ContextError, ControlFlowError, DefinitionError
from django_ai.automation.values.failures import Raised

STARTED = datetime(2030, 1, 1, tzinfo=UTC)
NOW = STARTED + timedelta(seconds=2)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
DATA = '{"word": "kept"}'
TWICE = Retry(max_attempts=2, base_delay=SECOND)


def state_of(attempt: int = 0, **more) -> State:
    return State(attempt, TWICE, STARTED, NOW, **more)


def raised(error: Exception, data: str | None = DATA, note: str = "") -> Raised:
    return Raised(error, "the trace", data, note)


@pytest.mark.parametrize(
    ("gave", "status", "error", "tries", "parked_at"),
    [
        (Returned(), HandlerStatus.COMPLETED, "", 1, None),
        (Skipped("Skipped: claimed."), HandlerStatus.SKIPPED, "Skipped: claimed.", 0, None),
        (MissingCode("no handler"), HandlerStatus.PARKED, "no handler", 0, STARTED),
    ],
)
@pytest.mark.parametrize("attempt", [0, 5])
def test_each_end_of_an_execution(gave, status, error, tries, parked_at, attempt):
    decision = decide(state_of(attempt), gave)
    assert decision.execution == {
        "status": status,
        "error": error,
        "attempt": attempt + tries,
        "started_at": STARTED,
        "finished_at": NOW,
        "parked_at": parked_at,
    }
    assert decision.agent == {"wake_at": None, "lease": None}
    assert (decision.ends, decision.failure) == (False, None)


@pytest.mark.parametrize("status", [AgentStatus.COMPLETED, AgentStatus.CANCELLED])
@pytest.mark.parametrize("next_due", [None, STARTED, NOW + HOUR])
def test_a_handler_that_has_ended_its_agent_completes_and_ends_it_whatever_is_pending(status, next_due):
    decision = decide(state_of(next_due=next_due), Returned((status, "by hand")))
    assert decision.execution["status"] == HandlerStatus.COMPLETED
    assert decision.agent == {
        "status": status,
        "error": "by hand",
        "finished_at": NOW,
        "wake_at": None,
        "lease": None,
    }
    assert decision.ends


@pytest.mark.parametrize("error", [ValueError("bad"), AttemptTimeoutError(), ControlFlowError()], ids=repr)
@pytest.mark.parametrize("data", [DATA, None])
def test_a_failure_is_tried_again_while_there_are_tries_left(error, data):
    kept = {} if data is None else {"data": data}
    again = decide(state_of(0), raised(error, data, "\na note"))
    text = "the trace\na note"
    assert again.execution == {"attempt": 1, "error": text, "started_at": STARTED, "due_at": NOW + SECOND}
    assert again.agent == {**kept, "wake_at": NOW + SECOND, "lease": None}
    assert again.failure is None
    last = decide(state_of(1), raised(error, data, "\na note"))
    assert (last.execution["status"], last.execution["attempt"], last.failure) == (HandlerStatus.FAILED, 2, text)
    assert last.agent == {**kept, "wake_at": None, "lease": None}
    assert not last.ends  # the agent stays active


@pytest.mark.parametrize("error", [DefinitionError("wrong"), ContextError("wrong")], ids=repr)
def test_misuse_fails_at_once_and_says_what_is_wrong_first(error):
    decision = decide(state_of(0), raised(error))
    assert decision.execution["status"] == HandlerStatus.FAILED
    assert decision.failure == f"{type(error).__name__}: wrong\n\nthe trace"


def test_retry_after_costs_no_attempt_and_counts_the_deferrals_in_a_row():
    later = decide(state_of(1, deferrals=4), raised(RetryAfter(HOUR, "HTTP 429")))
    assert later.execution == {"deferrals": 5, "error": "the trace", "started_at": STARTED, "due_at": NOW + HOUR}
    assert later.agent["wake_at"] == NOW + HOUR
    assert later.failure is None


def test_a_counted_retry_after_is_an_attempt_and_the_last_one_fails():
    counted = raised(RetryAfter(HOUR, counts=True))
    again = decide(state_of(0, deferrals=2), counted)
    assert (again.execution["attempt"], again.execution["deferrals"], again.execution["due_at"]) == (1, 0, NOW + HOUR)
    assert decide(state_of(1), counted).execution["status"] == HandlerStatus.FAILED


def test_give_up_fails_the_execution_and_the_agent_lives_on():
    decision = decide(state_of(0), raised(GiveUp("stolen")))
    assert (decision.execution["status"], decision.execution["attempt"]) == (HandlerStatus.FAILED, 1)
    assert decision.failure == "GiveUp: stolen\n\nthe trace"
    assert not decision.ends


@pytest.mark.parametrize("gave", [Returned(), raised(ValueError()), Skipped("why"), MissingCode("why")], ids=repr)
def test_whatever_else_an_attempt_gives_ends_a_series_of_deferrals(gave):
    assert decide(state_of(deferrals=2), gave).execution["deferrals"] == 0
    assert "deferrals" not in decide(state_of(), gave).execution


def test_the_jitter_of_a_handler_is_that_of_its_key():
    retry = Retry(max_attempts=2, base_delay=HOUR, max_delay=HOUR, jitter=1)
    state = State(0, retry, STARTED, NOW, key="handler:7")
    assert decide(state, raised(ValueError())).execution["due_at"] == NOW + retry.delay(1, "handler:7")


@pytest.mark.parametrize(
    ("next_due", "is_budget_spent", "again", "expected"),
    [
        (None, False, False, {"wake_at": None, "lease": None}),
        (NOW, False, False, {}),
        (STARTED, False, True, {}),
        (NOW, True, False, {"wake_at": NOW, "lease": None}),
        (NOW + HOUR, False, False, {"wake_at": NOW + HOUR, "lease": None}),
        (None, False, True, {"wake_at": NOW + SECOND, "lease": None}),
        (NOW + HOUR, False, True, {"wake_at": NOW + SECOND, "lease": None}),
        (NOW + SECOND / 2, True, True, {"wake_at": NOW + SECOND / 2, "lease": None}),
    ],
)
def test_the_agent_goes_on_with_what_is_due_or_rests_until_that(next_due, is_budget_spent, again, expected):
    gave = raised(ValueError(), None) if again else Returned()
    assert decide(state_of(next_due=next_due, is_budget_spent=is_budget_spent), gave).agent == expected


GIVEN = [
    Returned(),
    Returned((AgentStatus.COMPLETED, "")),
    Skipped("why"),
    MissingCode("why"),
    raised(ValueError()),
    raised(ValueError(), None),
    raised(DefinitionError()),
    raised(RetryAfter(HOUR)),
    raised(GiveUp()),
]


@pytest.mark.parametrize("gave", GIVEN, ids=repr)
def test_nothing_hangs(gave):
    """After every result the agent continues, is due with its earliest execution, is idle or has ended."""
    for attempt, next_due, share_used in product((0, 1, 9), (None, STARTED, NOW, NOW + HOUR), (False, True)):
        decision = decide(state_of(attempt, next_due=next_due, is_budget_spent=share_used), gave)
        pending = [each for each in (next_due, decision.execution.get("due_at")) if each is not None]
        if decision.ends:
            assert (decision.agent["wake_at"], decision.agent["lease"]) == (None, None)
        elif "lease" in decision.agent:
            assert decision.agent["wake_at"] == min(pending, default=None)
        else:
            assert next_due <= NOW
            assert not share_used
        assert ("status" in decision.execution) != ("due_at" in decision.execution)
