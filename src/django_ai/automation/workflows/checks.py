"""System checks of workflows: undeclared events, steps that do not exist, waits that any entity's event ends."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from ..events.checks import check_match, check_offset_makes_sense, did_you_mean, is_declared, shares_entity
from ..events.declarations import declared_events, sources_of
from ..events.names import pattern_of
from .definitions import WorkflowDefinition, all_workflows
from .inspection import EventWait, OnlyWait, Target, calls_of


def check_workflows(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [problem for definition in all_workflows() for problem in _check(definition)]


def _check(definition: WorkflowDefinition) -> Iterator[CheckMessage]:
    name = definition.event_name
    if name is not None and not is_declared(name):
        yield Error(
            f"The workflow {definition.name} starts with the event {name!r}, which no model declares.",
            hint=did_you_mean(name, declared_events()),
            obj=definition.cls,
            id="automation.E201",
        )
    elif name is not None and definition.offset is not None:
        yield from check_offset_makes_sense(f"The workflow {definition.name}", name, definition.offset)
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
        else:
            yield from _check_wait(definition, call)


def _check_target(definition: WorkflowDefinition, call: Target) -> Iterator[CheckMessage]:
    if call.name in definition.steps:
        return
    near = get_close_matches(call.name, definition.steps, n=1)
    if hasattr(definition.cls, call.name):
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


def _check_wait(definition: WorkflowDefinition, call: EventWait) -> Iterator[CheckMessage]:
    where = f"The workflow {definition.name}: the step {call.step!r} waits for the event {call.event_name!r}"
    pattern = pattern_of(call.event_name)
    sources = sources_of(pattern)
    if not sources:
        yield Error(
            f"{where}, which no model declares.",
            hint=did_you_mean(call.event_name, declared_events()) + " For a signal of your own use wait(...).",
            obj=definition.cls,
            id="automation.E203",
        )
        return
    if call.lookups is not None:
        yield from check_match(where, pattern, call.lookups, definition.cls, "automation.E205")
        return
    starting = () if definition.event_name is None else (definition.event_name,)
    if pattern != call.event_name or shares_entity(starting, pattern):
        return
    owners = ", ".join(declared.owner._meta.label for declared in sources)
    yield Warning(
        f"{where} of any {owners}: the run's own entity does not declare it.",
        hint='Select it with match={"field": "{{ ctx.field }}"}, or write match={} for any of them.',
        obj=definition.cls,
        id="automation.W204",
    )
