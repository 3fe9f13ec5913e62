"""Reads the source of steps for what they will do: targets that do not exist, waits that anybody can wake.

Only plain calls with plain names are understood; what is computed is checked when it runs. Used by the system checks.
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
    """A wait for an event in the source of ``step``; ``lookups`` of its match, as far as they are written out, or None
    if it has none."""

    step: str
    event_name: str
    lookups: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class OnlyWait:
    """The step ``step`` does nothing but wait, and nothing says where it goes on: the same step waits again."""

    step: str
    call: str


def calls_of(definition: WorkflowDefinition) -> Iterator[Target | EventWait | OnlyWait]:
    """Yield what the steps of a workflow name, as far as their source tells."""
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
    """Return the call that waits, if a step is nothing but ``return wait(...)`` without ``then=``."""
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
    """Return the step that an argument names: a text, or an attribute of self."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return ""
