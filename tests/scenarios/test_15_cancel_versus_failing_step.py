"""15, cancel versus a failing step: in every order, a cancelled run or agent stays cancelled and is not retried."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import AgentManager, Retry, agent, engine, handler, step, workflow
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.queues import attempt
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Message, Person
from tests.support.race import Behind, elsewhere, row_locks, then_before_the_commit
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

during: list = []


@pytest.fixture(autouse=True)
def failing():
    def work() -> None:
        leave("tried")
        while during:
            during.pop()()
        raise RuntimeError("fails")

    @workflow("fails")
    class Fails:
        class Context(BaseModel):
            tries: int = 1

        @step(start=True, atomic=False)
        def begin(self):
            work()

    @workflow("fails once")
    class FailsOnce:
        class Context(BaseModel):
            tries: int = 1

        @step(start=True, atomic=False, retry=Retry(max_attempts=1))
        def begin(self):
            work()

    @agent("fails", match={"guest_id": "{{ ctx.guest_id }}"})
    class Failing:
        class Context(BaseModel):
            guest_id: int

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, atomic=False)
        def heard(self):
            work()

    yield
    during.clear()


class OfRuns:
    def begin(self, name: str = "fails") -> WorkflowRun:
        return engine.start(name)

    def cancel(self, row: WorkflowRun) -> bool:
        return engine.cancel(row.pk, "Enough.")


class OfAgents:
    def begin(self) -> AgentRun:
        guest = Person.objects.create()
        run = AgentManager.spawn("fails", guest_id=guest.pk)
        drain()
        Message.objects.create(sender=guest)
        return run

    def cancel(self, row: AgentRun) -> bool:
        return AgentManager.cancel(row.pk, "Enough.")


both = pytest.mark.parametrize("of", [OfRuns(), OfAgents()], ids=["run", "agent"])


def stays_cancelled(row, tried: int = 1) -> None:
    for minutes in range(4):
        drain(timezone.now() + timedelta(minutes=minutes))
    row.refresh_from_db()
    assert (row.status, row.error, row.wake_at, row.lease) == ("cancelled", "Enough.", None, None)
    assert effects() == ["tried"] * tried
    assert HandlerExecution.objects.exclude(status="cancelled").count() == 0


@both
def test_15_cancelled_while_the_step_runs(of):
    row = of.begin()
    during.append(lambda: elsewhere(lambda: of.cancel(row)))
    drain()
    stays_cancelled(row)


@both
def test_15_cancelled_between_the_exception_and_its_record(of, monkeypatch):
    row = of.begin()
    real = attempt.commit

    def late(*arguments):
        monkeypatch.setattr(attempt, "commit", real)
        elsewhere(lambda: of.cancel(row))
        return real(*arguments)

    monkeypatch.setattr(attempt, "commit", late)
    drain()
    stays_cancelled(row)


@both
def test_15_cancelled_after_the_failure_was_recorded(of):
    row = of.begin()
    drain()
    row.refresh_from_db()
    assert row.status in ("waiting", "active")
    assert of.cancel(row) is True
    stays_cancelled(row)


@row_locks
@both
def test_15_cancelled_while_the_failure_is_being_recorded(of, monkeypatch):
    """The cancel waits for the uncommitted record of the failure, and then cancels the row."""
    row = of.begin()
    behind = then_before_the_commit(monkeypatch, attempt, "commit", lambda: Behind(lambda: of.cancel(row)))
    drain()
    assert behind[0].join() is True
    stays_cancelled(row)


@row_locks
@both
def test_15_fails_while_it_is_being_cancelled(of):
    """The record of the failure waits for the uncommitted cancel, and is then refused."""
    row = of.begin()
    with transaction.atomic():
        # Another worker claims the row before the cancel locks it.
        began, worker = [], []

        def cancel_first() -> None:
            began.append(True)

        during.append(cancel_first)
        elsewhere_claims = _claimed_elsewhere(type(row))
        assert of.cancel(row) is True
        worker.append(Behind(lambda: _perform(elsewhere_claims)))
    worker[0].join()
    assert began == [True]
    stays_cancelled(row)


def _claimed_elsewhere(model):
    """Claim and commit as another worker, outside the transaction that is open here."""
    from django_ai.automation.queues.claim import claim

    found = []
    elsewhere(lambda: found.extend(claim(model, timezone.now(), 1)))
    return found[0]


def _perform(row) -> None:
    from django_ai.automation.exceptions import LeaseLostError

    try:
        row.perform(timezone.now)
    except LeaseLostError:
        pass


def test_15_a_run_that_has_failed_for_good_is_not_cancelled_any_more():
    row = OfRuns().begin("fails once")
    drain()
    assert engine.cancel(row) is False
    assert row.status == "failed"
