"""The Context of the step that runs now: the same object behind ``get_context()`` and ``self.context``, and its way to
the database and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from ..exceptions import ContextError, NotStorableError
from ..queues.jsontext import MAX_NESTING, encode


class WakeReason(StrEnum):
    """Why a step was entered."""

    FIRST = "first"
    TIMER = "timer"
    TIMEOUT = "timeout"
    SIGNAL = "signal"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class Wake:
    """Why the step was entered, and with what: ``payload`` of the signal or event, else empty."""

    reason: WakeReason = WakeReason.FIRST
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Current:
    """What runs now. ``ending``: the step has asked for the end of its own run, and why."""

    context: BaseModel
    wake: Wake
    run: Any
    ending: tuple[Any, str] | None = None


_current: ContextVar[Current | None] = ContextVar("automation_workflow", default=None)


@contextmanager
def running(current: Current) -> Iterator[None]:
    token = _current.set(current)
    try:
        yield
    finally:
        _current.reset(token)


def own_run_pk() -> int | None:
    """Return the primary key of the run whose step runs now, or None."""
    current = _current.get()
    return None if current is None else int(current.run.pk)


def end_own_run(pk: int, status: Any, reason: str) -> bool:
    """Say whether run ``pk`` is the one whose step runs now; it then ends with that step's commit, and is not touched
    behind its worker's back."""
    current = _current.get()
    if current is None or current.run.pk != pk:
        return False
    current.ending = (status, reason)
    return True


def _now_running(what: str) -> Current:
    current = _current.get()
    if current is None:
        raise RuntimeError(f"{what} has a value only inside a step of a workflow.")
    return current


def get_context() -> Any:
    """Return the Context of the run whose step runs now; changes to it are kept. Raises ``RuntimeError`` elsewhere."""
    return _now_running("get_context()").context


def get_wake() -> Wake:
    """Return why this step was entered, and the payload of what woke it. Raises ``RuntimeError`` outside a step."""
    return _now_running("get_wake()").wake


def get_run() -> Any:
    """Return the ``WorkflowRun`` whose step runs now, to be read only. Raises ``RuntimeError`` outside a step."""
    return _now_running("get_run()").run


def load_context(model: type[BaseModel], data: Any, what: str) -> BaseModel:
    """Return the Context that was stored as ``data``. Raises ``ContextError`` when it does not validate any more."""
    try:
        return model.model_validate_json(json.dumps(data), by_name=True, by_alias=True)
    except ValidationError as error:
        raise ContextError(
            f"{what}: what is stored does not fit its Context any more: {_reasons(error)}. "
            "Give new fields a default, then resume the run."
        ) from error


def dump_context(context: BaseModel, what: str) -> str:
    """Return ``context`` as JSON text.

    Raises ``NotStorableError`` for what no database could store alike, and ``ContextError`` for a value that the
    Context would not accept when it is loaded again.
    """
    for name, value in context.__dict__.items():
        if type(value) not in _PLAIN and (trouble := _silent_trouble(value, name, 0)):
            raise NotStorableError(f"{what} cannot be stored as JSON: {trouble}.")
    try:
        values = context.model_dump(mode="json", round_trip=True, warnings="error")
    except PydanticSerializationError as error:
        # A field was set to a value of another type. Take it if it validates; else better now than at the next load.
        values = _coerced(context, what, error)
    return encode(values, what)


_PLAIN = (str, int, bool, type(None))


def _silent_trouble(value: Any, path: str, depth: int) -> str:
    """Return what in ``value`` Pydantic would write wrongly without a word, or a text without end: NaN and infinities
    become null, and what contains itself never ends."""
    if depth > MAX_NESTING:
        return f"at {path[:60]!r}... it is nested too deeply, or contains itself"
    if isinstance(value, float | Decimal):
        return "" if math.isfinite(value) else f"at {path!r} is {value!r}, a number that JSON does not have (use None)"
    if isinstance(value, BaseModel):
        value = value.__dict__
    if isinstance(value, Mapping):
        items: Any = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return ""
    for at, item in items:
        if type(item) not in _PLAIN and (trouble := _silent_trouble(item, at, depth + 1)):
            return trouble
    return ""


def _coerced(context: BaseModel, what: str, reason: Exception) -> Any:
    try:
        values = {name: getattr(context, name) for name in type(context).model_fields}
        return (
            type(context).model_validate(values, by_name=True, by_alias=True).model_dump(mode="json", round_trip=True)
        )
    except (ValidationError, PydanticSerializationError) as error:
        detail = _reasons(error) if isinstance(error, ValidationError) else str(reason)
        raise NotStorableError(f"{what} cannot be stored: {detail}.") from None


def merge(context: BaseModel, fields: Mapping[str, Any], what: str) -> None:
    """Set ``fields`` on ``context``, validated together. Raises ``ContextError``; then nothing was set."""
    model = type(context)
    values = {name: getattr(context, name) for name in model.model_fields}
    try:
        validated = model.model_validate({**values, **fields}, by_name=True, by_alias=True)
    except ValidationError as error:
        raise ContextError(f"{what} does not fit the Context: {_reasons(error)}.") from error
    for name in fields:
        setattr(context, name, getattr(validated, name))


def _reasons(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in each['loc']) or 'the whole'}: {each['msg']} (it is {each['input']!r:.100})"
        for each in error.errors()[:5]
    )
