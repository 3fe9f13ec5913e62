"""Steps that touch no table: a worker writes the progress of several runs, with their history, in one statement.

It continues each run after that, and not before. What becomes of each run is the same on every database; only
PostgreSQL shares statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import Concurrency, Retry, complete, engine, fail, goto, run_subflow, step, wait, workflow
from django_ai.automation.queues import commit_group
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.held_leases import current_leases
from django_ai.automation.queues.signals import attempt_finished
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from tests.support.fault_injection import database_failure, dying
from tests.support.marks import only_on
from tests.support.polling import until
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

shares = only_on("postgresql", reason="Only PostgreSQL shares statements")


@pytest.fixture(autouse=True)
def ample_time(monkeypatch):
    """On a crowded machine an attempt may take long, and would be written alone."""
    monkeypatch.setattr(commit_group, "SHORT_SECONDS", 60.0)
    monkeypatch.setattr("django_ai.automation.queues.attempt.SHORT_SECONDS", 60.0)
    monkeypatch.setattr(commit_group, "MAX_SECONDS", 60.0)
    monkeypatch.setattr("django_ai.automation.queues.drain._batch_size", lambda model: 20)


@pytest.fixture
def calls() -> list[tuple[int, str]]:
    return []


@pytest.fixture
def hooks() -> dict[str, Callable[[Any], None]]:
    """What the steps of ``three`` do beside, by name. Called with the Context."""
    return {}


@pytest.fixture
def three(calls, hooks):
    """A workflow of three steps that touch nothing."""

    def called(name: str, context) -> None:
        calls.append((context.number, name))
        hooks.get(name, lambda context: None)(context)

    @workflow("three")
    class Three:
        class Context(BaseModel):
            number: int
            total: int = 0

        @step(start=True)
        def first(self):
            called("first", self.context)
            self.context.total += 1
            return goto(self.second)

        @step()
        def second(self):
            called("second", self.context)
            self.context.total += 10
            return goto(self.third)

        @step()
        def third(self):
            called("third", self.context)
            return complete(total=self.context.total + 100)

    return Three


def start(name: str, number: int) -> list[WorkflowRun]:
    with transaction.atomic():
        return [engine.start(name, number=each) for each in range(number)]


def perform() -> int:
    """Perform what is due as a worker does."""
    return drain(heartbeat=True)


def history(run: WorkflowRun) -> list[tuple[str, int, int, str]]:
    return list(run.steps.order_by("pk").values_list("step", "visit", "attempt", "outcome"))


WHOLE = [("first", 1, 1, "goto"), ("second", 2, 1, "goto"), ("third", 3, 1, "complete")]


def common(queries: CaptureQueriesContext) -> list[str]:
    return [each["sql"] for each in queries if f'UPDATE "{WorkflowRun._meta.db_table}" AS kept' in each["sql"]]


def test_each_run_takes_each_step_once_and_keeps_its_history(three, calls):
    reports = Counter[int]()

    def note(sender, row, error, **kwargs):
        if sender is WorkflowRun:
            assert error is None
            reports[row.pk] += 1

    attempt_finished.connect(note)
    runs = start("three", 7)
    try:
        assert perform() == 7
    finally:
        attempt_finished.disconnect(note)
    for number, run in enumerate(runs):
        run.refresh_from_db()
        assert (run.status, run.data) == ("completed", {"number": number, "total": 111})
        assert (run.seq, run.losses, run.lease, run.wake_at, run.attempt) == (3, 0, None, None, 0)
        assert history(run) == WHOLE
        assert [each for each, name in calls if each == number] == [number] * 3
    assert reports == Counter({run.pk: 3 for run in runs})


@shares
def test_the_steps_of_one_claim_share_a_statement(three, calls):
    start("three", 20)
    with CaptureQueriesContext(connection) as queries:
        perform()
    assert WorkflowRun.objects.filter(status="completed").count() == 20
    assert len(common(queries)) == 3
    assert [name for _, name in calls] == ["first"] * 20 + ["second"] * 20 + ["third"] * 20
    assert StepExecution.objects.count() == 60


@shares
def test_a_step_begins_when_the_progress_before_it_is_committed(three, hooks):
    def looks(context) -> None:
        run = WorkflowRun.objects.get(data__number=context.number)
        assert run.current_step == "second"
        assert history(run) == WHOLE[:1]

    hooks["second"] = looks
    start("three", 5)
    perform()
    assert list(map(history, WorkflowRun.objects.all())) == [WHOLE] * 5


def test_steps_that_write_commit_as_before():
    @workflow("writing")
    class Writing:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def first(self):
            if self.context.number % 2:
                leave(f"first {self.context.number}")
            return goto(self.second)

        @step()
        def second(self):
            if not self.context.number % 3:
                leave(f"second {self.context.number}")
            return complete()

    start("writing", 6)
    perform()
    assert sorted(effects()) == ["first 1", "first 3", "first 5", "second 0", "second 3"]
    assert set(WorkflowRun.objects.values_list("status", "losses")) == {("completed", 0)}
    assert StepExecution.objects.count() == 12


def test_every_outcome_beside_others():
    @workflow("child")
    class Child:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def only(self):
            return complete()

    @workflow("many")
    class Many:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def first(self):
            match self.context.number:
                case 0:
                    return complete()
                case 1:
                    return fail("on purpose")
                case 2:
                    return wait("word", then=self.last)
                case 3:
                    return run_subflow("child", number=1, then=self.last)
                case 4:
                    raise RuntimeError("the fifth")
                case 5:
                    return "nonsense"
            return goto(self.last)

        @step(retry=Retry(max_attempts=1))
        def last(self):
            return complete()

    Many.first.__step__ = step(start=True, retry=Retry(max_attempts=1))(Many.first).__step__
    runs = start("many", 8)
    perform()
    engine.signal("word")
    perform()
    for run in runs:
        run.refresh_from_db()
    assert [run.status for run in runs[:4]] == ["completed", "failed", "completed", "completed"]
    assert [run.status for run in runs[6:]] == ["completed"] * 2
    assert [history(run)[-1][0] for run in runs] == ["first", "first", "last", "last", "first", "first", "last", "last"]
    assert "the fifth" in runs[4].error
    assert "not an outcome" in runs[5].error


@shares
def test_a_run_that_is_cancelled_meanwhile_goes_no_further(three, calls, hooks):
    def cancels(context) -> None:
        if context.number == 3:
            engine.cancel(runs[0], reason="by another")

    hooks["first"] = cancels
    runs = start("three", 4)
    perform()
    for run in runs:
        run.refresh_from_db()
    assert [run.status for run in runs] == ["cancelled", "completed", "completed", "completed"]
    assert (0, "second") not in calls
    assert all(history(run) == WHOLE for run in runs[1:])


@shares
@pytest.mark.parametrize("is_sent", [False, True], ids=["not written", "written, and the answer was lost"])
def test_a_common_write_that_fails_is_made_row_by_row(three, calls, is_sent):
    failed: list[str] = []

    def fail_once(execute, sql, params, many, context):
        if "SKIP LOCKED), given AS" in sql and not failed:
            failed.append(sql)
            if is_sent:
                execute(sql, params, many, context)
            raise database_failure()
        return execute(sql, params, many, context)

    runs = start("three", 4)
    with connection.execute_wrapper(fail_once):
        perform()
    assert failed
    for run in runs:
        run.refresh_from_db()
        assert (run.status, run.losses, run.seq) == ("completed", 0, 3)
        assert history(run) == WHOLE
    assert len(calls) == 12


def test_what_must_stop_releases_the_others_where_they_are(three, calls):
    runs = start("three", 5)
    drain(heartbeat=True, stop=lambda: len(calls) >= 5)
    for run in runs:
        run.refresh_from_db()
        assert (run.lease, run.losses) == (None, 0)
        assert run.wake_at is None or run.wake_at <= timezone.now()
    perform()
    for run in runs:
        run.refresh_from_db()
        assert (run.status, history(run)) == ("completed", WHOLE)
    assert len(calls) == 15


def test_a_process_that_dies_at_any_statement_repeats_no_committed_step(three, calls):
    for statement in count(1):
        calls.clear()
        runs = start("three", 3)
        with dying(statement):
            perform()
        was_whole = not WorkflowRun.objects.unfinished().exists()
        committed = {(each.run_id, each.step) for each in StepExecution.objects.filter(run__in=runs)}
        before = Counter(calls)
        WorkflowRun.objects.unfinished().update(wake_at=timezone.now())  # as if the leases had run out
        while WorkflowRun.objects.unfinished().exists():
            perform()
        after = Counter(calls)
        numbers = {run.pk: run.data["number"] for run in runs}
        for pk, name in committed:
            assert before[numbers[pk], name] == after[numbers[pk], name] == 1
        for run in runs:
            run.refresh_from_db()
            assert [each[0] for each in history(run) if each[3] != "lost"] == ["first", "second", "third"]
            assert run.data["total"] == 111
        assert set(after.values()) <= {1, 2}
        if was_whole:
            break
    assert statement > 5


@shares
def test_a_limited_run_keeps_no_progress(calls):
    @workflow("limited", concurrency=Concurrency(5))
    class Limited:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def only(self):
            calls.append((self.context.number, "only"))
            return complete()

    start("limited", 3)
    with CaptureQueriesContext(connection) as queries:
        perform()
    assert common(queries) == []
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}


def test_an_endless_run_leaves_when_the_budget_is_spent(settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "DRAIN_BUDGET": timedelta(seconds=0.2)}

    @workflow("endless")
    class Endless:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def again(self):
            return goto(self.again)

    @workflow("other")
    class Other:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def only(self):
            others.append(self.context.number)
            return complete()

    others: list[int] = []
    start("endless", 2)
    start("other", 25)  # more than one claim takes
    drain(heartbeat=True, stop=lambda: len(others) == 25, budget=timedelta(seconds=60))
    assert len(others) == 25
    assert set(WorkflowRun.objects.filter(name="endless").values_list("status", "losses")) == {("running", 0)}


@shares
def test_another_thread_may_take_a_run_between_two_steps(three, calls, hooks):
    """The run is held as one that was not started. Who takes it performs it, and this worker does not."""
    taken: list[WorkflowRun] = []

    def gives(context) -> None:
        leases = current_leases()
        assert leases is not None
        taken.extend(leases.take_unstarted())
        hooks.clear()

    hooks["second"] = gives
    runs = start("three", 3)
    perform()
    assert [(run.current_step, run.steps.count()) for run in taken] == [("second", 1)] * 2
    drain(heartbeat=True, claimed=taken)
    for run in runs:
        run.refresh_from_db()
        assert (run.status, history(run), run.losses) == ("completed", WHOLE, 0)
    assert len(calls) == 9


@shares
def test_progress_of_a_run_whose_lease_is_lost_between_two_steps_is_refused(three, hooks):
    def loses(context) -> None:
        later = timezone.now() + timedelta(hours=1)
        WorkflowRun.objects.filter(pk=runs[2].pk).update(lease="another", wake_at=later)
        hooks.clear()

    hooks["second"] = loses
    runs = start("three", 3)
    perform()
    runs[2].refresh_from_db()
    assert (runs[2].lease, history(runs[2])) == ("another", WHOLE[:1])
    assert [history(run) for run in runs[:2]] == [WHOLE] * 2


@shares
def test_a_run_does_not_wait_behind_slow_code(three, hooks, settings, monkeypatch):
    """The heartbeat writes its progress and releases it, so no lease runs out: that would count as a loss."""
    monkeypatch.setattr(commit_group, "MAX_SECONDS", 0.02)
    monkeypatch.setattr("django_ai.automation.queues.heartbeat.MAX_SECONDS", 0.02)
    settings.AUTOMATION = {**settings.AUTOMATION, "HEARTBEAT": timedelta(milliseconds=50)}

    def hangs(context) -> None:
        if context.number == 1:
            first = WorkflowRun.objects.filter(pk=runs[0].pk)
            until(lambda: first.get().lease is None, 20, "The release of the first run")
            waiting.append(first.get())

    waiting: list[WorkflowRun] = []
    hooks["first"] = hangs
    runs = start("three", 2)
    perform()
    assert [(each.current_step, each.losses) for each in waiting] == [("second", 0)]
    for run in runs:
        run.refresh_from_db()
        assert (run.status, run.losses, history(run)) == ("completed", 0, WHOLE)


@shares
def test_beside_other_threads_a_run_takes_its_steps_at_once(three, calls):
    """There, code waits all the time, and a run would wait behind that of another."""

    class Alone:
        def places(self) -> int:
            return 20

        def gives_way(self) -> bool:
            return False

        def suspended(self, leases) -> None:
            pass

    start("three", 2)
    drain(heartbeat=True, beside=Alone())
    assert calls == [(number, name) for number in range(2) for name in ("first", "second", "third")]
