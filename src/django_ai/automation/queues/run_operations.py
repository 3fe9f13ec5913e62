"""The bases of migration operations on the rows of one workflow or agent: another name, and other Contexts.

A layer says which model has the rows, which names the code declares, and how it renames; when that is refused, and how
a reversed or repeated operation continues, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

from ..exceptions import DefinitionError
from ..state.versions import check_version
from ..values.callables import check_parameters, check_synchronous
from . import renaming
from .context_migration import ContextMigration, Transform
from .data_operation import DataOperation, check_names, renamed_later, suggestion

MAX_NAME = 200


class RunOperation(DataOperation):
    """The base of operations on the rows of one name."""

    model: ClassVar[type[Any]]
    """A ``Run``, with a name, a version and a status."""
    _kind: ClassVar[str]
    """What has the name: "workflow" or "agent"."""

    @classmethod
    def definitions(cls) -> Sequence[Any]:
        """Return what the code declares of this kind."""
        raise NotImplementedError

    @classmethod
    def declared(cls) -> list[str]:
        """Return the names that the code declares."""
        return sorted({each.name for each in cls.definitions()})

    @classmethod
    def has_rows(cls, name: str) -> bool:
        names = cls.model._default_manager.filter(name=name).values_list("name", flat=True)
        return any(found == name for found in names[:1])  # MariaDB ignores case


class RenameRuns(RunOperation):
    """The base of ``RenameWorkflow`` and ``RenameAgent``."""

    def __init__(self, old: str, new: str, *, merge: bool = False) -> None:
        check_names(f"{type(self).__name__}({old!r}, {new!r})", old, new, MAX_NAME)
        self.old, self.new, self.merge = old, new, merge

    def describe(self) -> str:
        return f"Rename the {self._kind} {self.old!r} to {self.new!r}"

    @property
    def migration_name_fragment(self) -> str:
        return f"rename_{self._kind}"

    def rename(self, old: str, new: str) -> int:
        """Rename in all tables, and return how many rows were changed. Raises ``DefinitionError``."""
        raise NotImplementedError

    def apply(self, *, is_backwards: bool) -> int:
        if is_backwards:
            changed = self.rename(self.new, self.old)
            renaming.forget(self._kind, self.old, self.new)
            return changed
        self._check()
        renaming.check_no_bulk_action(repr(self), self.old)
        renaming.record(self._kind, self.old, self.new)
        changed = self.rename(self.old, self.new)
        renaming.complete(self._kind, self.old, self.new, changed)
        return changed

    def _check(self) -> None:
        if not self.has_rows(self.old):
            if (near := self._misspelt()) and not self.has_rows(self.new):
                raise DefinitionError(f"{self!r}: there is no run of {self.old!r}. Did you mean {near!r}?")
            return
        declared = self.declared()
        if self.old in declared:
            raise DefinitionError(
                f"{self!r}: the code still declares the {self._kind} {self.old!r}. Give its class the name "
                f"{self.new!r} in the release that has this migration."
            )
        wanted = renamed_later(type(self), self.new)
        if wanted not in declared:
            raise DefinitionError(f"{self!r}: no {self._kind} is called {wanted!r}. {suggestion(wanted, declared)}")
        if not self.merge and not renaming.is_recorded(self._kind, self.old, self.new) and self.has_rows(self.new):
            raise DefinitionError(
                f"{self!r}: there are runs of {self.new!r} already. If they are of the same {self._kind}, because the "
                "new code has run before this migration, add merge=True. Otherwise choose another name."
            )

    def _misspelt(self) -> str:
        """Return the stored name, which no code declares, that ``old`` may stand for; empty: none. One look into an
        index for each name that is stored."""
        declared, orphans, last = set(self.declared()), [], ""
        while (found := self._next_name(last)) is not None:
            last = found
            if found not in declared:
                orphans.append(found)
        return next(iter(get_close_matches(self.old, orphans, n=1, cutoff=0.85)), "")

    def _next_name(self, after: str) -> str | None:
        rows = self.model._default_manager.filter(name__gt=after).order_by("name")
        found: str | None = rows.values_list("name", flat=True).first()
        return found


class MigrateContexts(RunOperation):
    """The base of ``MigrateContext`` and ``MigrateAgentContext``."""

    rename_operation: ClassVar[type[RenameRuns]]
    migration: ClassVar[type[ContextMigration]]

    def __init__(
        self, name: str, forwards: Transform, backwards: Transform | None = None, *, version: int | str | None = None
    ) -> None:
        what = f"{type(self).__name__}({name!r})"
        for function in (forwards, backwards):
            if function is not None:
                if not callable(function):
                    raise DefinitionError(f"{what}: {function!r} must be a function that takes the stored dict.")
                check_synchronous(function, what)
                check_parameters(function, what, "data")
        self.name, self.forwards, self.backwards = name, forwards, backwards
        self.version = None if version is None else check_version(version, what)

    @property
    def reversible(self) -> bool:  # type: ignore[override]
        return self.backwards is not None

    def describe(self) -> str:
        of = "" if self.version is None else f" of version {self.version}"
        return f"Transform the Contexts of the {self._kind} {self.name!r}{of}"

    @property
    def migration_name_fragment(self) -> str:
        return "migrate_context"

    def newest(self) -> Any:
        """Return the newest definition of what the rows belong to, which may have another name in the current code.

        Raises ``DefinitionError``.
        """
        wanted = renamed_later(self.rename_operation, self.name)
        found = self.find_newest(wanted)
        if found is None:
            raise DefinitionError(
                f"{self!r}: no {self._kind} is called {wanted!r}. {suggestion(wanted, self.declared())}"
            )
        return found

    @classmethod
    def find_newest(cls, name: str) -> Any:
        """Return the newest definition with this name, or None."""
        raise NotImplementedError

    def apply(self, *, is_backwards: bool) -> int:
        if not self.has_rows(self.name):
            return 0
        newest = self.newest()
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = self.forwards
        version, target, stored = self.version, newest, newest.version
        if is_backwards:
            transform = self.backwards
            version, target, stored = (newest.version if self.version is not None else None), None, self.version
        assert transform is not None
        return self.migration(
            what=repr(self),
            model=self.model,
            row_name=self.name,
            version=version,
            target=target,
            stored_version=stored,
            transform=transform,
        ).run()
