"""``Run``: a row with a Context, which its code reads and writes while it runs, and which other code may read.

A stored Context belongs to a version of a class. ``context`` makes the object of it as a worker does, and writes
nothing: not even the result of ``migrate_context``, which the next step or handler of the row stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db.models import Model
from pydantic import BaseModel

from ..exceptions import DefinitionError, NoContextError
from ..state.versions import Versioned, restore
from .pausable import PausableWakeable

Ctx = TypeVar("Ctx", bound=BaseModel)


def key_of(run: Any, model: type[Run], what: str) -> Any:
    """Return the primary key of ``run``, which is a row of ``model`` or such a key.

    Raises ``DefinitionError`` for anything else, such as a row of another model.
    """
    if isinstance(run, model):
        return run.pk
    try:
        if not isinstance(run, bool | Model):
            return model._meta.pk.to_python(run)
    except ValidationError:
        pass
    hint = " (AgentManager takes agents, and engine takes runs of workflows.)" if isinstance(run, Run) else ""
    raise DefinitionError(f"{what}: {run!r} is no {model.__name__} and not the primary key of one.{hint}")


class Run(PausableWakeable):
    """The base of the runs of workflows and agents."""

    class Meta:
        abstract = True

    @property
    def context(self) -> Any:
        """The Context as it is stored, an object of the class that the workflow or agent declares.

        Each access makes a new object of the row's ``data``: decrypted, and migrated if another version has stored it.
        It is for reading: changes of it are not stored, and inside a step or handler it is the Context of the last
        commit (``self.context`` is the current one). ``refresh_from_db()`` reads the row again.

        Raises:
            NoContextError: If an event has started the row and its Context is not made yet.
            CodeError: If this code has no such workflow or agent, or if the stored data does not fit its Context
                (``ContextError``) or cannot be decrypted (``DecryptionError``).
        """
        return self._load_context()

    def context_as(self, expected: type[Ctx], /) -> Ctx:
        """Return ``context`` with its type, for type checkers.

        Args:
            expected: The class of the Context.

        Returns:
            The Context.

        Raises:
            DefinitionError: If the Context is not of the class ``expected``.
            NoContextError: If an event has started the row and its Context is not made yet.
            CodeError: As for ``context``.

        Example:
            Show the result of an import::

                rows = run.context_as(ImportContext).rows
        """
        context = self._load_context()
        if not isinstance(context, expected):
            raise DefinitionError(
                f"{self}: its Context is a {type(context).__qualname__}, and not a {expected.__qualname__}. Ask for "
                "that class, or read run.context."
            )
        return context

    def _load_context(self) -> BaseModel:
        row: Any = self
        if row.has_no_context:
            raise NoContextError(
                f"{self} has no Context: it is made of its event when it starts, and this one is {row.status}.", self
            )
        return restore(self.find_definition(), row.data, row.version, str(self)).context

    def edit_context(self, fields: Mapping[str, Any], *, reason: str = "") -> None:
        """Store other values of ``fields`` in the Context, and read the row again; see ``engine.edit_context``."""
        self.behaviour.edit_context(self, fields, reason)

    def find_definition(self) -> Versioned:
        """Return what this code declares for the row. Raises ``CodeError``."""
        raise NotImplementedError
