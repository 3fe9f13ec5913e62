"""Reads in the source of steps which outcomes they may return: for the graph of a workflow.

What a step returns is followed through conditions, local names, and helpers: methods of the class that are no steps,
and functions of the same module. What it computes otherwise cannot be known before it runs, and is reported as that.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import FunctionType, ModuleType
from typing import Any

from ..events.definitions import EventDefinition
from .choices import wait_all, wait_any
from .definitions import WorkflowDefinition
from .outcomes import Wait, complete, fail, goto, run_subflow, sleep, wait, wait_for_event
from .wait_keys import EVENT_CHANNEL

MAX_SOURCE = 60
MAX_DEPTH = 5
"""How deeply helpers that call helpers are followed."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
UNKNOWN = "?"
"""The target of an outcome whose step is computed by the code."""


class OutcomeKind(StrEnum):
    """The kinds of outcomes, named as in the history of a run where they have a name there."""

    GOTO = "goto"
    SLEEP = "sleep"
    SIGNAL = "wait"
    EVENT = "wait_for_event"
    CHILD = "subflow"
    ANY = "wait_any"
    ALL = "wait_all"
    COMPLETE = "complete"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SourceOutcome:
    """An outcome that a step may return.

    ``subject``: the name of the signal, event or child, the reason of a failure, or the source of what cannot be known.
    ``then``: the step that follows, ``UNKNOWN``, or None for the same step again. ``duration``: how long it sleeps, or
    waits at most: a timedelta, or the source of what is computed. ``branches``: those of a choice, by their names.
    """

    kind: OutcomeKind
    subject: str = ""
    then: str | None = None
    duration: timedelta | str | None = None
    on_timeout: str | None = None
    branches: tuple[tuple[str, SourceOutcome], ...] = ()


def outcomes_of(definition: WorkflowDefinition) -> dict[str, list[SourceOutcome]]:
    """Return the outcomes that each step and each hook of a workflow may return, in the order of the source."""
    hooks = {hook.name for hook in definition.hooks}
    names = sorted([*definition.steps, *hooks], key=lambda name: _first_line(definition.cls, name))
    return {name: list(dict.fromkeys(_read(definition.cls, name, is_hook=name in hooks))) for name in names}


def wait_before(wait_declared: Wait) -> SourceOutcome:
    """Return the wait that ``@wait_for_event`` declares above a step."""
    return SourceOutcome(
        OutcomeKind.EVENT,
        wait_declared.event or wait_declared.signal,
        wait_declared.then,
        wait_declared.timeout,
        wait_declared.on_timeout,
    )


def _first_line(cls: type, name: str) -> int:
    code = getattr(inspect.unwrap(getattr(cls, name)), "__code__", None)
    return 0 if code is None else int(code.co_firstlineno)


def _read(cls: type, name: str, *, is_hook: bool) -> Iterator[SourceOutcome]:
    method = inspect.getattr_static(cls, name, None)
    function = _function_of(method)
    if function is None:
        yield SourceOutcome(OutcomeKind.UNKNOWN, f"{name}()", UNKNOWN)
        return
    yield from _Reader(cls, method, function, ()).returned()
    if is_hook and not isinstance(function.body[-1], ast.Return | ast.Raise):
        yield SourceOutcome(OutcomeKind.COMPLETE)  # a hook that returns None ends the run


def _function_of(method: Any) -> Function | None:
    """Return the parsed source of a function, or None if it cannot be read."""
    if isinstance(method, staticmethod | classmethod):
        method = method.__func__
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return None
    return tree.body[0] if len(tree.body) == 1 and isinstance(tree.body[0], Function) else None


class _Reader:
    """Reads what one function returns. ``followed``: the helpers through which it was reached."""

    def __init__(self, cls: type, method: Any, function: Function, followed: tuple[Any, ...]) -> None:
        self.cls = cls
        self.method = method.__func__ if isinstance(method, staticmethod | classmethod) else method
        self.function = function
        self.followed = (*followed, self.method)
        self.assigned = _assigned_names(function)
        self.names = _names_of(self.method)
        first = function.args.posonlyargs + function.args.args
        self.own_name = first[0].arg if first else ""

    def returned(self) -> Iterator[SourceOutcome]:
        """Yield the outcomes of all ``return`` statements."""
        for statement in _statements(self.function.body):
            if isinstance(statement, ast.Return) and statement.value is not None:
                yield from self.outcomes(statement.value)

    def outcomes(self, node: ast.expr, seen: frozenset[str] = frozenset()) -> Iterator[SourceOutcome]:
        """Yield the outcomes that an expression may stand for."""
        match node:
            case ast.Constant(value=None):
                return
            case ast.IfExp():
                yield from self.outcomes(node.body, seen)
                yield from self.outcomes(node.orelse, seen)
            case ast.BoolOp():
                for value in node.values:
                    yield from self.outcomes(value, seen)
            case ast.NamedExpr() | ast.Await():
                yield from self.outcomes(node.value, seen)
            case ast.Name(id=name) if name in self.assigned and name not in seen:
                for value in self.assigned[name]:
                    yield from self.outcomes(value, seen | {name})
            case ast.Call():
                yield from self._called(node)
            case _:
                yield _unknown(node)

    def _called(self, call: ast.Call) -> Iterator[SourceOutcome]:
        kind = self._kind(call.func)
        if kind is not None:
            yield self._outcome(kind, call)
            return
        helper = self._helper(call.func)
        function = None if helper is None or len(self.followed) > MAX_DEPTH else _function_of(helper)
        if function is None:
            yield _unknown(call)
        elif helper not in self.followed:  # a helper that calls itself adds no other outcome
            yield from _Reader(self.cls, helper, function, self.followed).returned()

    def _kind(self, function: ast.expr) -> OutcomeKind | None:
        """Return the kind of outcome that a called name makes, or None."""
        if isinstance(function, ast.Attribute) and function.attr in _METHODS_OF_WAIT:
            return _METHODS_OF_WAIT[function.attr] if self._is_wait(function.value) else None
        found = self._value(function)
        if found is None and isinstance(function, ast.Name) and function.id not in self.assigned:
            found = _BY_NAME.get(function.id)  # imported in the function itself
        return next((kind for made, kind in _MAKERS if made is found), None)

    def _is_wait(self, node: ast.expr) -> bool:
        found = self._value(node)
        return found is wait or (found is None and isinstance(node, ast.Name) and node.id == "wait")

    def _helper(self, function: ast.expr) -> Any:
        """Return the method of the class, or the function of the same module, that a call names; else None."""
        if isinstance(function, ast.Attribute) and self._is_self(function.value):
            found = inspect.getattr_static(self.cls, function.attr, None)
            found = found.__func__ if isinstance(found, staticmethod | classmethod) else found
            return found if isinstance(found, FunctionType) else None
        found = self._value(function)
        is_near = isinstance(found, FunctionType) and found.__module__ == getattr(self.method, "__module__", None)
        return found if is_near else None

    def _outcome(self, kind: OutcomeKind, call: ast.Call) -> SourceOutcome:
        given = {each.arg: each.value for each in call.keywords if each.arg is not None}
        names = _POSITIONAL.get(kind, ())
        given.update(zip(names, call.args, strict=False))
        if kind in (OutcomeKind.ANY, OutcomeKind.ALL):
            return self._choice(kind, call, given)
        then, on_timeout = self._target(given.get("then")), self._target(given.get("on_timeout"))
        if kind == OutcomeKind.GOTO:
            step = self._target(given.get("step"))
            return SourceOutcome(kind, "" if step not in (None, UNKNOWN) else _text(call), step or UNKNOWN)
        if kind == OutcomeKind.SLEEP:
            duration = _duration(given.get("duration"))
            if duration is None and "until" in given:
                duration = f"until {_text(given['until'])}"
            return SourceOutcome(kind, "", then, duration)
        subject = self._subject(given.get(names[0])) if names else ""
        if kind == OutcomeKind.SIGNAL and subject.startswith(EVENT_CHANNEL):
            kind, subject = OutcomeKind.EVENT, subject.removeprefix(EVENT_CHANNEL)
        return SourceOutcome(kind, subject, then, _duration(given.get("timeout")), on_timeout)

    def _choice(self, kind: OutcomeKind, call: ast.Call, given: dict[str, ast.expr]) -> SourceOutcome:
        named: dict[str, ast.expr] = {name: value for name, value in given.items() if name not in _OF_CHOICES}
        is_computed = any(each.arg is None for each in call.keywords)
        for literal in call.args[:1]:
            if isinstance(literal, ast.Dict) and all(isinstance(key, ast.Constant) for key in literal.keys):
                keys = [str(key.value) for key in literal.keys if isinstance(key, ast.Constant)]
                named = {**dict(zip(keys, literal.values, strict=True)), **named}
            else:
                is_computed = True
        branches = [(name, each) for name, value in named.items() for each in self.outcomes(value)]
        if is_computed:
            branches.append(("…", SourceOutcome(OutcomeKind.UNKNOWN, _text(call.args[0] if call.args else call))))
        then, on_timeout = self._target(given.get("then")), self._target(given.get("on_timeout"))
        return SourceOutcome(kind, "", then, _duration(given.get("timeout")), on_timeout, tuple(branches))

    def _target(self, node: ast.expr | None) -> str | None:
        """Return the step that an argument names; ``UNKNOWN`` if it is computed, None if there is none."""
        match node:
            case None | ast.Constant(value=None):
                return None
            case ast.Constant(value=str(name)):
                return name
            case ast.Attribute(value=holder, attr=name) if self._is_self(holder):
                return name
        definition = getattr(self._value(node), "__step__", None)
        if definition is not None and isinstance(node, ast.Attribute):
            return node.attr
        constant = self._value(node)
        return constant if isinstance(constant, str) and constant else UNKNOWN

    def _subject(self, node: ast.expr | None) -> str:
        """Return the name of a signal, an event or a workflow, or the source of what is computed."""
        if node is None:
            return ""
        found = node.value if isinstance(node, ast.Constant) else self._value(node)
        if isinstance(found, EventDefinition):
            return found.name
        if isinstance(found, type) and "__workflow__" in found.__dict__:
            return str(found.__dict__["__workflow__"].name)
        return found if isinstance(found, str) else _text(node)

    def _is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self.own_name

    def _value(self, node: ast.expr) -> Any:
        """Return the object that ``NAME`` or ``holder.NAME`` refers to outside of the function, or None."""
        if isinstance(node, ast.Attribute):
            holder = self._value(node.value)
            if isinstance(holder, ModuleType):
                return getattr(holder, node.attr, None)  # a package may import its names when they are first used
            return None if holder is None else inspect.getattr_static(holder, node.attr, None)
        return self.names.get(node.id) if isinstance(node, ast.Name) and node.id not in self.assigned else None


_MAKERS: tuple[tuple[Any, OutcomeKind], ...] = (
    (goto, OutcomeKind.GOTO),
    (sleep, OutcomeKind.SLEEP),
    (wait, OutcomeKind.SIGNAL),
    (wait_for_event, OutcomeKind.EVENT),
    (run_subflow, OutcomeKind.CHILD),
    (wait_any, OutcomeKind.ANY),
    (wait_all, OutcomeKind.ALL),
    (complete, OutcomeKind.COMPLETE),
    (fail, OutcomeKind.FAIL),
)
_BY_NAME = {getattr(made, "__name__", "wait"): made for made, _ in _MAKERS}
_METHODS_OF_WAIT = {"for_signal": OutcomeKind.SIGNAL, "for_event": OutcomeKind.EVENT}
_POSITIONAL = {
    OutcomeKind.GOTO: ("step",),
    OutcomeKind.SLEEP: ("duration",),
    OutcomeKind.SIGNAL: ("signal", "timeout", "on_timeout"),
    OutcomeKind.EVENT: ("event_name", "timeout", "on_timeout"),
    OutcomeKind.CHILD: ("workflow",),
    OutcomeKind.FAIL: ("reason",),
}
_OF_CHOICES = {"then", "timeout", "on_timeout"}


def _unknown(node: ast.expr) -> SourceOutcome:
    return SourceOutcome(OutcomeKind.UNKNOWN, _text(node), UNKNOWN)


def _text(node: ast.expr) -> str:
    """Return the source of an expression, cut."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= MAX_SOURCE else f"{text[: MAX_SOURCE - 1]}…"


def _duration(node: ast.expr | None) -> timedelta | str | None:
    """Return a literal ``timedelta(...)``, or the source of another expression."""
    if node is None or (isinstance(node, ast.Constant) and node.value is None):
        return None
    if isinstance(node, ast.Call) and _last_name(node.func) == "timedelta":
        try:
            numbers = [ast.literal_eval(each) for each in node.args]
            named = {each.arg: ast.literal_eval(each.value) for each in node.keywords if each.arg is not None}
            return timedelta(*numbers, **named)
        except (ValueError, TypeError, OverflowError):
            pass
    return _text(node)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _names_of(method: Callable[..., Any]) -> dict[str, Any]:
    try:
        found = inspect.getclosurevars(inspect.unwrap(method))
    except (TypeError, ValueError):  # no plain function, or a name that is not bound yet
        return {}
    return {**found.globals, **found.nonlocals}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield all statements of a function, but not those of functions and classes inside it."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.stmt):
                yield from _statements([child])
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                yield from _statements(child.body)


def _assigned_names(function: Function) -> dict[str, list[ast.expr]]:
    """Return the values that are assigned to each local name."""
    found: dict[str, list[ast.expr]] = {}
    for statement in _statements(function.body):
        match statement:
            case ast.Assign(targets=targets, value=value):
                named = [each for each in targets if isinstance(each, ast.Name)]
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                named = [target]
            case _:
                continue
        for each in named:
            found.setdefault(each.id, []).append(value)
    return found
