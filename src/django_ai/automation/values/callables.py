"""Checks of declared functions: a generator function, and a coroutine function that nothing awaits, would return
without running anything, and a function with other parameters would raise at each call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from types import MethodType
from typing import Any

from ..exceptions import DefinitionError

POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)
GENERATORS = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
NOT_SYNCHRONOUS = (inspect.iscoroutinefunction, *GENERATORS)


def check_synchronous(function: Any, what: str) -> None:
    """Raise ``DefinitionError`` if ``function`` (also under ``functools.partial``, wrappers, or as an object with
    ``__call__``) is async or a generator."""
    if any(is_kind(each) for each in _inside(function) for is_kind in NOT_SYNCHRONOUS):
        name = getattr(function, "__qualname__", None) or repr(function)
        raise DefinitionError(
            f"{what}: {name} must be a plain function, not async or a generator, because a call would run nothing. "
            "Call async code inside it with asgiref.sync.async_to_sync."
        )


def check_runnable(function: Any, what: str) -> None:
    """Raise ``DefinitionError`` if ``function`` is a generator. It may be async: its coroutine is awaited."""
    if any(is_kind(each) for each in _inside(function) for is_kind in GENERATORS):
        name = getattr(function, "__qualname__", None) or repr(function)
        raise DefinitionError(
            f"{what}: {name} must be a plain function or async def, not a generator, because a call would run nothing. "
            "Return a value instead of yielding."
        )


def is_async(function: Any) -> bool:
    """Return whether a call of ``function`` returns a coroutine that must be awaited."""
    return any(map(inspect.iscoroutinefunction, _inside(function)))


def check_parameters(function: Any, what: str, *arguments: str) -> None:
    """Raise ``DefinitionError`` if ``function`` cannot be called with ``arguments``, by position. A callable without a
    signature is accepted."""
    called = function.__func__ if isinstance(function, staticmethod) else function
    try:
        # A call reaches the wrapper, not the function that it wraps.
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        name = getattr(function, "__qualname__", None) or repr(function)
        given = ", ".join(arguments)
        raise DefinitionError(
            f"{what}: {name} has the signature {signature} but is called with ({given}): {error}. Declare ({given})."
        ) from None


def taken_arguments(function: Any, what: str, offered: Sequence[str], *, is_method: bool) -> tuple[str, ...]:
    """Return those of the ``offered`` arguments that ``function`` takes, which is called with each by its name.

    Raises ``DefinitionError`` for another parameter without a default. ``is_method``: its first parameter is ``self``.
    """
    try:
        # A wrapper gets what the function that it wraps takes.
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    takes = f"{'self and ' if is_method else ''}any of {', '.join(offered)}"
    name = getattr(function, "__qualname__", None) or repr(function)
    if is_method and not (parameters and parameters[0].kind in POSITIONAL):
        raise DefinitionError(f"{what}: {name} takes no self. It takes {takes}.")
    parameters = parameters[is_method:]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return tuple(offered)
    unknown = [
        each.name
        for each in parameters
        if (each.name not in offered or each.kind is each.POSITIONAL_ONLY)
        and each.default is each.empty
        and each.kind is not each.VAR_POSITIONAL
    ]
    if unknown:
        near = get_close_matches(unknown[0], offered, n=1)
        hint = f" Did you mean {near[0]!r}?" if near and near[0] != unknown[0] else ""
        raise DefinitionError(
            f"{what}: {name} has an unknown parameter {', '.join(map(repr, unknown))}.{hint} It takes {takes}."
        )
    return tuple(each.name for each in parameters if each.name in offered and each.kind is not each.POSITIONAL_ONLY)


def _inside(function: Any) -> list[Any]:
    found, each = [function], function
    while True:
        if isinstance(each, functools.partial | functools.partialmethod):
            each = each.func
        elif isinstance(each, staticmethod | classmethod | MethodType):
            each = each.__func__
        elif not inspect.isroutine(each) and not inspect.isclass(each) and callable(each):
            each = type(each).__call__
        else:
            return found
        found.append(each)
