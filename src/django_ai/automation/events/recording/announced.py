"""Which statements a ``save()`` or ``delete()`` of Django announces: it records their events itself.

The code that executes such a statement says so, and ``captured/hearing.py``, which sees all statements, asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper

_announced: WeakKeyDictionary[BaseDatabaseWrapper, bool] = WeakKeyDictionary()
"""The connections whose next write to a captured table is announced."""


def announce(connection: BaseDatabaseWrapper) -> None:
    """Note that the statement that is about to be executed is announced."""
    _announced[connection] = True


def was_announced(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the statement that was just executed was announced, and forget it."""
    return _announced.pop(connection, False)


def announce_statements_of(model: type[models.Model]) -> None:
    """Announce the statements by which Django saves instances of ``model``. Idempotent.

    ``_do_insert`` and ``_do_update`` execute them, and nothing else: what receivers of ``pre_save`` and ``post_save``
    write is not announced. If a version of Django had other methods, saves would be recorded all the same, twice as
    slow: each statement would be taken for one that sends no signal.
    """
    for name in ("_do_insert", "_do_update"):
        original = getattr(model, name, None)
        if original is not None and not getattr(original, "announces", False):
            setattr(model, name, _announcing(original))


def _announcing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(self: models.Model, rows: Any, using: str | None, *args: Any, **kwargs: Any) -> Any:
        connection = connections[using or router.db_for_write(type(self), instance=self)]
        announce(connection)
        try:
            return original(self, rows, using, *args, **kwargs)
        finally:
            was_announced(connection)

    wrapper.announces = True  # type: ignore[attr-defined]
    return wrapper
