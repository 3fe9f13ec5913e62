"""Refuses functions that a call does not run: a coroutine or generator function returns at once, with nothing done, and
one that cannot take what it is given raises at each call."""

from __future__ import annotations

import functools
import inspect
from types import MethodType
from typing import Any

from ..exceptions import DefinitionError

KINDS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def check_synchronous(function: Any, what: str) -> None:
    """Raise ``DefinitionError`` if ``function`` (also under ``functools.partial``, wrappers, or as an object with
    ``__call__``) is async or a generator."""
    if any(is_kind(each) for each in _inside(function) for is_kind in KINDS):
        name = getattr(function, "__qualname__", None) or repr(function)
        raise DefinitionError(
            f"{what}: {name} must be a plain function, not async or a generator: a call would run nothing. "
            "Call async code in it with asgiref.sync.async_to_sync."
        )


def check_parameters(function: Any, what: str, *arguments: str) -> None:
    """Raise ``DefinitionError`` if ``function`` cannot be called with ``arguments``, by position. What says nothing of
    its parameters is taken."""
    called = function.__func__ if isinstance(function, staticmethod) else function
    try:
        # What is called is a wrapper itself, and not what it wraps.
        signature = inspect.signature(called, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        name = getattr(function, "__qualname__", None) or repr(function)
        given = ", ".join(arguments)
        raise DefinitionError(
            f"{what}: {name} takes {signature}, and is called with ({given}): {error}. Let it take ({given})."
        ) from None


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
