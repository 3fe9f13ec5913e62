"""Lanes: names of queues, priorities, which lane comes first, and which rows a worker or a doorbell is for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import agent, event_workflow, handler, on_event, step, workflow
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.conf import problems
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues import lanes
from django_ai.automation.queues.lanes import EVERYTHING, Lane, Selection, check_queue_names, priority_for
from django_ai.automation.queues.models import Maintenance
from django_ai.automation.queues.registry import due_lanes, kinds
from django_ai.automation.queues.runtimes.task_queues import doorbell_names, served_by, task_queues, task_queues_of
from django_ai.automation.queues.worker_status import _union
from django_ai.automation.workflows.models import WorkflowRun

NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Empty(BaseModel):
    pass


def steps(cls_name: str) -> type:
    @step(start=True)
    def begin(self):
        raise NotImplementedError

    return type(cls_name, (), {"Context": Empty, "begin": begin})


def by(**lane):
    """Declare each kind of definition with ``lane``."""

    def agent_class():
        @handler("reservation_confirmed")
        def answer(self):
            raise NotImplementedError

        return type("Answers", (), {"Context": Empty, "answer": answer})

    return {
        "workflow": lambda: workflow("lanes:workflow", **lane)(steps("Started")),
        "event_workflow": lambda: event_workflow("reservation_confirmed", **lane)(steps("Caused")),
        "on_event": lambda: on_event("reservation_confirmed", **lane)(lambda event: None),
        "agent": lambda: agent("lanes:agent", spawn_on="reservation_confirmed", **lane)(agent_class()),
    }


KINDS = sorted(by())


# -- what decorators accept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queue", ["", "two words", "-first", "a,b", "a:b", "*", "x" * 51, 7])
def test_a_name_that_is_no_queue_is_refused_at_import(kind, queue):
    with pytest.raises(DefinitionError, match=r"queue=.* must be a name of 1 to 50 letters"):
        by(queue=queue)[kind]()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("priority", [101, -101, 1.5, "high", True, None])
def test_a_value_that_is_no_priority_is_refused_at_import(kind, priority):
    with pytest.raises(DefinitionError, match=r"priority=.* must be a whole number from -100 to 100"):
        by(priority=priority)[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_for_the_priority_takes_one_argument_and_is_not_async(kind):
    async def later(given):
        return 1

    with pytest.raises(DefinitionError, match=r"priority: .*later must be a plain function"):
        by(priority=later)[kind]()
    with pytest.raises(DefinitionError, match=r"is called with \((context|event)\)"):
        by(priority=lambda: 1)[kind]()
    by(priority=lambda given: 1)[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_only_code_that_names_a_queue_or_a_priority_uses_lanes(kind):
    model = {"on_event": CallbackExecution, "agent": AgentRun}.get(kind, WorkflowRun)
    lanes.reset()
    by()[kind]()
    by(queue="default")[kind]()
    assert not lanes.are_used(model)
    by(queue="reports")[kind]()
    assert lanes.are_used(model)
    assert lanes.declared_queues() == ["default", "reports"]
    assert lanes.declared_lanes(model) == {Lane(model, "reports")}
    assert not any(lanes.are_used(other) for other in (WorkflowRun, CallbackExecution, AgentRun) if other is not model)


def test_a_function_must_return_a_priority():
    assert priority_for(lambda given: given * 2, 3, "x") == 6
    for wrong in (None, "1", 2.0, True, 101):
        with pytest.raises(DefinitionError, match=rf"x: priority=.*<lambda> returned {wrong!r}; it must be a whole"):
            priority_for(lambda given, wrong=wrong: wrong, None, "x")


def test_unknown_queues_are_refused_with_the_nearest_name():
    lanes.declare("workflows", "reports", 0)
    check_queue_names(["reports", "default"], kinds())
    with pytest.raises(ValueError, match=r"no queue 'report'\. Did you mean 'reports'\?"):
        check_queue_names(["report"], kinds())
    with pytest.raises(ValueError, match=r"It is a kind of row: write --kinds workflows"):
        check_queue_names(["workflows"], kinds())
    with pytest.raises(ValueError, match=r"Queues that the code declares: default, reports"):
        check_queue_names(["mail"], kinds())
    check_queue_names(["mail"], kinds(), ["mail"])


# -- which lane comes first --------------------------------------------------------------------------------------------


def first(times: dict[tuple[str, int], float], now: datetime = NOON) -> tuple[str, int]:
    """Return the lane of runs to claim from. ``times``: since how many seconds each lane has had due rows."""
    (lane,) = due_lanes(now, {Lane(WorkflowRun, *key): now - ago * SECOND for key, ago in times.items()})
    return lane.queue, lane.priority


def test_of_lanes_with_one_priority_the_one_that_has_waited_longest_comes_first():
    assert first({("", 0): 5, ("reports", 0): 6}) == ("reports", 0)
    assert first({("", 0): 7, ("reports", 0): 6}) == ("", 0)
    assert first({("", 4): 5, ("reports", 4): 6}) == ("reports", 4)


def test_a_point_of_priority_counts_as_thirty_seconds_of_waiting():
    assert first({("", 0): 29, ("", 1): 0}) == ("", 1)
    assert first({("", 0): 31, ("", 1): 0}) == ("", 0)
    assert first({("", 0): 30, ("", 1): 0}) == ("", 1), "the higher one, where both are equal"
    assert first({("", -2): 59, ("", 0): 0}) == ("", 0)
    assert first({("", -2): 61, ("", 0): 0}) == ("", -2)


def test_the_lowest_priority_comes_first_when_it_has_waited_long_enough():
    hours = lanes.AGEING * 2 * lanes.MAX_PRIORITY
    assert first({("", -100): hours / SECOND - 1, ("", 100): 0}) == ("", 100)
    assert first({("", -100): hours / SECOND + 1, ("", 100): 0}) == ("", -100)


def test_a_lane_that_is_not_due_is_left_out_whatever_its_priority():
    assert first({("", 100): -0.001, ("", -100): 0}) == ("", -100)


def test_models_keep_their_order_and_each_has_one_lane():
    times = {
        Lane(Maintenance): NOON,
        Lane(WorkflowRun, "reports"): NOON - SECOND,
        Lane(WorkflowRun): NOON,
        Lane(CallbackExecution, "", 5): NOON,
        Lane(Event): NOON,
    }
    found = due_lanes(NOON, times)
    assert found == [Lane(Event), Lane(WorkflowRun, "reports"), Lane(CallbackExecution, "", 5), Lane(Maintenance)]
    assert due_lanes(NOON, times, Selection.of([Event])) == [Lane(Event)]
    default = due_lanes(NOON, times, Selection.of(queues=["default"]))
    assert default == [Lane(Event), Lane(WorkflowRun), Lane(CallbackExecution, "", 5), Lane(Maintenance)]


# -- what a worker performs --------------------------------------------------------------------------------------------


def test_events_and_maintenance_belong_to_the_default_queue():
    only, others = Selection.of(queues=["reports"]), Selection.of(except_queues=["reports"])
    for lane in (Lane(Event), Lane(Maintenance), Lane(WorkflowRun), Lane(WorkflowRun, "", 3)):
        assert (lane in only, lane in others, lane in EVERYTHING) == (False, True, True)
    reports = Lane(WorkflowRun, "reports", 3)
    assert (reports in only, reports in others, reports in EVERYTHING) == (True, False, True)
    assert Lane(WorkflowRun, "mail") in others


def test_a_selection_knows_whether_it_is_everything():
    everything = [Event, WorkflowRun]
    assert EVERYTHING.has_all(everything)
    assert Selection.of([Event, WorkflowRun, AgentRun]).has_all(everything)
    assert not Selection.of([Event]).has_all(everything)
    assert not Selection.of(queues=["default"]).has_all(everything)
    assert not Selection.of(except_queues=["reports"]).has_all(everything)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("workflows", {"all", "runs", "rest"}),
        ("workflows:reports", {"all", "runs", "reports"}),
        ("workflows:mail", {"all", "runs", "rest"}),
        ("workflows:*", {"all", "runs", "rest", "reports"}),
        ("agents:reports", {"all", "reports"}),
    ],
)
def test_a_doorbell_wakes_the_workers_that_may_perform_its_rows(name, expected):
    selections = {
        "all": EVERYTHING,
        "runs": Selection.of([WorkflowRun]),
        "reports": Selection.of(queues=["reports"]),
        "rest": Selection.of(except_queues=["reports"]),
    }
    concerned = {key for key, each in selections.items() if each.is_concerned(name)}
    assert concerned == expected


def test_a_drain_needs_no_doorbell_for_rows_that_it_finds_itself():
    rest = Selection.of(except_queues=["reports"])
    assert rest.covers("workflows")
    assert rest.covers("workflows:mail")
    assert not rest.covers("workflows:reports")
    assert not rest.covers("workflows:*")
    assert Selection.of(queues=["reports"]).covers("agents:reports")
    assert Selection.of([WorkflowRun]).covers("workflows:*")
    assert not Selection.of([WorkflowRun]).covers("agents")
    assert EVERYTHING.covers("agents:*")


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("", "reports", ""),
        ("mail", "reports", "mail,reports"),
        ("!reports", "reports", ""),
        ("!mail,!reports", "reports", "!mail"),
        ("!mail,!reports", "!reports", "!reports"),
        ("!mail", "!reports", ""),
    ],
)
def test_a_worker_of_two_task_queues_polls_the_queues_of_both(one, other, both):
    assert _union(one, other) == _union(other, one) == both


# -- task queues -------------------------------------------------------------------------------------------------------


def test_without_the_setting_one_task_queue_serves_everything():
    assert (task_queues(), served_by("")) == ([""], {})
    assert task_queues_of(()) == task_queues_of(["workflows", "agents:reports"]) == [""]
    assert doorbell_names("") == []


def test_the_setting_gives_queues_to_task_queues(settings):
    settings.AUTOMATION = {"QUEUES": {"reports": "heavy", "exports": "heavy", "mail": "io"}}
    assert task_queues() == ["", "heavy", "io"]
    assert served_by("heavy") == {"queues": ["exports", "reports"]}
    assert served_by("io") == {"queues": ["mail"]}
    assert served_by("") == {"except_queues": ["exports", "mail", "reports"]}
    assert served_by("os.system") == {"queues": []}
    assert task_queues_of(["workflows"]) == [""]
    assert task_queues_of(["workflows:other"]) == [""]
    assert task_queues_of(["workflows:reports", "agents:exports", "callbacks:mail"]) == ["heavy", "io"]
    assert task_queues_of(["workflows:*"]) == task_queues_of([]) == ["", "heavy", "io"]
    for name in task_queues():
        assert task_queues_of(doorbell_names(name)) == [name]


@pytest.mark.parametrize("value", [["reports"], {"reports": 1}, {"": "heavy"}, {"reports": ""}, {"default": "heavy"}])
def test_wrong_values_of_the_setting_are_named(value):
    assert "AUTOMATION['QUEUES']" in problems({"QUEUES": value})[0]
