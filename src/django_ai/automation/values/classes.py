"""Classes as names: what a decorator has declared on a class, for calls that take the class or its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..exceptions import DefinitionError


def is_redefinition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Return whether ``other`` is ``one`` again: the same place in the code, imported or defined once more."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def declaration_of(cls: type, attribute: str, what: str, decorator: str) -> Any:
    """Return what ``decorator``, which makes a class ``what``, has left on ``cls`` under ``attribute``.

    Raises ``DefinitionError`` for a class that is not decorated itself. What a decorated class above it has is not
    meant: its steps or handlers would run, and not those of ``cls``.
    """
    found = cls.__dict__.get(attribute)
    if found is not None:
        return found
    base = next((each for each in cls.__mro__ if attribute in each.__dict__), None)
    hint = "" if base is None else f" Only {base.__qualname__}, from which it inherits, is decorated."
    raise DefinitionError(f"{cls.__qualname__} is not {what}; decorate it with {decorator}.{hint}")
