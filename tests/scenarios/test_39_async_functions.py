"""Scenario 39: a generator is refused at import, and so is an async function that nothing would await."""

from __future__ import annotations

import functools

import pytest
from pydantic import BaseModel

from django_ai.automation.agents.core import agent, handler
from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.core import complete, event_workflow, on_cancel, on_fail, step, workflow


async def waits(*args, **kwargs):
    return True


def yields(*args, **kwargs):
    yield True


async def waits_and_yields(*args, **kwargs):
    yield True


class Waits:
    async def __call__(self, event=None, ctx=None):
        return True


FUNCTIONS = [
    waits,
    yields,
    waits_and_yields,
    functools.partial(waits, 1),
    functools.partial(Waits()),
    Waits(),
    Waits().__call__,
]


class Context(BaseModel):
    pass


def with_hook(name, function, decorator):
    methods = {"Context": Context, "first": step(start=True)(lambda self: complete()), name: function}
    return decorator(type("Program", (), methods))


TAKERS = {
    "on_event": on_event("ticket_closed", name="x"),
    "on_event_created": on_event_created("ticket_closed", name="x"),
    "on_event_cancelled": on_event_cancelled("ticket_closed", name="x"),
    "condition": lambda function: EventDefinition("x", condition=function),
    "payload": lambda function: EventDefinition("x", payload=function),
    "namespace": lambda function: EventDefinition("x", namespace=function),
    "handler condition": lambda function: handler("ticket_closed", condition=function),
    "when": lambda function: event_workflow("ticket_closed", when=function)(
        type("Program", (), {"Context": Context, "first": step(start=True)(lambda self: complete())})
    ),
    "workflow create_context": lambda function: with_hook(
        "create_context", staticmethod(function), workflow("refused", version=1)
    ),
    "agent create_context": lambda function: with_hook("create_context", staticmethod(function), agent("refused")),
    "migrate_context": lambda function: with_hook(
        "migrate_context", staticmethod(function), workflow("refused", version=1)
    ),
    "step": step,
    "handler": handler("ticket_closed"),
    "on_fail": on_fail,
    "on_cancel": on_cancel,
}


AWAITED = (
    *("on_event", "on_event_created", "on_event_cancelled", "step", "handler", "on_fail", "on_cancel"),
    *("condition", "handler condition", "when"),
)
"""What these take is awaited (``tests/lifecycle/test_async_code.py``, ``tests/lifecycle/test_async_conditions.py``)."""
REFUSED = [
    pytest.param(taker, function, id=f"{taker} {number}")
    for taker in TAKERS
    for number, function in enumerate((yields, waits_and_yields) if taker in AWAITED else FUNCTIONS)
]


@pytest.mark.parametrize(("taker", "function"), REFUSED)
def test_39_it_is_refused_where_it_is_given(taker, function):
    with pytest.raises(DefinitionError, match="plain function"):
        TAKERS[taker](function)


@pytest.mark.parametrize("taker", AWAITED)
def test_39_async_functions_are_taken_where_they_are_awaited(taker):
    TAKERS[taker](waits)


def test_39_plain_functions_and_objects_are_taken():
    class Plain:
        def __call__(self, entity):
            return True

    for function in (Plain(), functools.partial(Plain()), bool, lambda entity: True):
        EventDefinition("x", condition=function)
