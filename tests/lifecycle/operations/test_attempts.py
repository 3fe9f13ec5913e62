"""One attempt of user code: what is committed, what is rolled back, and what each failure counts as."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import complete, engine, goto, on_event, step, workflow
from django_ai.automation.db.errors import is_database_failure
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues import attempt as attempt_module
from django_ai.automation.queues.attempt import ShutdownInterrupt
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows import run_session
from django_ai.automation.workflows.models import WorkflowRun, WorkflowStatus
from tests.apps.reservations.models import Effect, Reservation
from tests.support.fault_injection import database_failure

pytestmark = pytest.mark.django_db(transaction=True)

TROUBLE: list[BaseException] = []


@pytest.fixture(autouse=True)
def flows():
    @workflow("attempt:atomic")
    class Atomic:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def work(self):
            self.context.tries += 1
            Effect.objects.create(name="written")
            if TROUBLE:
                raise TROUBLE.pop()
            return complete()

    @workflow("attempt:quiet")
    class Quiet:
        """Steps that run no query. On PostgreSQL the commit of such a step is one statement without BEGIN."""

        class Context(BaseModel):
            pass

        @step(start=True)
        def one(self):
            return goto(self.two)

        @step()
        def two(self):
            return complete()

    yield
    TROUBLE.clear()


def test_a_database_failure_costs_no_try():
    run = engine.start("attempt:atomic")
    TROUBLE.append(database_failure())
    now = timezone.now()
    drain(now)
    run.refresh_from_db()
    assert (run.status, run.attempt, run.lease, run.losses) == (WorkflowStatus.RUNNING, 0, None, 0)
    assert run.data == {"tries": 0}
    assert Effect.objects.count() == 0
    assert run.wake_at > now  # retried after a short pause
    drain(run.wake_at)
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED
    assert [each.outcome for each in run.steps.all()] == ["complete"]


def test_a_fault_of_the_user_in_sql_is_an_ordinary_failure():
    run = engine.start("attempt:atomic")
    now = timezone.now()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")
    except Exception as error:
        assert not is_database_failure(error, connection)
        TROUBLE.append(error)
    drain(now)
    run.refresh_from_db()
    assert (run.status, run.attempt) == (WorkflowStatus.WAITING, 1)
    assert run.data == {"tries": 1}
    assert Effect.objects.count() == 0


@pytest.mark.parametrize(("end", "losses"), [(SystemExit, 1), (KeyboardInterrupt, 1), (ShutdownInterrupt, 0)])
def test_the_end_of_the_process_gives_the_row_back(end, losses):
    run = engine.start("attempt:atomic")
    TROUBLE.append(end())
    with pytest.raises(end):
        drain()
    run.refresh_from_db()
    assert (run.lease, run.attempt, run.losses) == (None, 0, losses)
    assert Effect.objects.count() == 0
    drain()
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED
    assert Effect.objects.count() == 1


def test_a_worker_that_is_stopped_between_two_steps_gives_the_row_back(monkeypatch):
    enter = run_session.RunSession.enter

    def enter_the_first(session, entry):
        if entry.step.name == "two":
            raise ShutdownInterrupt
        return enter(session, entry)

    run = engine.start("attempt:quiet")
    monkeypatch.setattr(run_session.RunSession, "enter", enter_the_first)
    with pytest.raises(ShutdownInterrupt):
        drain()
    run.refresh_from_db()
    assert (run.current_step, run.lease, run.losses) == ("two", None, 0)
    monkeypatch.undo()
    drain()
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED


def test_a_commit_whose_answer_was_lost_is_not_overwritten(monkeypatch):
    """If the connection breaks after a successful commit, the step is not executed again."""
    run = engine.start("attempt:atomic")
    original = attempt_module._run

    def answer_lost(*arguments):
        original(*arguments)
        raise database_failure()

    monkeypatch.setattr(attempt_module, "_run", answer_lost)
    drain()
    monkeypatch.undo()
    drain(timezone.now() + timedelta(seconds=30))
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED
    assert Effect.objects.count() == 1
    assert [each.outcome for each in run.steps.all()] == ["complete"]


def test_a_step_without_queries_commits_with_its_history():
    run = engine.start("attempt:quiet")
    drain()
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED
    assert [(each.step, each.outcome) for each in run.steps.all()] == [("one", "goto"), ("two", "complete")]


def test_on_commit_hooks_of_a_step_run_after_its_progress():
    from django.db import transaction

    seen = []

    @on_event("reservation_confirmed", name="attempt:hook")
    def hook(event):
        transaction.on_commit(lambda: seen.append(CallbackExecution.objects.get(callback="attempt:hook").status))

    Reservation.objects.create(status="confirmed")
    drain()
    assert seen == ["completed"]


def test_an_engine_error_on_one_row_does_not_stop_the_others(monkeypatch):
    bad, good = engine.start("attempt:quiet"), engine.start("attempt:quiet")
    original = WorkflowRun.perform

    def perform(self, clock):
        if self.pk == bad.pk:
            raise ZeroDivisionError("a bug of the engine")
        original(self, clock)

    monkeypatch.setattr(WorkflowRun, "perform", perform)
    drain()
    good.refresh_from_db()
    bad.refresh_from_db()
    assert good.status == WorkflowStatus.COMPLETED
    # The lease is released and a loss is counted. After three losses the row is parked.
    assert (bad.lease, bad.losses) == (None, 1)
    assert "a bug of the engine" in bad.error
    moment = bad.wake_at
    for _ in range(3):
        drain(moment)
        moment += timedelta(seconds=11)
    bad.refresh_from_db()
    assert bad.status == WorkflowStatus.PARKED
    assert "ZeroDivisionError: a bug of the engine" in bad.error
    assert "died" not in bad.error


def test_a_database_failure_outside_user_code_is_no_loss(monkeypatch):
    """A database failure of the engine, such as a deadlock, is retried and never counted as a loss."""
    run = engine.start("attempt:quiet")
    original = WorkflowRun.perform

    def perform(self, clock):
        self.seq += 1  # like a write that was rolled back
        raise database_failure()

    monkeypatch.setattr(WorkflowRun, "perform", perform)
    moment = run.wake_at
    for _ in range(5):
        drain(moment)
        run.refresh_from_db()
        assert (run.lease, run.losses, run.status) == (None, 0, WorkflowStatus.RUNNING)
        assert run.wake_at == moment + timedelta(seconds=1)
        moment = run.wake_at
    monkeypatch.setattr(WorkflowRun, "perform", original)
    drain(moment)
    run.refresh_from_db()
    assert run.status == WorkflowStatus.COMPLETED


@pytest.mark.parametrize(
    "statement",
    ["SELECT locked FROM busy_rooms", "SELECT 1 FROM"],
)
def test_a_mistake_that_speaks_of_locks_is_still_a_mistake(statement):
    with pytest.raises(DatabaseError) as caught, connection.cursor() as cursor:
        cursor.execute(statement)
    assert not is_database_failure(caught.value, connection)


def test_what_follows_a_database_failure_in_a_transaction_is_one_too():
    """Django's ``TransactionManagementError`` after a database failure counts as a database failure too."""
    with pytest.raises(TransactionManagementError) as caught, transaction.atomic():
        try:
            with transaction.mark_for_rollback_on_error():
                raise database_failure()
        except OperationalError:
            pass
        Effect.objects.create(name="too late")
    assert is_database_failure(caught.value, connection)
