"""``engine.signal(...).warning``: why a run may never receive a signal."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation.workflows.core import complete, engine, fail, step, wait, wait_for_event, workflow
from django_ai.automation.workflows.models import Signal
from tests.support.rows import status
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)


class Asks:
    class Context(BaseModel):
        pass

    @step(start=True)
    def first(self):
        return wait("approval", then=self.second)

    @step()
    def second(self):
        return wait.for_signal("delivery", then=self.third)

    @step()
    def third(self):
        return wait_for_event("reservation_confirmed")


class Computes:
    class Context(BaseModel):
        pass

    @step(start=True)
    def first(self):
        return wait(f"approval:{1 + 1}")


class Silent:
    class Context(BaseModel):
        pass

    @step(start=True)
    def first(self):
        return complete()


def test_a_name_that_no_step_waits_for_is_sent_with_a_warning(work):
    workflow("asks")(Asks)
    found = run(work, "asks")
    signal = engine.signal("approvals", run=found)
    assert signal.warning == (
        f"No step of 'asks' waits for 'approvals', so asks #{found.pk} may never receive it. Did you mean 'approval'?"
    )
    assert (
        "They wait for 'approval', 'delivery', 'event:reservation_confirmed'." in engine.signal("x", run=found).warning
    )
    assert Signal.objects.count() == 2
    work()
    assert status(found) == "suspended"


def test_what_a_step_waits_for_now_or_later_has_no_warning(work, django_assert_num_queries):
    workflow("asks")(Asks)
    found = run(work, "asks")
    with django_assert_num_queries(2):
        assert engine.signal("approval", run=found).warning == ""
    for name in ("delivery", "event:reservation_confirmed"):
        assert engine.signal(name, run=found.pk).warning == ""
    assert engine.signal("approvals").warning == ""  # to all runs


def test_a_computed_name_and_code_without_source_are_unknown(work):
    workflow("computes")(Computes)
    flow(lambda self: wait("word"))
    for found in (run(work, "computes"), run(work)):
        assert engine.signal("anything", run=found).warning == ""


def test_a_run_that_has_ended_is_named(work):
    workflow("silent")(Silent)
    found = run(work, "silent")
    assert (
        engine.signal("word", run=found).warning == f"silent #{found.pk} is completed, and receives nothing any more."
    )
    flow(lambda self: fail("no"))
    failed = run(work)
    assert "has failed, and receives 'word' only if it is resumed" in engine.signal("word", run=failed).warning
    fresh = engine.start("silent")
    assert "No step of 'silent' waits for a signal" in engine.signal("word", run=fresh).warning
