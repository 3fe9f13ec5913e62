"""Rows that outlive the code that wrote them: which version is newer, and how stored data follows the class.

Workflows and agents share one hook. A class may have a static or class method ``migrate_context(data, from_version)``;
it is asked when a row was stored by a version that is gone, or when what is stored does not validate any more. What it
returns is validated like any Context; what it raises parks the row. A worker may die between the call and the commit,
and then another calls it again: so it must be pure.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from django.db import Error as AnyDatabaseError
from pydantic import BaseModel, ValidationError

from ..exceptions import ContextError, DefinitionError
from ..values.callables import check_synchronous
from ..values.text import trace_of
from .contexts import load_context, reasons
from .encryption import check_readable

Migration = Callable[[dict[str, Any], str], Any]

HOOK = "migrate_context"


class Versioned(Protocol):
    """What ``restore`` needs to know of a workflow's or an agent's definition."""

    @property
    def version(self) -> str: ...
    @property
    def context(self) -> type[BaseModel]: ...
    @property
    def migrate(self) -> Migration | None: ...


@dataclass(frozen=True, slots=True)
class Restored:
    """A Context as it was stored. ``moved``: the row must be written anew, under its definition's version."""

    context: BaseModel
    moved: bool


def version_order(version: str) -> tuple[int, int, str]:
    """Return what versions are sorted by: numbers by their value, and before them texts by their letters."""
    return (1, int(version), "") if version.isdigit() else (0, 0, version)


def is_newer(version: str, than: str) -> bool:
    return version_order(version) > version_order(than)


def check_version(version: Any, what: str) -> str:
    """Return ``version`` as it is stored. Raises ``DefinitionError`` unless it is a number or a short text."""
    if not isinstance(version, int | str) or not str(version) or len(str(version)) > 50:
        raise DefinitionError(f"{what}: version={version!r} must be a number or a short text.")
    return str(version)


def migration_of(cls: type, what: str) -> Migration | None:
    """Return the ``migrate_context`` of a class, if it has one. Raises ``DefinitionError`` for one that cannot be
    called without an instance, or not with ``(data, from_version)``."""
    declared = inspect.getattr_static(cls, HOOK, None)
    if declared is None:
        return None
    if not isinstance(declared, staticmethod | classmethod):
        raise DefinitionError(
            f"{what}: {HOOK} must be a @staticmethod or @classmethod: what it migrates is not yet anybody's Context."
        )
    hook: Migration = getattr(cls, HOOK)
    try:
        inspect.signature(hook).bind({}, "1")
    except TypeError:
        raise DefinitionError(
            f"{what}: {HOOK}{inspect.signature(hook)} must take (data, from_version): the stored dict and the version "
            "that stored it."
        ) from None
    check_synchronous(hook, f"{what}: {HOOK}")
    return hook


def restore(definition: Versioned, data: Any, version: str, what: str) -> Restored:
    """Return the Context that ``version`` of a class stored as ``data``, as ``definition`` wants it.

    Raises ``ContextError`` where that cannot be had: the row is to be parked.
    """
    check_readable(data, what)
    moved = version != definition.version
    if definition.migrate is None:
        return Restored(load_context(definition.context, data, what), moved)
    if not moved:
        try:
            return Restored(load_context(definition.context, data, what), False)
        except ContextError:
            pass  # of the same version, and yet it does not fit: this is what the hook is for, too
    return Restored(_migrated(definition, data, version, what), True)


def _migrated(definition: Versioned, data: Any, version: str, what: str) -> BaseModel:
    assert definition.migrate is not None
    try:
        found = definition.migrate(copy.deepcopy(data), version)
    except AnyDatabaseError:
        raise
    except Exception as error:
        raise ContextError(
            f"{what}: {HOOK}(data, {version!r}) raised. Mend it; then this goes on by itself.\n{trace_of(error)}"
        ) from error
    if isinstance(found, definition.context):
        return found
    if not isinstance(found, dict):
        raise ContextError(
            f"{what}: {HOOK}(data, {version!r}) returned {found!r:.200}; it must return the new dict, or a Context."
        )
    try:
        return load_context(definition.context, found, f"{what}: {HOOK}(data, {version!r})")
    except (TypeError, ValueError) as error:
        if isinstance(error, ContextError):
            raise
        # values that JSON does not have, such as dates
    try:
        return definition.context.model_validate(found, by_name=True, by_alias=True)
    except ValidationError as error:
        raise ContextError(
            f"{what}: what {HOOK}(data, {version!r}) returned does not fit the Context: {reasons(error)}."
        ) from error
    except AnyDatabaseError:
        raise
    except Exception as error:
        raise ContextError(
            f"{what}: a validator raised for what {HOOK}(data, {version!r}) returned. Mend it; then this goes on by "
            f"itself.\n{trace_of(error)}"
        ) from error
