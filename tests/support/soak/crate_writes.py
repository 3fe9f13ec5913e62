"""The ways in which the outside writes to crates: some are saves and deletions that send signals, most are not.

Each function writes once to each of the crates ``names``, in the open transaction, and returns to how many. What is
called ``PROGRAM`` writes on a connection that is not the package's: like another program, which only the triggers hear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db import connections, transaction
from django.db.models import F

from tests.apps.soak.models import Crate

SAVE, PROGRAM, ROLLED_BACK, BACK_AND_FORTH = "save", "another program", "rolled back", "back and forth"
ADDING = (SAVE, "bulk_create", "sql", PROGRAM)
CHANGING = (SAVE, "update", "bulk_update", "sql", PROGRAM, "update and save", "save and update")
CHANGING += (BACK_AND_FORTH, ROLLED_BACK)
DROPPING = (SAVE, "queryset", "raw", "sql", PROGRAM)
OTHER = "other"


def alias_for(how: str) -> str:
    """Return the alias of the connection for this way to write."""
    if how != PROGRAM:
        return "default"
    if OTHER not in connections.settings:
        connections.settings[OTHER] = {**connections.settings["default"]}
    return OTHER


def add(names: Sequence[str], how: str, values: Mapping[str, Any]) -> int:
    crates = [Crate(name=name, **values) for name in names]
    if how == SAVE:
        for crate in crates:
            crate.save(force_insert=True)
    elif how == "bulk_create":
        Crate.objects.bulk_create(crates)
    else:
        _insert(crates, alias_for(how))
    return len(crates)


def _insert(crates: Sequence[Crate], alias: str) -> None:
    connection = connections[alias]
    fields = Crate._meta.concrete_fields
    columns = ", ".join(connection.ops.quote_name(str(field.column)) for field in fields)
    row = f"({', '.join(['%s'] * len(fields))})"
    values = [field.get_db_prep_save(getattr(crate, field.attname), connection) for crate in crates for field in fields]
    with connection.cursor() as cursor:
        cursor.execute(f"INSERT INTO {_table(alias)} ({columns}) VALUES {', '.join([row] * len(crates))}", values)


def change(names: Sequence[str], how: str, values: Mapping[str, Any], *, touch: bool) -> int:
    """Set ``values``, and count the version on if ``touch`` says so."""
    return _CHANGES[how](names, {**values, "version": F("version") + 1} if touch else dict(values))


def _save(names: Sequence[str], values: Mapping[str, Any]) -> int:
    for crate in _locked(names):
        _set(crate, values)
        crate.save()
    return len(names)


def _update(names: Sequence[str], values: Mapping[str, Any]) -> int:
    return Crate.objects.filter(name__in=names).update(**values)


def _bulk_update(names: Sequence[str], values: Mapping[str, Any]) -> int:
    crates = _locked(names)
    for crate in crates:
        _set(crate, values)
    return Crate.objects.bulk_update(crates, list(values))


def _sql(names: Sequence[str], values: Mapping[str, Any], how: str = "sql") -> int:
    alias = alias_for(how)
    connection = connections[alias]
    assignments, params = [], []
    for name, value in values.items():
        field: Any = Crate._meta.get_field(name)
        column = connection.ops.quote_name(field.column)
        if name == "version":
            assignments.append(f"{column} = {column} + 1")
        else:
            assignments.append(f"{column} = %s")
            params.append(field.get_db_prep_save(value, connection))
    return _execute(f"UPDATE {_table(alias)} SET {', '.join(assignments)}", params, names, alias)


def _program(names: Sequence[str], values: Mapping[str, Any]) -> int:
    return _sql(names, values, PROGRAM)


def _update_and_save(names: Sequence[str], values: Mapping[str, Any]) -> int:
    found = _update(names, values)
    _save(names, {"note": "saved"})
    return found


def _save_and_update(names: Sequence[str], values: Mapping[str, Any]) -> int:
    _save(names, {"note": "updated"})
    return _update(names, values)


def _back_and_forth(names: Sequence[str], values: Mapping[str, Any]) -> int:
    """Open and close each crate before it is what ``values`` say."""
    for is_open in (True, False, True):
        _update(names, {"is_open": is_open})
    return _update(names, values)


def _rolled_back(names: Sequence[str], values: Mapping[str, Any]) -> int:
    """Write, save, and roll both back to a savepoint."""
    with transaction.atomic():
        _update(names, values)
        _save(names[:1], {"note": "rolled back"})
        transaction.set_rollback(True)
    return len(names)


_CHANGES: dict[str, Callable[[Sequence[str], Mapping[str, Any]], int]] = {
    SAVE: _save,
    "update": _update,
    "bulk_update": _bulk_update,
    "sql": _sql,
    PROGRAM: _program,
    "update and save": _update_and_save,
    "save and update": _save_and_update,
    BACK_AND_FORTH: _back_and_forth,
    ROLLED_BACK: _rolled_back,
}


def drop(names: Sequence[str], how: str) -> int:
    crates = Crate.objects.filter(name__in=names)
    if how == SAVE:
        for crate in _locked(names):
            crate.delete()
        return len(names)
    if how == "queryset":
        return crates.delete()[0]
    if how == "raw":
        return int(crates._raw_delete("default"))
    alias = alias_for(how)
    return _execute(f"DELETE FROM {_table(alias)}", [], names, alias)


def _locked(names: Sequence[str]) -> list[Crate]:
    return list(Crate.objects.select_for_update().filter(name__in=names).order_by("name"))


def _set(crate: Crate, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(crate, name, crate.version + 1 if name == "version" else value)


def _table(alias: str) -> str:
    return str(connections[alias].ops.quote_name(Crate._meta.db_table))


def _execute(sql: str, params: Sequence[Any], names: Sequence[str], alias: str) -> int:
    connection = connections[alias]
    key = connection.ops.quote_name("name")
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} WHERE {key} IN ({', '.join(['%s'] * len(names))})", [*params, *names])
        return int(cursor.rowcount)
