"""The automation tables are read from the database that they are written to, never from a replica.

A router may send reads to a replica, which lags and does not see the writes of the caller's own transaction. The engine
decides by rows that were just written. So all models of the automation tables have a manager with ``WriterQuerySet``,
which is also their base manager, for relations and ``refresh_from_db``.

``from_writer`` does the same for the project's own tables while the engine evaluates an entity: a condition that
follows a relation, a deferred field, a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from django.db import connections, models, router

from ..installation import require_app_of

M_co = TypeVar("M_co", bound=models.Model, covariant=True)


_reads_from_writer: ContextVar[bool] = ContextVar("automation_reads_from_writer", default=False)


class FromWriter:
    """A router before those of the project. It has an effect only inside ``from_writer``."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str | None:
        return router.db_for_write(model, **hints) if _reads_from_writer.get() else None


@contextmanager
def from_writer() -> Iterator[None]:
    """Read from the writer inside the block, lazily or not, unless ``using()`` names another database."""
    if len(connections.settings) == 1 or _reads_from_writer.get():
        yield
        return
    if not any(isinstance(each, FromWriter) for each in router.routers):
        # Not in DATABASE_ROUTERS: a project could forget it there, and tests may override the setting.
        router.routers.insert(0, FromWriter())
    token = _reads_from_writer.set(True)
    try:
        yield
    finally:
        _reads_from_writer.reset(token)


class WriterQuerySet(models.QuerySet[M_co, M_co]):
    """A queryset that reads from the writer, unless ``using()`` names another database."""

    def __init__(self, model: Any = None, query: Any = None, using: str | None = None, hints: Any = None) -> None:
        if using is None and model is not None:
            using = router.db_for_write(model)
        super().__init__(model, query, using, hints)


class WriterManager(models.Manager[M_co]):
    def get_queryset(self) -> WriterQuerySet[M_co]:
        return WriterQuerySet(self.model, using=self._db, hints=self._hints)  # type: ignore[attr-defined]


class AutomationModel(models.Model):
    """The base of all models of the automation tables."""

    objects = WriterManager()

    class Meta:
        abstract = True
        base_manager_name = "objects"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        require_app_of(cls.__module__)  # before Django's metaclass looks for the app
        super().__init_subclass__(**kwargs)


def alias_of(model: type[models.Model]) -> str:
    """Return the database alias of ``model``. All automation tables are in one database."""
    return router.db_for_write(model)
