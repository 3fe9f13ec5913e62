"""``Debounce`` and ``Batch``: what they refuse, and where they may be declared."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import Batch, Debounce, complete, event_workflow, on_event, step
from django_ai.automation.exceptions import DefinitionError

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Debounce(timedelta(0)), r"Debounce\(period=.*positive timedelta"),
        (lambda: Debounce(60), r"Debounce\(period=60\).*positive timedelta"),
        (lambda: Debounce(MINUTE, max_wait=timedelta(seconds=1)), "max_wait= must not be shorter"),
        (lambda: Debounce(MINUTE, key="customer"), r"Debounce\(key='customer'\).*with an expression"),
        (lambda: Batch(0, timeout=MINUTE), r"Batch\(size=0\).*whole number"),
        (lambda: Batch(True, timeout=MINUTE), r"Batch\(size=True\).*whole number"),
        (lambda: Batch(2, timeout=None), r"Batch\(timeout=None\).*positive timedelta"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(DefinitionError, match=message):
        make()


def declare_callback(**options):
    on_event("paid", name="test window", **options)(lambda events: None)


def declare_workflow(**options):
    class Collector:
        class Context(BaseModel):
            pass

        @classmethod
        def create_context(cls, events):
            return cls.Context()

        @step(start=True)
        def first(self):
            return complete()

    event_workflow("paid", name="test window", **options)(Collector)


@pytest.mark.parametrize("declare", [declare_callback, declare_workflow])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"debounce": MINUTE}, r"debounce=.* must be a Debounce"),
        ({"batch": Debounce(MINUTE)}, r"batch=.* must be a Batch"),
        ({"debounce": Debounce(MINUTE), "batch": Batch(2, timeout=MINUTE)}, "contradict each other"),
        ({"debounce": Debounce(MINUTE), "offset": MINUTE}, "an offset cannot be combined"),
        ({"debounce": Debounce(MINUTE, key="{{ ctx.x }}")}, r"ctx\.x.*is not allowed"),
    ],
)
def test_contradictions_are_refused_at_import(declare, options, message):
    with pytest.raises(DefinitionError, match=message):
        declare(**options)


def test_a_function_must_take_the_list_of_events():
    with pytest.raises(DefinitionError, match=r"is called with \(events\)"):
        on_event("paid", debounce=Debounce(MINUTE))(lambda: None)


def test_a_workflow_must_make_its_context_of_events():
    class Plain:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    with pytest.raises(DefinitionError, match=r"need a class method create_context\(cls, events\)"):
        event_workflow("paid", debounce=Debounce(MINUTE))(Plain)
