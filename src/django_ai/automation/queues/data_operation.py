"""The base of migration operations that change rows of the automation tables."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from typing import Any, ClassVar

from django.db import models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation, OperationCategory

from ..db.writer import alias_of
from ..exceptions import DefinitionError


class DataOperation(Operation):
    """An operation of a project's migration that changes rows, and no table.

    It works with the models of the installed code, so its migration depends on the ones that create their tables
    (``needs``). In a database without automation tables, such as a second one of the project, it does nothing.
    """

    reduces_to_sql = False
    reversible = True
    category = OperationCategory.PYTHON

    _constructor_args: tuple[tuple[Any, ...], dict[str, Any]]  # set by Django

    needs: ClassVar[tuple[type[models.Model], ...]] = ()
    """Models whose tables it changes."""

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing: rows are not part of a state."""

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        positional, named = self._constructor_args
        return type(self).__name__, list(positional), dict(named)

    def __repr__(self) -> str:
        positional, named = self._constructor_args
        given = [*map(repr, positional), *(f"{name}={value!r}" for name, value in named.items())]
        return f"{type(self).__name__}({', '.join(given)})"

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if self._is_for(schema_editor, to_state):
            self.apply(is_backwards=False)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if self._is_for(schema_editor, from_state):
            self.apply(is_backwards=True)

    def apply(self, *, is_backwards: bool) -> int:
        """Change the rows, and return how many were changed."""
        raise NotImplementedError

    def _is_for(self, schema_editor: Any, state: Any) -> bool:
        if schema_editor.connection.alias != alias_of(self.needs[0]):
            return False
        for model in self.needs:
            meta = model._meta
            if (meta.app_label, meta.model_name) not in state.models:
                raise DefinitionError(
                    f"{self!r} changes rows of {meta.label}. Let its migration depend on "
                    f'("{meta.app_label}", "0001_initial").'
                )
        return True


def renamed_later(operation: type[DataOperation], name: str, **only: Any) -> str:
    """Return what later operations of the project's migrations make of ``name``. ``only``: attributes that they must
    have. A database may go through several of them at once, while the code knows only the last name."""
    renames = {each.old: each.new for each in _operations(operation) if _has(each, only)}  # type: ignore[attr-defined]
    seen = {name}
    while (after := renames.get(name)) is not None and after not in seen:
        seen.add(after)
        name = after
    return name


def _has(operation: DataOperation, only: dict[str, Any]) -> bool:
    return all(getattr(operation, name) == value for name, value in only.items())


def _operations(operation: type[DataOperation]) -> list[DataOperation]:
    return [each for each in _all_operations() if isinstance(each, operation)]


@lru_cache(maxsize=1)
def _all_operations() -> tuple[DataOperation, ...]:
    migrations = MigrationLoader(None).disk_migrations or {}
    return tuple(each for one in migrations.values() for each in one.operations if isinstance(each, DataOperation))


def check_names(what: str, old: Any, new: Any, limit: int) -> None:
    """Raise ``DefinitionError`` unless both are different names of at most ``limit`` characters."""
    for name in (old, new):
        if not isinstance(name, str) or not name.strip() or len(name) > limit:
            raise DefinitionError(f"{what}: {name!r:.80} must be a name, a string of 1 to {limit} characters.")
    if old == new:
        raise DefinitionError(f"{what}: the old name and the new one are the same.")


def suggestion(name: str, known: list[str]) -> str:
    """Return which of the ``known`` names may be meant, or all of them."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(map(repr, sorted(known)[:20])) or 'none'}."
