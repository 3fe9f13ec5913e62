"""Unusual definitions, such as subclasses, steps of other classes and attributes set on instances.

A run executes only steps of its own class, each on a new instance. Invalid references are refused immediately.
"""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation import agent, complete, engine, goto, handler, run_subflow, step, wait, workflow
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.testing import runs_of
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Probe
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


class Nothing(BaseModel):
    pass


def a_child() -> type:
    @workflow("child")
    class Child:
        class Context(BaseModel):
            who: str = "nobody"

        @step(start=True)
        def begin(self):
            leave(f"child of {self.context.who}")
            return complete()

    return Child


def end_of(run: WorkflowRun) -> tuple[str, str]:
    run.refresh_from_db()
    return run.status, run.error


def test_53_a_subflow_is_given_by_its_class(work):
    child = a_child()

    @workflow("parent")
    class Parent:
        class Context(Nothing):
            pass

        @step(start=True)
        def begin(self):
            return run_subflow(child, then=self.ended, who="parent")

        @step()
        def ended(self):
            return complete()

    run = engine.start("parent")
    work()
    assert end_of(run) == ("completed", "")
    assert effects() == ["child of parent"]


@pytest.mark.parametrize("wrong", [3, None, Nothing, a_child], ids=["number", "None", "no workflow", "function"])
def test_53_what_is_no_workflow_is_refused_at_once(work, wrong):
    @workflow("parent")
    class Parent:
        class Context(Nothing):
            pass

        @step(start=True)
        def begin(self):
            return run_subflow(wrong)

    run = engine.start("parent")
    work()
    status, error = end_of(run)
    assert status == "failed"
    assert "DefinitionError" in error
    assert run.steps.count() == 1  # it was not retried


def test_53_a_subclass_that_is_not_decorated_starts_nothing():
    class Grandchild(a_child()):  # type: ignore[misc]
        @step(start=True)
        def begin(self):
            return complete()

    for call in (lambda: engine.start(Grandchild), lambda: run_subflow(Grandchild), lambda: runs_of(Grandchild)):
        with pytest.raises(DefinitionError, match=r"Grandchild|neither a workflow nor an agent"):
            call()
    assert not WorkflowRun.objects.exists()


def test_53_a_subclass_of_an_agent_spawns_nothing():
    @agent("keeper", spawn_on="probe_ready")
    class Versioned:
        class Context(Nothing):
            pass

        @handler("probe_ready")
        def note(self, ctx):
            pass

    class Other(Versioned):
        pass

    with pytest.raises(DefinitionError, match=r"Only its base class .*Versioned is decorated"):
        AgentManager.spawn(Other)


@pytest.mark.parametrize("outcome", ["goto", "then"])
def test_53_a_step_of_another_class_is_refused(work, outcome):
    @workflow("other")
    class Other:
        class Context(Nothing):
            pass

        @step(start=True)
        def begin(self):
            return complete()

        @step()
        def finish(self):
            return complete()

    @workflow("mine")
    class Mine:
        class Context(Nothing):
            pass

        @step(start=True)
        def begin(self):
            return goto(Other.finish) if outcome == "goto" else wait("word", then=Other.finish)

        @step()
        def finish(self):
            leave("my own")
            return complete()

    run = engine.start("mine")
    work()
    status, error = end_of(run)
    assert status == "failed"
    assert "Write self.finish" in error
    assert effects() == []


def test_53_a_step_of_the_class_above_is_ones_own(work):
    class Base:
        class Context(Nothing):
            pass

        @step(start=True)
        def begin(self):
            return goto(self.finish)

        @step()
        def finish(self):
            leave("the base's")
            return complete()

    @workflow("heir")
    class Heir(Base):
        @step()
        def finish(self):
            leave("the heir's")
            return complete()

        @step()
        def again(self):
            return goto(Base.begin)

    run = engine.start("heir")
    work()
    assert end_of(run) == ("completed", "")
    WorkflowRun.objects.filter(pk=run.pk).update(status="failed")
    engine.resume(run, step="again")
    work()
    assert end_of(run) == ("completed", "")
    assert effects() == ["the heir's", "the heir's"]


def test_53_each_step_has_an_instance_of_its_own(work):
    """A step does not see instance attributes of the step before, even if one worker executes both."""

    @workflow("forgetful")
    class Forgetful:
        class Context(Nothing):
            pass

        @step(start=True)
        def begin(self):
            self.kept = "kept"
            return goto(self.finish)

        @step()
        def finish(self):
            leave(str(getattr(self, "kept", "nothing")))
            return complete()

    engine.start("forgetful")
    work()
    assert effects() == ["nothing"]


def test_53_each_handler_has_an_instance_of_its_own(work):
    @agent("forgetful", spawn_on="probe_ready")
    class Forgetful:
        class Context(Nothing):
            pass

        @handler("probe_ready")
        def first(self, ctx):
            self.kept = "kept"

        @handler("probe_ready")
        def second(self, ctx):
            leave(str(getattr(self, "kept", "nothing")))

    Probe.objects.create(name="x", ready=True)
    work()
    assert effects() == ["nothing"]
