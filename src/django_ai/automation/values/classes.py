"""Declarations on classes: what a decorator has stored on a class, for calls that accept the class or its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..exceptions import DefinitionError


def is_redefinition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Return whether ``other`` is a redefinition of ``one``: the same place in the code, imported or executed again."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def declaration_of(cls: type, attribute: str, what: str, decorator: str) -> Any:
    """Return what ``decorator``, which makes a class ``what``, has stored on ``cls`` under ``attribute``.

    Raises ``DefinitionError`` for a class that is not decorated itself. The declaration of a base class does not count:
    its steps or handlers would run instead of those of ``cls``.
    """
    found = cls.__dict__.get(attribute)
    if found is not None:
        return found
    base = next((each for each in cls.__mro__ if attribute in each.__dict__), None)
    hint = "" if base is None else f" Only its base class {base.__qualname__} is decorated."
    raise DefinitionError(f"{cls.__qualname__} is not {what}; decorate it with {decorator}.{hint}")
