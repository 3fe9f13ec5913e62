"""What the rows of an entity were after each of its captured writes.

The tables have the state after the last write. Each outbox row has the values that its write has changed, so the states
before are found by going back, write by write. A condition is then evaluated on the entity as it was after the write,
and old values are exact, although a worker comes later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db import connections, models

from ...capture import Model, Reader, concrete, tables_of
from ...changes import Values, as_stored
from ...declarations import Declared
from ...models import CapturedWrite, WriteOperation
from .stored_text import value_of

State = Mapping[Model, Values]
"""The rows of one entity: by the model of each of its tables, the values by attribute name. A table without a row of
the entity is left out."""


@dataclass(frozen=True, slots=True)
class Write:
    """One captured write, and the rows of its entity before and after it.

    ``origin``: the rows before the first write of its transaction. What that has deleted and inserted again is new.
    """

    row: CapturedWrite
    table: Model
    before: State
    after: State
    origin: State

    @property
    def operation(self) -> str:
        return self.row.operation

    @property
    def transaction(self) -> int:
        """The transaction that has made the write. A row whose transaction is unknown is one of its own."""
        return -self.row.pk if self.row.transaction is None else self.row.transaction

    def columns_before(self, owner: Model, columns: Iterable[str]) -> Values | None:
        """Return columns of ``owner`` before the transaction, by attribute name; None: there was no such row."""
        if any(table not in self.origin for table in tables_of(owner)):
            return None
        fields: list[Any] = [owner._meta.get_field(name) for name in columns]
        # A column may be younger than the deletion of the row.
        return {field.attname: self.origin[concrete(field.model)].get(field.attname) for field in fields}

    def values_before(self, declared: Declared) -> Values | None:
        """Return the values that an event compares, before the transaction; None: the row did not exist."""
        owner, names = concrete(declared.owner), declared.definition.compared_fields
        found = self.columns_before(owner, names)
        if found is None:
            return None
        fields: dict[str, Any] = {name: owner._meta.get_field(name) for name in names}
        return {name: as_stored(field, found[field.attname]) for name, field in fields.items()}


def state_of(instances: Sequence[models.Model]) -> State:
    """Return the present state of an entity, of which ``instances`` were just read."""
    state: dict[Model, dict[str, Any]] = {}
    for instance in instances:
        for field in instance._meta.concrete_fields:
            if field.attname in instance.__dict__:
                state.setdefault(concrete(field.model), {})[field.attname] = instance.__dict__[field.attname]
    return state


def writes_of(
    rows: Sequence[CapturedWrite], tables: Mapping[str, Model], present: State, alias: str
) -> Iterator[Write]:
    """Yield the writes of one entity, the oldest first. ``rows``: its outbox rows in order. ``tables``: the models of
    its tables by label."""
    states = [present]
    for row in reversed(rows):
        states.append(_before(row, tables[row.model], states[-1], alias))
    states.reverse()
    origin, latest = states[0], None
    for number, row in enumerate(rows):
        write = Write(row, tables[row.model], states[number], states[number + 1], origin)
        if write.transaction != latest:
            write, latest = replace(write, origin=write.before), write.transaction
        yield write
        origin = write.origin
        if row.operation == WriteOperation.DELETE:
            origin = {table: values for table, values in origin.items() if table is not write.table}


def _before(row: CapturedWrite, table: Model, after: State, alias: str) -> State:
    before = dict(after)
    if row.operation == WriteOperation.INSERT:
        before.pop(table, None)
        return before
    connection = connections[alias]
    fields: dict[str, Any] = {str(field.column): field for field in table._meta.local_concrete_fields}
    # A column may have been removed since.
    known = [(fields[column], text) for column, text in (row.old or {}).items() if column in fields]
    old = {field.attname: value_of(field, text, connection) for field, text in known}
    if row.operation == WriteOperation.DELETE:
        before[table] = old
    elif table in after:
        before[table] = {**after[table], **old}
    return before


def instance_of(reader: Reader, state: State, alias: str) -> models.Model | None:
    """Return the entity in ``state``, as an instance of the reader's class. None: it has no row of that class."""
    if any(table not in state for table in reader.tables):
        return None
    fields = reader.model._meta.concrete_fields
    names = [field.attname for field in fields if field.attname in state[concrete(field.model)]]
    values = [state[concrete(field.model)][field.attname] for field in fields if field.attname in names]
    instance: models.Model = reader.model.from_db(alias, names, values)
    instance._state.automation_is_stored = True  # type: ignore[attr-defined]
    return instance
