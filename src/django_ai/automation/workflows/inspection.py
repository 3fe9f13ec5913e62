"""Reads the source of steps for the system checks: the steps that they name, and the events that they wait for.

Only literal names in plain calls are read. A computed name is checked when the step runs.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from .definitions import WorkflowDefinition

_FIRST_IS_TARGET = {"goto"}
_TARGETS = {"then", "on_timeout"}
_WAITS = {"wait_for_event", "for_event"}


@dataclass(frozen=True, slots=True)
class Target:
    """A step that the source of ``step`` names."""

    step: str
    name: str
    call: str


@dataclass(frozen=True, slots=True)
class EventWait:
    """A wait for an event in the source of ``step``. ``lookups``: the literal names in its match, or None without a
    match."""

    step: str
    event_name: str
    lookups: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class OnlyWait:
    """A step that only waits and names no next step: when it is woken, it waits again."""

    step: str
    call: str


def calls_of(definition: WorkflowDefinition) -> Iterator[Target | EventWait | OnlyWait]:
    """Yield the steps and events that the source of a workflow's steps names."""
    for name, step in definition.steps.items():
        if step.wait is not None and step.wait.event is not None:
            match = step.wait.match
            yield EventWait(name, step.wait.event, None if match is None else match.names())
            for target in (step.wait.then, step.wait.on_timeout):
                if target is not None:
                    yield Target(name, target, "wait_for_event")
        try:
            source = textwrap.dedent(inspect.getsource(inspect.getattr_static(definition.cls, name)))
            tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError):
            continue
        (function,) = tree.body
        body = function.body if isinstance(function, ast.FunctionDef) else []
        if only := _only_wait(body):
            yield OnlyWait(name, only)
        for node in (each for statement in body for each in ast.walk(statement)):
            if isinstance(node, ast.Call):
                yield from _read(name, node)


def _read(step: str, call: ast.Call) -> Iterator[Target | EventWait]:
    called = _called(call.func)
    if called in _FIRST_IS_TARGET and call.args and (target := _target(call.args[0])):
        yield Target(step, target, called)
    if called in ("wait", "for_signal", "sleep", "run_subflow", *_WAITS):
        if called != "sleep" and called != "run_subflow" and len(call.args) > 2 and (target := _target(call.args[2])):
            yield Target(step, target, called)
        for keyword in call.keywords:
            if keyword.arg in _TARGETS and (target := _target(keyword.value)):
                yield Target(step, target, called)
    if called in _WAITS and call.args and isinstance(call.args[0], ast.Constant):
        name = call.args[0].value
        if isinstance(name, str):
            yield EventWait(step, name, _lookups(call))


def _only_wait(body: list[ast.stmt]) -> str:
    """Return the name of the call if the step is only ``return wait(...)`` without ``then=``, else an empty string."""
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # the docstring
    statement = body[0] if len(body) == 1 else None
    if not isinstance(statement, ast.Return) or not isinstance(statement.value, ast.Call):
        return ""
    call = statement.value
    called = _called(call.func)
    has_then = any(keyword.arg in ("then", None) for keyword in call.keywords)
    return called if called in ("wait", "for_signal", *_WAITS) and not has_then else ""


def _lookups(call: ast.Call) -> tuple[str, ...] | None:
    for keyword in call.keywords:
        if keyword.arg == "match":
            keys = keyword.value.keys if isinstance(keyword.value, ast.Dict) else []
            return tuple(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    return None


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
