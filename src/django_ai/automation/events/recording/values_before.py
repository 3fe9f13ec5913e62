"""What the rows of entities held before the open transaction, for events that compare the values of fields.

Right before the first save of an entity in a transaction its row is read and locked: one statement, and only for models
with ``was=``, ``becomes=`` or ``watch_fields=``. The values are kept for that transaction, whose saves are one write:
from the first old values to the last new ones, whatever the saved instances were loaded with. Because of the lock, of
two transactions that make the same change, the second one finds it made.

A savepoint that is rolled back may give up the locks that were taken inside it, so what was read inside is forgotten
with it. Django then drops the ``on_commit`` hooks of the savepoint, which are the latest ones, and at the end of a
transaction all hooks: a hook for each savepoint, at its place in the list, tells which values are still good. What
counts as a transaction: ``transaction_blocks``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ...db.locks import locked
from ..changes import Values, as_stored
from ..declarations import Declared, compared_columns
from ..entity_ids import entity_id_of
from .entity_state import is_inserted_by_save
from .transaction_blocks import outermost_block

UNKNOWN: Values = {}
"""The values of a row that was not read: no save of this transaction has written a column that is compared."""

Key = tuple[type[models.Model], str]


class _Savepoint:
    """The hook of one savepoint (or of the transaction): while Django keeps it, what was read inside is good."""

    def __init__(self, owner: ValuesBefore, connection: BaseDatabaseWrapper) -> None:
        self._owner = owner
        self.__qualname__ = type(owner).__name__  # Django logs it if the hook fails
        transaction.on_commit(self, using=connection.alias, robust=True)
        self._place = len(connection.run_on_commit) - 1

    def __call__(self) -> None:
        """Forget the values: the transaction is committed."""
        self._owner.clear()

    def is_open(self, connection: BaseDatabaseWrapper) -> bool:
        hooks = connection.run_on_commit
        return self._place < len(hooks) and hooks[self._place][1] is self


class ValuesBefore:
    """The values of one transaction, and the events that it makes occur."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        # No reference to the connection: it is the weak key of this object.
        self._block = outermost_block(connection)
        self._savepoints: dict[tuple[str, ...], _Savepoint] = {}
        self._values: dict[Key, list[tuple[_Savepoint, Values | None]]] = {}
        self.armed: set[str | None] = set()
        """The keys of the event rows that this transaction has armed; a rolled back savepoint may have undone it."""

    @classmethod
    def of(cls, alias: str) -> ValuesBefore:
        """Return the values of the transaction that is open on this thread's connection."""
        connection = connections[alias]
        found = _latest.get(connection)
        if found is None or not found._is_current(connection):
            found = _latest[connection] = cls(connection)
        return found

    def clear(self) -> None:
        self._savepoints.clear()
        self._values.clear()
        self.armed.clear()

    def _is_current(self, connection: BaseDatabaseWrapper) -> bool:
        first = next(iter(self._savepoints.values()), None)
        # A rollback drops the latest hooks, so none is left if the first one is not.
        return first is not None and first.is_open(connection) and outermost_block(connection) == self._block

    def put(self, key: Key, values: Values | None, alias: str) -> None:
        """Keep what a row held before the transaction; None: it did not exist."""
        connection = connections[alias]
        ids = tuple(each for each in connection.savepoint_ids if each is not None)
        if ids not in self._savepoints:
            self._savepoints[ids] = _Savepoint(self, connection)
        self._values.setdefault(key, []).append((self._savepoints[ids], values))

    def get(self, key: Key, alias: str) -> Values | None:
        """Return what a row held before the transaction; None: it did not exist; ``UNKNOWN``: it was not read."""
        connection, known = connections[alias], reversed(self._values.get(key, []))
        return next((values for savepoint, values in known if savepoint.is_open(connection)), UNKNOWN)


_latest: WeakKeyDictionary[BaseDatabaseWrapper, ValuesBefore] = WeakKeyDictionary()


def read_before_save(entity: models.Model, using: str, force_insert: bool, update_fields: Iterable[str] | None) -> None:
    """Read and lock the row that a save is about to write, if its events compare values and it was not read before."""
    compared = compared_columns(type(entity))
    if not compared or is_inserted_by_save(entity, force_insert):
        return
    values = ValuesBefore.of(using)
    for owner, found in compared.items():
        if update_fields is not None and found.names.isdisjoint(update_fields):
            continue
        key = _key(owner, found.declared, entity)
        if values.get(key, using) is UNKNOWN:
            values.put(key, _read(owner, found.declared.pk_of(entity), found.columns, using), using)


def note_insert(entity: models.Model, using: str) -> None:
    """Remember that the row of ``entity`` did not exist: this save has inserted it."""
    for owner, found in compared_columns(type(entity)).items():
        key = _key(owner, found.declared, entity)
        # The row of a parent may be older: it is what was read before the save.
        if owner is entity._meta.concrete_model or ValuesBefore.of(using).get(key, using) is UNKNOWN:
            ValuesBefore.of(using).put(key, None, using)


def note_origin(entity: models.Model, declared: Declared, using: str, row: Values | None) -> None:
    """Remember what a row held before the open transaction, unless that is known: ``row``, by attribute."""
    owner = declared.owner._meta.concrete_model
    assert owner is not None
    key = _key(owner, declared, entity)
    if ValuesBefore.of(using).get(key, using) is UNKNOWN:
        ValuesBefore.of(using).put(key, row, using)


def note_locked_row(entity: models.Model, using: str, row: Values) -> None:
    """Remember the values of a row that is about to be deleted, unless they were read before."""
    for owner, found in compared_columns(type(entity)).items():
        key = _key(owner, found.declared, entity)
        if found.columns <= row.keys() and ValuesBefore.of(using).get(key, using) is UNKNOWN:
            ValuesBefore.of(using).put(key, {name: row[name] for name in found.columns}, using)


def note_deletion(entity: models.Model, using: str, table: type[models.Model] | None = None) -> None:
    """Remember that a row of the same key, if this transaction inserts one, is another one than ``entity``. ``table``:
    the model from whose table it was deleted. Default: its own."""
    for owner, found in compared_columns(type(entity)).items():
        if owner is (table or entity._meta.concrete_model):
            ValuesBefore.of(using).put(_key(owner, found.declared, entity), None, using)


def values_before(declared: Declared, entity: models.Model, using: str) -> Values | None:
    """Return the values of the fields that an event compares, before the open transaction; None: the row did not exist;
    ``UNKNOWN``: no save has written one of them."""
    owner = declared.owner._meta.concrete_model
    assert owner is not None
    row = ValuesBefore.of(using).get(_key(owner, declared, entity), using)
    if row is None or row is UNKNOWN:
        return row
    fields: dict[str, Any] = {name: owner._meta.get_field(name) for name in declared.definition.compared_fields}
    return {name: as_stored(field, row[field.attname]) for name, field in fields.items()}


def _key(owner: type[models.Model], declared: Declared, entity: models.Model) -> Key:
    return owner, entity_id_of(owner, declared.pk_of(entity))


def _read(owner: type[models.Model], pk: Any, columns: Iterable[str], using: str) -> Values | None:
    # Managers of the model may filter, so none is used.
    rows = models.QuerySet[Any, Any](owner, using=using).filter(pk=pk).order_by()
    found: list[Values] = list(locked(rows).values(*columns))
    return found[0] if found else None
