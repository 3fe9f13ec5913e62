"""A Context is replaced, merged, repaired or resumed. No change is lost, and no payload is merged twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from pydantic import BaseModel, Field

from django_ai.automation import (
    AgentManager,
    Retry,
    agent,
    complete,
    engine,
    event_workflow,
    fail,
    get_context,
    get_wake,
    goto,
    handler,
    on_fail,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import WorkflowRun
from django_ai.automation.workflows.outcomes import run_subflow
from tests.apps.front_desk.models import Message, Person
from tests.apps.story.models import Probe
from tests.support.rows import effects, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

ONCE = Retry(max_attempts=1)
TWICE = Retry(max_attempts=2, base_delay=timedelta(0))


class Pet(BaseModel):
    name: str = ""


class Cat(Pet):
    lives: int = 9


class State(BaseModel):
    n: int = 0
    text: str = ""
    anything: Any = None
    pets: list[Pet] = Field(default_factory=list)


def flow(first, context: type[BaseModel] = State, name: str = "flow", retry: Retry = ONCE, **methods):
    first.__name__ = "first"
    body = {"Context": context, "first": step(start=True)(first), "__module__": __name__, "__qualname__": name}
    for title, method in methods.items():
        method.__name__ = title
        marked = hasattr(method, "__on_fail__") or hasattr(method, "__step__")
        body[title] = method if marked else step()(method)
    return workflow(name, default_retry=retry)(type(name, (), body))


def run(work, name: str = "flow", **arguments) -> WorkflowRun:
    return again(engine.start(name, **arguments), work)


def again(row: WorkflowRun, work) -> WorkflowRun:
    work()
    row.refresh_from_db()
    return row


# -- assigned ----------------------------------------------------------------------------------------------------------


def test_47_an_assigned_context_is_kept(work):
    def first(self):
        self.context = self.context.model_copy(update={"n": 7})
        get_context().text = "the same object"
        return complete()

    flow(first)
    found = run(work)
    assert (found.status, found.data["n"], found.data["text"]) == ("completed", 7, "the same object")


def test_47_an_assigned_context_is_kept_when_its_step_raises(work):
    def first(self):
        if self.context.n:
            return complete()
        self.context = State(n=7)
        raise LookupError("not yet")

    flow(first, retry=TWICE)
    found = run(work)
    assert (found.status, found.data["n"]) == ("completed", 7)


def test_47_only_a_context_can_be_assigned(work):
    def first(self):
        self.context = {"n": 7}
        return complete()

    flow(first)
    found = run(work, n=3)
    assert (found.status, found.data["n"]) == ("failed", 3)
    assert "flow set self.context to {'n': 7}; it must be a State" in found.error


# -- @on_fail ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raises", "returns"])
def test_47_changes_in_on_fail_are_kept(work, how):
    def first(self):
        self.context.n = 1
        if how == "raises":
            raise LookupError("no room")
        return fail("no room")

    @on_fail
    def sorry(self, error):
        self.context = self.context.model_copy(update={"text": "told the guest"})

    flow(first, sorry=sorry)
    found = run(work)
    assert (found.status, found.data["n"], found.data["text"]) == ("failed", 1, "told the guest")


def test_47_an_on_fail_that_leaves_what_cannot_be_stored_changes_nothing(work):
    @on_fail(retry=Retry(max_attempts=1))
    def sorry(self, error):
        leave("rolled back")
        self.context.anything = object()

    flow(lambda self: fail("no room"), sorry=sorry)
    found = run(work, text="kept")
    assert (found.status, found.data["text"], effects()) == ("failed", "kept", [])
    assert "no room\n\nThen its @on_fail failed:" in found.error
    assert "cannot be stored" in found.error


def test_47_a_parent_hears_what_on_fail_has_left(work):
    @on_fail
    def sorry(self, error):
        self.context.text = "repaid"

    def after(self):
        leave(get_wake().payload["data"]["text"])
        return complete()

    flow(lambda self: fail("no room"), name="child", sorry=sorry)
    flow(lambda self: run_subflow("child", then="after"), name="parent", after=after)
    run(work, "parent")
    assert effects() == ["repaid"]


# -- payloads ----------------------------------------------------------------------------------------------------------


def test_47_a_payload_is_merged_though_the_step_after_it_waits(work):
    def second(self):
        return complete()

    second.__name__ = "second"
    waits = wait_for_event("probe_ready", match={})(step()(second))
    flow(lambda self: wait("go", then="second"), second=waits)
    row = run(work)
    engine.signal("go", {"n": 5}, run=row)
    again(row, work)
    assert (row.status, row.data["n"]) == ("suspended", 5)
    Probe.objects.create(name="x", ready=True)
    found = again(row, work)
    assert (found.status, found.data["n"]) == ("completed", 5)


def test_47_a_payload_is_merged_when_the_first_try_was_unstorable(work):
    tries = []

    def second(self):
        tries.append(self.context.n)
        self.context.anything = object() if len(tries) == 1 else None
        if len(tries) == 1:
            raise LookupError("not yet")
        return complete()

    flow(lambda self: wait("go", then="second"), retry=TWICE, second=second)
    row = run(work)
    engine.signal("go", {"n": 5}, run=row)
    found = again(row, work)
    assert (found.status, found.data["n"], tries) == ("completed", 5, [5, 5])


def test_47_resume_does_not_merge_a_payload_again(work):
    def second(self):
        if self.context.n == 5:
            self.context.n = 6
            raise LookupError("once")
        return complete()

    flow(lambda self: wait("go", then="second"), second=second)
    row = run(work)
    engine.signal("go", {"n": 5}, run=row)
    assert again(row, work).status == "failed"
    row.resume()
    found = again(row, work)
    assert (found.status, found.data["n"]) == ("completed", 6)


def test_47_resume_does_not_merge_the_end_of_a_child(work):
    class Told(BaseModel):
        status: str = "mine"
        data: dict = Field(default_factory=dict)
        error: str = "mine"

    def after(self):
        if self.context.data.setdefault("tries", 0) == 0:
            self.context.data["tries"] = 1
            raise LookupError("once")
        return complete()

    flow(lambda self: complete(), name="child")
    flow(lambda self: run_subflow("child", then="after"), name="parent", context=Told, after=after)
    row = run(work, "parent")
    assert row.status == "failed"
    row.resume()
    found = again(row, work)
    assert (found.status, found.data) == ("completed", {"status": "mine", "data": {"tries": 1}, "error": "mine"})


# -- the next step sees the stored Context -----------------------------------------------------------------------------


def test_47_a_subclass_that_would_lose_its_fields_is_refused(work):
    def first(self):
        self.context.pets.append(Cat(name="Tom", lives=7))
        return complete()

    flow(first)
    found = run(work)
    assert found.status == "failed"
    assert "a Cat would be loaded as a Pet, without its own fields" in found.error


def test_47_a_subclass_that_comes_back_as_itself_is_kept(work):
    class Home(BaseModel):
        pets: list[Cat | Pet] = Field(default_factory=list)

    def first(self):
        self.context.pets.append(Cat(name="Tom", lives=7))
        return goto("second")

    def second(self):
        leave(repr(self.context.pets))
        return complete()

    flow(first, context=Home, second=second)
    assert run(work).status == "completed"
    assert effects() == ["[Cat(name='Tom', lives=7)]"]


def test_47_a_goto_within_one_worker_sees_what_json_gives(work):
    def first(self):
        self.context.anything = (1, 2)
        return goto("second")

    def second(self):
        leave(repr(self.context.anything))
        return complete()

    flow(first, second=second)
    run(work)
    assert effects() == ["[1, 2]"]


def test_47_a_first_step_with_an_unstorable_context_can_go_on(work):
    good = []

    @event_workflow("probe_ready", name="flow", default_retry=ONCE)
    class Flow:
        class Context(BaseModel):
            anything: Any = None
            name: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(name=event.entity.name)

        @step(start=True)
        def first(self):
            self.context.anything = None if good else object()
            return complete()

    Probe.objects.create(name="x", ready=True)
    work()
    row = the_run(name="flow")
    assert row.status == "failed"
    good.append(True)
    row.resume()
    found = again(row, work)
    assert (found.status, found.data["name"]) == ("completed", "x")


def test_47_a_payload_is_merged_after_a_resume_of_a_step_that_ended_unstorable(work):
    good: list[bool] = []

    def second(self):
        self.context.anything = None if good else object()
        return complete()

    flow(lambda self: wait("go", then="second"), second=second)
    row = run(work)
    engine.signal("go", {"n": 5}, run=row)
    assert again(row, work).status == "failed"
    good.append(True)
    row.resume()
    found = again(row, work)
    assert (found.status, found.data["n"]) == ("completed", 5)


# -- agents ------------------------------------------------------------------------------------------------------------


class Shelf(BaseModel):
    n: int = 0
    text: str = ""
    anything: Any = None


def keeper(heard, **options) -> AgentRun:
    """Declare and spawn an agent whose handler calls ``heard`` for each message."""

    @agent("keeper", default_retry=TWICE, **options)
    class Versioned:
        Context = Shelf

        @handler("message_received")
        def hears(self, ctx, event):
            heard(self, ctx, event.entity.text)

    return AgentManager.spawn("keeper", n=3, text="a" if options else "")


def messages(found: AgentRun, work, *texts: str) -> AgentRun:
    sender = Person.objects.create()
    with transaction.atomic():
        for text in texts:
            Message.objects.create(sender=sender, text=text)
    work()
    found.refresh_from_db()
    return found


def test_47_a_context_that_a_handler_assigns_is_kept(work):
    def heard(self, ctx, text):
        self.context = self.context.model_copy(update={"n": self.context.n + 1})
        self.context.text += text

    found = messages(keeper(heard), work, "a", "b")
    assert (found.data["n"], found.data["text"]) == (5, "ab")


def test_47_a_context_that_a_handler_assigns_is_kept_when_it_raises(work):
    def heard(self, ctx, text):
        if self.context.n == 3:
            self.context = Shelf(n=7)
            raise LookupError("not yet")

    found = messages(keeper(heard), work, "a")
    assert (found.data["n"], found.executions.get().status) == (7, "completed")


def test_47_a_handler_can_assign_only_a_context(work):
    def heard(self, ctx, text):
        self.context = {"n": 7}

    found = messages(keeper(heard), work, "a")
    execution = found.executions.get()
    assert (found.data["n"], execution.status) == (3, "failed")
    assert "keeper set self.context to {'n': 7}; it must be a Shelf" in execution.error
    assert "The changes of the handler to its Context are lost" in execution.error


def test_47_each_handler_sees_the_context_as_it_is_stored(work):
    """The second handler sees the Context as JSON stores it, in one drain, in a later one and in the time machine."""
    seen = []

    def heard(self, ctx, text):
        seen.append(ctx.anything)
        ctx.anything = ("a", 1)

    found = messages(keeper(heard), work, "a", "b")
    assert seen == [None, ["a", 1]]
    with time_machine() as machine:
        messages(found, lambda: machine.process(), "c", "d")
    assert seen == [None, ["a", 1], ["a", 1], ["a", 1]]


def test_47_an_assigned_context_routes_the_agent(work):
    def heard(self, ctx, text):
        leave(text)
        self.context = Shelf(text="b")

    found = keeper(heard, match={"text": "{{ ctx.text }}"})
    messages(found, work, "a")
    messages(found, work, "a", "b")
    assert effects() == ["a", "b"]
