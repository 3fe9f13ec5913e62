"""Versions: which version of a class is newer, and how stored Contexts are migrated to the current one.

Workflows and agents share one hook: a class may have a static or class method ``migrate_context(data, from_version)``.
It is called when another version stored the row, or when the stored data no longer validates. Its result is validated
like any Context; if it raises, the row is parked. A worker may die between the call and the commit, and another one
calls it again, so it must be pure.
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
MAX_VERSION_LENGTH = 50


class Versioned(Protocol):
    """The part of a workflow's or an agent's definition that ``restore`` needs."""

    @property
    def version(self) -> str: ...
    @property
    def context(self) -> type[BaseModel]: ...
    @property
    def migrate(self) -> Migration | None: ...


@dataclass(frozen=True, slots=True)
class Restored:
    """A restored Context. ``is_migrated``: the row must be rewritten under the version of its definition."""

    context: BaseModel
    is_migrated: bool


def version_order(version: str) -> tuple[int, int, str]:
    """Return the sort key of a version: strings alphabetically, and after them numbers by their value."""
    return (1, int(version), "") if version.isdigit() else (0, 0, version)


def is_newer(version: str, than: str) -> bool:
    return version_order(version) > version_order(than)


def check_version(version: Any, what: str) -> str:
    """Return ``version`` as it is stored. Raises ``DefinitionError`` unless it is an int or a short string."""
    if not isinstance(version, int | str) or not str(version) or len(str(version)) > MAX_VERSION_LENGTH:
        raise DefinitionError(
            f"{what}: version={version!r} must be an int or a string of at most {MAX_VERSION_LENGTH} characters."
        )
    return str(version)


def migration_of(cls: type, what: str) -> Migration | None:
    """Return the ``migrate_context`` of a class, or None. Raises ``DefinitionError`` if it cannot be called without an
    instance, or not with ``(data, from_version)``."""
    declared = inspect.getattr_static(cls, HOOK, None)
    if declared is None:
        return None
    if not isinstance(declared, staticmethod | classmethod):
        raise DefinitionError(
            f"{what}: {HOOK} must be a @staticmethod or @classmethod: it runs before there is an instance."
        )
    hook: Migration = getattr(cls, HOOK)
    try:
        inspect.signature(hook).bind({}, "1")
    except TypeError:
        raise DefinitionError(
            f"{what}: {HOOK}{inspect.signature(hook)} must take (data, from_version): the stored dict, and the version "
            "that stored it."
        ) from None
    check_synchronous(hook, f"{what}: {HOOK}")
    return hook


def restore(definition: Versioned, data: Any, version: str, what: str) -> Restored:
    """Return the Context that ``version`` of a class stored as ``data``, migrated to ``definition``.

    Raises ``ContextError`` if that is impossible: the caller parks the row.
    """
    check_readable(data, what)
    is_migrated = version != definition.version
    if definition.migrate is None:
        return Restored(load_context(definition.context, data, what), is_migrated)
    if not is_migrated:
        try:
            return Restored(load_context(definition.context, data, what), False)
        except ContextError:
            pass  # the version is the same, but the data does not fit: the hook handles that, too
    return Restored(_migrated(definition, data, version, what), True)


def _migrated(definition: Versioned, data: Any, version: str, what: str) -> BaseModel:
    assert definition.migrate is not None
    try:
        found = definition.migrate(copy.deepcopy(data), version)
    except AnyDatabaseError:
        raise
    except Exception as error:
        raise ContextError(
            f"{what}: {HOOK}(data, {version!r}) raised. Fix it; then it resumes automatically.\n{trace_of(error)}"
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
        # The result has values that are not JSON serializable, such as dates.
    try:
        return definition.context.model_validate(found, by_name=True, by_alias=True)
    except ValidationError as error:
        raise ContextError(
            f"{what}: the result of {HOOK}(data, {version!r}) does not fit the Context: {reasons(error)}."
        ) from error
    except AnyDatabaseError:
        raise
    except Exception as error:
        raise ContextError(
            f"{what}: a validator raised for the result of {HOOK}(data, {version!r}). Fix it; then it resumes "
            f"automatically.\n{trace_of(error)}"
        ) from error
