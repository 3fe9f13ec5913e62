"""The system checks find targets and waits in the source code of steps."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation.workflows import core
from django_ai.automation.workflows.core import (
    complete,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.definitions import find_workflow
from django_ai.automation.workflows.inspection import EventWait, OnlyWait, Target, calls_of

HOUR = timedelta(hours=1)


def read(name: str) -> set[Target | EventWait]:
    return set(calls_of(find_workflow(name)))


def test_targets_are_found_in_every_form():
    @workflow("targets")
    class Targets:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        def a(self):
            if self.context.n:
                return goto("by_name")
            if self.context.n > 1:
                return goto(self.by_method)
            return core.goto(self.by_module)

        @step()
        def b(self):
            return sleep(HOUR, then="after_sleep")

        @step()
        def c(self):
            return wait("x", HOUR, "positional") if self.context.n else wait("x", timeout=HOUR, on_timeout="keyword")

        @step()
        def d(self):
            return wait.for_signal("x", then=self.after_signal)

        @step()
        def e(self):
            return run_subflow("other", then="after_child")

    assert {(each.step, each.name) for each in read("targets") if isinstance(each, Target)} == {
        ("a", "by_name"),
        ("a", "by_method"),
        ("a", "by_module"),
        ("b", "after_sleep"),
        ("c", "positional"),
        ("c", "keyword"),
        ("d", "after_signal"),
        ("e", "after_child"),
    }


def test_waits_for_events_are_found_in_every_form():
    @workflow("waits")
    class Waits:
        class Context(BaseModel):
            pk: int = 0

        @step(start=True)
        def a(self):
            return wait_for_event("one", HOUR, "late")

        @step()
        def b(self):
            return wait.for_event("two", match={"pk": "{{ ctx.pk }}"})

        @step()
        def c(self):
            return core.wait_for_event("three", match={})

        @wait_for_event("four", timeout=HOUR, on_timeout="late")
        @step()
        def d(self):
            return complete()

        @step()
        def late(self):
            return complete()

    found = read("waits")
    assert {each for each in found if isinstance(each, EventWait)} == {
        EventWait("a", "one", None),
        EventWait("b", "two", ("pk",), ("{{ ctx.pk }}",)),
        EventWait("c", "three", ()),
        EventWait("d", "four", None),
    }
    assert {(each.step, each.name) for each in found if isinstance(each, Target)} == {("a", "late"), ("d", "late")}


def test_choices_are_read_with_their_branches():
    @workflow("choices")
    class Choices:
        class Context(BaseModel):
            pk: int = 0

        @step(start=True)
        def a(self):
            return wait_any(
                paid=wait_for_event("one", match={"pk": "{{ ctx.pk }}"}, then="paid"),
                off=wait("off", HOUR, "late"),
                then=self.b,
                timeout=HOUR,
                on_timeout="too_late",
            )

        @step()
        def b(self):
            return wait_all({"two": core.wait.for_event("two")}, then=self.c)

        @step()
        def c(self):
            return wait_any(a=wait("a"), b=wait("b"))

        @step()
        def d(self):
            return wait_any(a=wait("a", then=self.a), b=wait("b", then=self.b))

    found = read("choices")
    assert {each for each in found if isinstance(each, EventWait)} == {
        EventWait("a", "one", ("pk",), ("{{ ctx.pk }}",)),
        EventWait("b", "two", None),
    }
    assert {(each.step, each.name) for each in found if isinstance(each, Target)} == {
        ("a", "paid"), ("a", "late"), ("a", "b"), ("a", "too_late"), ("b", "c"), ("d", "a"), ("d", "b"),
    }  # fmt: skip
    assert {each for each in found if isinstance(each, OnlyWait)} == {OnlyWait("c", "wait_any")}


def test_what_is_computed_is_left_alone():
    @workflow("computed")
    class Computed:
        class Context(BaseModel):
            target: str = "b"

        @step(start=True)
        def a(self):
            "goto('in_a_docstring')"
            # goto("in_a_comment")
            name = self.context.target
            return goto(name)

    assert read("computed") == set()


def test_a_class_without_source_is_left_alone():
    namespace: dict[str, object] = {}
    exec(
        "from pydantic import BaseModel\n"
        "from django_ai.automation.workflows.core import *\n"
        "@workflow('sourceless')\n"
        "class W:\n"
        "    class Context(BaseModel): pass\n"
        "    @step(start=True)\n"
        "    def a(self): return goto('nowhere')\n",
        namespace,
    )
    assert read("sourceless") == set()
