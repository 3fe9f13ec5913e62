"""Reads the source of steps for the system checks: the steps that they name, and the events that they wait for.

Only literal names, and event definitions that a module or class holds, in plain calls are read. A computed name is
checked when the step runs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..events.definitions import EventDefinition
from ..events.names import is_pattern
from .definitions import WorkflowDefinition
from .wait_keys import EVENT_CHANNEL

_FIRST_IS_TARGET = {"goto"}
_TARGETS = {"then", "on_timeout"}
_WAITS = {"wait_for_event", "for_event"}
_CHOICES = {"wait_any", "wait_all"}


@dataclass(frozen=True, slots=True)
class Target:
    """A step that the source of ``step`` names."""

    step: str
    name: str
    call: str


@dataclass(frozen=True, slots=True)
class EventWait:
    """A wait for an event in the source of ``step``. ``lookups``: the literal names in its match, or None without a
    match. ``expressions``: the strings of both that have expressions on the Context."""

    step: str
    event_name: str
    lookups: tuple[str, ...] | None
    expressions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A child run that the source of ``step`` starts. ``arguments``: the names of its arguments, or None if the source
    does not tell them all."""

    step: str
    workflow: str
    arguments: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class OnlyWait:
    """A step that only waits and names no next step: when it is woken, it waits again."""

    step: str
    call: str


def calls_of(definition: WorkflowDefinition) -> Iterator[Target | EventWait | ChildRun | OnlyWait]:
    """Yield the steps, events and workflows that the source of a workflow's steps names."""
    steps = {**definition.steps, **{hook.name: hook for hook in definition.hooks}}
    for name, step in steps.items():
        if step.wait is not None and step.wait.event is not None:
            match = step.wait.match
            values = () if match is None else tuple(value for _, value in match.lookups)
            lookups = None if match is None else match.names()
            yield EventWait(name, step.wait.event, lookups, _templates(step.wait.event, *values))
            for target in (step.wait.then, step.wait.on_timeout):
                if target is not None:
                    yield Target(name, target, "wait_for_event")
        method = inspect.getattr_static(definition.cls, name)
        try:
            source = textwrap.dedent(inspect.getsource(method))
            tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError):
            continue
        (function,) = tree.body
        body = function.body if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) else []
        if only := _only_wait(body):
            yield OnlyWait(name, only)
        for node in (each for statement in body for each in ast.walk(statement)):
            if isinstance(node, ast.Call):
                yield from _read(name, node, method)


def _read(step: str, call: ast.Call, method: Callable[..., Any]) -> Iterator[Target | EventWait | ChildRun]:
    called = _called(call.func)
    if called in _FIRST_IS_TARGET and call.args and (target := _target(call.args[0])):
        yield Target(step, target, called)
    if called in ("wait", "for_signal", "sleep", "run_subflow", *_WAITS, *_CHOICES):
        if called in ("wait", "for_signal", *_WAITS) and len(call.args) > 2 and (target := _target(call.args[2])):
            yield Target(step, target, called)
        for keyword in call.keywords:
            if keyword.arg in _TARGETS and (target := _target(keyword.value)):
                yield Target(step, target, called)
    if called in _WAITS and (event := _event(call, method)):
        yield EventWait(step, event, _lookups(call), _templates(event, *_compared(call)))
    if called == "run_subflow" and (workflow := _workflow(call, method)):
        names = [keyword.arg for keyword in call.keywords if keyword.arg != "then"]
        literal = tuple(name for name in names if name is not None)
        yield ChildRun(step, workflow, literal if len(literal) == len(names) else None)


def _workflow(call: ast.Call, method: Callable[..., Any]) -> str:
    """Return the name of the workflow that a call starts, if the source tells it."""
    node = call.args[0] if call.args else None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    found = None if node is None else _global_value(node, method)
    definition = found.__dict__.get("__workflow__") if isinstance(found, type) else None
    return definition.name if isinstance(definition, WorkflowDefinition) else ""


def _event(call: ast.Call, method: Callable[..., Any]) -> str:
    """Return the name of the event that a call waits for, if the source tells it."""
    named = [each.value for each in call.keywords if each.arg == "event_name"]
    for node in [*call.args[:1], *named]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        found = _global_value(node, method)
        if isinstance(found, EventDefinition):
            return found.name
    return ""


def _global_value(node: ast.expr, method: Callable[..., Any]) -> Any:
    """Return the object that ``NAME`` or ``holder.NAME`` refers to in the source of ``method``, or None."""
    if isinstance(node, ast.Attribute):
        holder = _global_value(node.value, method)
        return None if holder is None else inspect.getattr_static(holder, node.attr, None)
    if not isinstance(node, ast.Name):
        return None
    try:
        names = inspect.getclosurevars(inspect.unwrap(method))
    except (TypeError, ValueError):  # no plain function, or a name that is not bound yet
        return None
    return {**names.globals, **names.nonlocals}.get(node.id)


@lru_cache(maxsize=1024)
def signals_of(cls: type) -> frozenset[str] | None:
    """Return the signals and event channels that the source of a workflow's class names in its waits. None: it cannot
    be read, or computes a name."""
    names: set[str] = set()
    for base in cls.__mro__[:-1]:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return None
        for node in ast.walk(tree):
            called = _called(node.func) if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or called not in ("wait", "for_signal", *_WAITS):
                continue
            named = [each.value for each in node.keywords if each.arg in ("signal", "event_name")]
            given = [*node.args[:1], *named][:1]
            if not given or not isinstance(given[0], ast.Constant) or not isinstance(given[0].value, str):
                return None
            if "{" in given[0].value or is_pattern(given[0].value):
                return None
            names.add(f"{EVENT_CHANNEL}{given[0].value}" if called in _WAITS else given[0].value)
    return frozenset(names)


def _only_wait(body: list[ast.stmt]) -> str:
    """Return the name of the call if the step is only ``return wait(...)`` without ``then=``, else an empty string."""
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # the docstring
    statement = body[0] if len(body) == 1 else None
    if not isinstance(statement, ast.Return) or not isinstance(statement.value, ast.Call):
        return ""
    call = statement.value
    called = _called(call.func)
    if called not in ("wait", "for_signal", *_WAITS, *_CHOICES) or _names_next(call):
        return ""
    branches = [keyword.value for keyword in call.keywords if keyword.arg not in ("timeout", "on_timeout")]
    if called in _CHOICES and (call.args or all(isinstance(each, ast.Call) and _names_next(each) for each in branches)):
        return ""
    return called


def _names_next(call: ast.Call) -> bool:
    """Return whether a call names the next step with ``then=``, or may do so with ``**``."""
    return any(keyword.arg in ("then", None) for keyword in call.keywords)


def _lookups(call: ast.Call) -> tuple[str, ...] | None:
    for keyword in call.keywords:
        if keyword.arg == "match":
            keys = keyword.value.keys if isinstance(keyword.value, ast.Dict) else []
            return tuple(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return None


def _compared(call: ast.Call) -> list[Any]:
    """Return the literal values that the match of a call compares with."""
    matches = [keyword.value for keyword in call.keywords if keyword.arg == "match"]
    values = [value for match in matches if isinstance(match, ast.Dict) for value in match.values]
    return [each.value for each in values if isinstance(each, ast.Constant)]


def _templates(*values: Any) -> tuple[str, ...]:
    """Return the strings among ``values`` that have expressions on the Context."""
    return tuple(each for each in values if isinstance(each, str) and "{{" in each)


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def _target(node: ast.expr) -> str:
    """Return the step that an argument names as a string or as an attribute of ``self``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return ""
