"""System checks of workflows: undeclared events, steps that do not exist, waits that any entity's event ends."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from ..events.checks import (
    check_context,
    check_key_fields,
    check_match,
    check_offset_makes_sense,
    did_you_mean,
    is_declared,
    shares_entity,
)
from ..events.free_events import FreeEvent
from ..events.matching.context_expressions import check_expression
from ..events.names import pattern_of
from ..events.sources import declared_names, event_sources, labels_of
from ..exceptions import DefinitionError
from .cancel_on import event_of, lookups_of
from .definitions import WorkflowDefinition, all_workflows, newest_workflows
from .inspection import ChildRun, EventWait, OnlyWait, Target, calls_of

INVALID_MATCH = "automation.E205"


def check_workflows(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [problem for definition in all_workflows() for problem in _check(definition)]


def _check(definition: WorkflowDefinition) -> Iterator[CheckMessage]:
    name = definition.event_name
    if name is not None and not is_declared(name):
        yield Error(
            f"The workflow {definition.name} starts with the event {name!r}, which no code declares.",
            hint=did_you_mean(name, declared_names()),
            obj=definition.cls,
            id="automation.E201",
        )
    elif name is not None and definition.offset is not None:
        yield from check_offset_makes_sense(f"The workflow {definition.name}", name, definition.offset)
    if name is not None and definition.window is not None:
        what = f"The workflow {definition.name}"
        yield from check_key_fields(what, name, definition.window.key, definition.cls)
    yield from _check_context(definition)
    yield from _check_arguments(definition)
    yield from _check_cancel_on(definition)
    for call in calls_of(definition):
        if isinstance(call, Target):
            yield from _check_target(definition, call)
        elif isinstance(call, OnlyWait):
            yield Warning(
                f"The workflow {definition.name}: the step {call.step!r} only waits and names no next step: when it is "
                f"woken, the same step is entered again, and {call.call}() waits again.",
                hint="Name the next step with then=self.<step>, or read get_wake().reason in the step.",
                obj=definition.cls,
                id="automation.W206",
            )
        elif isinstance(call, ChildRun):
            yield from _check_child(definition, call)
        else:
            yield from _check_wait(definition, call)


def _check_context(definition: WorkflowDefinition) -> Iterator[CheckMessage]:
    """Find a Context that its event cannot fill: each run would fail when it starts."""
    if definition.event_name is not None and not definition.has_create_context:
        what = f"The workflow {definition.name}"
        yield from check_context(what, definition.event_name, definition.context, definition.cls, "automation.E210")


RESERVED_ARGUMENTS = ("key", "if_exists")
"""Arguments that ``engine.start`` does not pass on."""


def _check_arguments(definition: WorkflowDefinition) -> Iterator[CheckMessage]:
    """Find arguments of ``create_context``, or fields of the Context, that ``engine.start`` takes for itself."""
    if definition.event_name is not None:
        return
    create = getattr(definition.cls, "create_context", None)
    taken = definition.context.model_fields if create is None else inspect.signature(create).parameters
    for name in RESERVED_ARGUMENTS:
        if name in taken:
            what = f"its Context has the field {name!r}" if create is None else f"create_context takes {name!r}"
            yield Warning(
                f"The workflow {definition.name}: {what}, and engine.start(..., {name}=...) never passes it on: "
                "the argument is its own.",
                hint="Give the argument another name, or start the workflow only with run_subflow().",
                obj=definition.cls,
                id="automation.W207",
            )


def _check_cancel_on(definition: WorkflowDefinition) -> Iterator[CheckMessage]:
    """Find events of ``cancel_on=`` that nothing declares, and lookups that their entities do not have."""
    for on in definition.cancel_on:
        name = event_of(on)
        where = f"The workflow {definition.name}: cancel_on= names the event {name!r}"
        pattern = pattern_of(name)
        if event_sources(pattern):
            yield from check_match(where, pattern, lookups_of(on), definition.cls, "automation.E209")
        else:
            yield Error(
                f"{where}, which no code declares.",
                hint=did_you_mean(name.partition("{{")[0].rstrip(":") or name, declared_names()),
                obj=definition.cls,
                id="automation.E208",
            )


def _check_target(definition: WorkflowDefinition, call: Target) -> Iterator[CheckMessage]:
    if call.name in definition.steps:
        return
    near = get_close_matches(call.name, definition.steps, n=1)
    hook = next((each.hook for each in definition.hooks if each.name == call.name), None)
    if hook is not None:
        problem = f"names {call.name!r}, which is its {hook} and not a step"
        hint = "A run enters it only when it ends. Write a step that does the same."
    elif hasattr(definition.cls, call.name):
        problem = f"names {call.name!r}, which is not a step"
        hint = f"Decorate {call.name} with @step()."
    else:
        problem = f"names the step {call.name!r}, which does not exist"
        hint = f"Did you mean {near[0]!r}?" if near else f"Its steps: {', '.join(map(repr, definition.steps))}."
    yield Error(
        f"The workflow {definition.name}: {call.call}() in the step {call.step!r} {problem}.",
        hint=hint,
        obj=definition.cls,
        id="automation.E202",
    )


def _check_child(definition: WorkflowDefinition, call: ChildRun) -> Iterator[CheckMessage]:
    """Find child runs of workflows that do not exist, and arguments that they do not take."""
    where = f"The workflow {definition.name}: run_subflow() in the step {call.step!r}"
    child = next((each for each in newest_workflows() if each.name == call.workflow), None)
    problem, hint = "", ""
    if child is None:
        problem = f"names the workflow {call.workflow!r}, which does not exist"
        hint = did_you_mean(call.workflow, {each.name for each in newest_workflows()})
    elif call.arguments is not None and (reason := child.problem_with_start(call.arguments)):
        given = ", ".join(call.arguments) or "none"
        problem, hint = f"cannot start {call.workflow!r} with the arguments {given}", reason
    if problem:
        yield Error(f"{where} {problem}.", hint=hint, obj=definition.cls, id="automation.E211")


def _check_wait(definition: WorkflowDefinition, call: EventWait) -> Iterator[CheckMessage]:
    where = f"The workflow {definition.name}: the step {call.step!r} waits for the event {call.event_name!r}"
    pattern = pattern_of(call.event_name)
    sources = event_sources(pattern)
    if not sources:
        yield Error(
            f"{where}, which no code declares.",
            hint=did_you_mean(call.event_name, declared_names()) + " For a signal of your own use wait(...).",
            obj=definition.cls,
            id="automation.E203",
        )
        return
    for expression in call.expressions:
        try:
            check_expression(expression, where, definition.context)
        except DefinitionError as error:
            problem, _, hint = str(error).partition(". ")
            yield Error(f"{problem}.", hint=hint or None, obj=definition.cls, id=INVALID_MATCH)
    if call.lookups is not None:
        yield from check_match(where, pattern, call.lookups, definition.cls, INVALID_MATCH)
        return
    starting = () if definition.event_name is None else (definition.event_name,)
    if pattern != call.event_name or shares_entity(starting, pattern):
        return
    if any(isinstance(each, FreeEvent) for each in sources):
        which = "whatever its payload: it belongs to no entity"
    else:
        which = f"of any {labels_of(sources)}: the run's own entity does not declare it"
    yield Warning(
        f"{where} {which}.",
        hint='Select it with match={"field": "{{ ctx.field }}"}, or write match={} for any of them.',
        obj=definition.cls,
        id="automation.W204",
    )
