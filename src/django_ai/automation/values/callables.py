"""Checks of declared functions: a coroutine or generator function would return without running anything, and a function
with other parameters would raise at each call."""

from __future__ import annotations

import functools
import inspect
from types import MethodType
from typing import Any

from ..exceptions import DefinitionError

NOT_SYNCHRONOUS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def check_synchronous(function: Any, what: str) -> None:
    """Raise ``DefinitionError`` if ``function`` (also under ``functools.partial``, wrappers, or as an object with
    ``__call__``) is async or a generator."""
    if any(is_kind(each) for each in _inside(function) for is_kind in NOT_SYNCHRONOUS):
        name = getattr(function, "__qualname__", None) or repr(function)
        raise DefinitionError(
            f"{what}: {name} must be a plain function, not async or a generator, because a call would run nothing. "
            "Call async code inside it with asgiref.sync.async_to_sync."
        )


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
