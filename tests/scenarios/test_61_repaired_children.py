"""A resumed parent receives the new result of its repaired child, and starts no second child."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, fail, get_wake, goto, on_fail, run_subflow, step, workflow
from django_ai.automation.exceptions import NotResumableError
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.support.rows import effects, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

ONCE = Retry(max_attempts=1)


@pytest.fixture
def family(work) -> tuple[WorkflowRun, WorkflowRun, list[str]]:
    """Return a parent that failed because its child failed, the child, and the list that makes the child fail."""
    bank = ["is away"]

    @workflow("charge", default_retry=ONCE)
    class Charge:
        class Context(BaseModel):
            pass

        @step(start=True)
        def charge(self):
            if bank:
                raise LookupError(f"the bank {bank[0]}")
            leave("charged")
            return complete()

    @workflow("booking", default_retry=ONCE)
    class Booking:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return run_subflow("charge", then=self.after)

        @step()
        def after(self):
            status = get_wake().payload["status"]
            return complete() if status == "completed" else fail(f"the charge {status}")

        @on_fail
        def sorry(self, error):
            leave("sorry")

    parent = engine.start("booking")
    work()
    parent.refresh_from_db()
    child = the_run(name="charge")
    assert (parent.status, child.status) == ("failed", "failed")
    return parent, child, bank


def repair(child: WorkflowRun, bank: list[str], work) -> None:
    bank.clear()
    child.resume()
    work()
    child.refresh_from_db()
    assert child.status == "completed"


def test_61_a_parent_hears_of_its_repaired_child(family, work):
    parent, child, bank = family
    repair(child, bank, work)
    parent.resume()
    work()
    parent.refresh_from_db()
    assert (parent.status, effects()) == ("completed", ["sorry", "charged"])
    assert WorkflowRun.objects.filter(name="charge").count() == 1
    assert not Signal.objects.filter(run=parent, consumed_at=None).exists()


def test_61_a_step_that_would_start_a_second_child_is_refused(family, work):
    parent, child, bank = family
    repair(child, bank, work)
    with pytest.raises(NotResumableError, match="has not received the final end of its child"):
        parent.resume(step="begin")
    work()
    assert effects() == ["sorry", "charged"]
    parent.resume()
    work()
    parent.refresh_from_db()
    assert parent.status == "completed"


def test_61_a_child_that_fails_again_is_heard_of_too(family, work):
    parent, child, bank = family
    child.resume()
    work()
    parent.resume()
    work()
    parent.refresh_from_db()
    assert (parent.status, parent.error) == ("failed", "the charge failed")
    repair(child, bank, work)
    parent.resume()
    work()
    parent.refresh_from_db()
    assert (parent.status, effects().count("charged")) == ("completed", 1)


def test_61_a_step_is_allowed_where_nothing_was_repaired(family, work):
    parent, _, bank = family
    bank.clear()
    parent.resume(step="begin")
    work()
    parent.refresh_from_db()
    assert (parent.status, effects()) == ("completed", ["sorry", "charged"])


def test_61_a_parent_waits_for_a_child_that_is_under_way_again(family, work):
    parent, child, bank = family
    bank.clear()
    child.resume()
    with pytest.raises(NotResumableError, match="has not received the final end of its child"):
        parent.resume(step="begin")
    parent.resume()
    parent.refresh_from_db()
    assert parent.status == "suspended"
    work()
    parent.refresh_from_db()
    assert (parent.status, effects()) == ("completed", ["sorry", "charged"])
    assert WorkflowRun.objects.filter(name="charge").count() == 1


def test_61_a_parent_of_a_child_that_is_under_way_for_long_is_woken_by_its_end(family, work):
    parent, child, bank = family
    WorkflowRun.objects.filter(pk=child.pk).update(status="running")  # leased by a slow worker
    parent.resume()
    work()
    parent.refresh_from_db()
    assert (parent.status, parent.wake_at, parent.lease) == ("suspended", None, None)
    WorkflowRun.objects.filter(pk=child.pk).update(status="failed")
    repair(child, bank, work)
    parent.refresh_from_db()
    assert (parent.status, effects()) == ("completed", ["sorry", "charged"])


@pytest.fixture
def paid(work) -> WorkflowRun:
    """Return a parent that received the completion of its child and failed in a later step."""

    @workflow("charge", default_retry=ONCE)
    class Charge:
        class Context(BaseModel):
            pass

        @step(start=True)
        def charge(self):
            leave("charged")
            return complete()

    printer = ["is out of paper"]

    @workflow("booking", default_retry=ONCE)
    class Booking:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return run_subflow("charge", then=self.after)

        @step()
        def after(self):
            leave("after")
            return goto(self.ticket)

        @step()
        def ticket(self):
            if printer:
                raise LookupError(f"the printer {printer.pop()}")
            leave("ticket")
            return complete()

    parent = engine.start("booking")
    work()
    parent.refresh_from_db()
    assert (parent.status, parent.current_step) == ("failed", "ticket")
    return parent


def test_61_a_step_whose_child_completed_is_not_entered_again_by_accident(paid, work):
    child = the_run(name="charge")
    with pytest.raises(NotResumableError, match=f"'begin' has started charge #{child.pk}, which is completed.*--again"):
        engine.resume(paid, step="begin")
    work()
    assert effects() == ["charged", "after"]
    engine.resume(paid, step="after")
    work()
    paid.refresh_from_db()
    assert (paid.status, effects()) == ("completed", ["charged", "after", "after", "ticket"])


def test_61_a_second_child_can_be_asked_for(paid, work):
    with pytest.raises(CommandError, match=r"1 row\(s\) could not be resumed"):
        call_command("automation_resume", "workflow", pk=[paid.pk], failed=True, step="begin", stderr=StringIO())
    with pytest.raises(CommandError, match="--again needs --step"):
        call_command("automation_resume", "workflow", pk=[paid.pk], failed=True, again=True)
    call_command("automation_resume", "workflow", pk=[paid.pk], failed=True, step="begin", again=True)
    work()
    paid.refresh_from_db()
    assert (paid.status, effects().count("charged")) == ("completed", 2)
