"""``compiled_select``: a SELECT by keys that Django compiles once for each connection. To compile it each time takes
longer than to execute it.

The decorated function builds a queryset from keys. At the first call on a connection Django compiles it with
placeholders, and finds the converters of its columns. From then on a call executes that statement with its keys, and
returns what the queryset would: instances, by ``from_db``, or the tuples of ``values_list``. The cursor is Django's, so
execute wrappers, the query log and tests that count queries see the statement.

What is kept belongs to the connection, because converters do. A statement has a fixed number of keys, so the last key
is repeated up to the next power of two: that finds the same rows with few statements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

from django.conf import settings
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import RawSQL
from django.db.models.query import ModelIterable, ValuesListIterable

from .prepared import prepared_cursor
from .writer import alias_of

R_co = TypeVar("R_co", covariant=True)

MAX_KEYS = 64
"""For more keys Django compiles the SELECT each time: it is a small part of the time that so many rows take."""
_KEPT = "automation_selects"
"""The attribute of a connection that has what was compiled for it."""

Converters = Sequence[tuple[int, Any, Sequence[Callable[..., Any]]]]
"""Each column that Django converts: its position, its expression, and what converts its values."""


class CompiledSelect(Generic[R_co]):
    """A function of keys that returns the rows of the queryset that ``build`` makes of them."""

    def __init__(self, build: Callable[[Sequence[str]], models.QuerySet[Any, R_co]]) -> None:
        self._build = build
        functools.update_wrapper(self, build)

    @functools.cached_property
    def _model(self) -> type[models.Model]:
        return self._build([""]).model

    def __call__(self, keys: Sequence[str]) -> list[R_co]:
        if not keys or len(keys) > MAX_KEYS:
            return list(self._build(keys))
        connection = connections[alias_of(self._model)]
        count = 1 << (len(keys) - 1).bit_length()
        statement = kept_on(connection, (self, count), lambda: _Statement(self._build(_placeholders(count)), count))
        return cast("list[R_co]", statement.rows([*keys, *[keys[-1]] * (count - len(keys))], connection))


def compiled_select(build: Callable[[Sequence[str]], models.QuerySet[Any, R_co]]) -> CompiledSelect[R_co]:
    """Compile the queryset that ``build`` makes of keys once for each connection.

    Its rows must depend on the keys alone, which are strings for columns of strings: ``build`` is called with
    placeholders. It has no ``select_related`` and no annotations of instances.
    """
    return CompiledSelect(build)


class _Statement:
    """The SELECT for one number of keys on one connection, and how its rows become those of the queryset."""

    def __init__(self, queryset: models.QuerySet[Any, Any], count: int) -> None:
        compiler = queryset.query.get_compiler(queryset.db)
        self._sql, params = compiler.as_sql()
        self._params = list(params)
        numbers = {placeholder: number for number, placeholder in enumerate(_placeholders(count))}
        self._keys = [
            (position, numbers[each])
            for position, each in enumerate(self._params)
            if isinstance(each, str) and each in numbers
        ]
        if {number for _, number in self._keys} != set(numbers.values()):
            raise TypeError(f"{queryset.query} does not have its keys as parameters.")
        columns = [column for column, *_ in compiler.select]
        self._converters = converters_of(columns, compiler.connection)
        self._model: type[models.Model] | None = None
        if queryset._iterable_class is ModelIterable:
            if queryset.query.annotation_select or queryset.query.select_related:
                raise TypeError(f"{queryset.query} has more than the columns of {queryset.model._meta.label}.")
            self._model = queryset.model
            self._names = [column.target.attname for column in columns]
        elif queryset._iterable_class is not ValuesListIterable:
            raise TypeError(f"{queryset.query} returns neither instances nor tuples.")

    def rows(self, keys: Sequence[str], connection: BaseDatabaseWrapper) -> list[Any]:
        params = self._params.copy()
        for position, number in self._keys:
            params[position] = keys[number]
        with prepared_cursor(connection) as cursor:
            cursor.execute(self._sql, params)
            found = cursor.fetchall()
        rows = convert_rows(found, self._converters, connection)
        if self._model is None:
            return list(map(tuple, rows))
        return [self._model.from_db(connection.alias, self._names, row) for row in rows]


def _placeholders(count: int) -> list[str]:
    return [f"automation key {number}" for number in range(count)]


def converters_of(columns: Iterable[Any], connection: BaseDatabaseWrapper) -> Converters:
    """Return what converts ``columns`` of a result to Python's values, as Django does."""
    found = [
        (position, column, [*connection.ops.get_db_converters(column), *column.get_db_converters(connection)])
        for position, column in enumerate(columns)
    ]
    return [each for each in found if each[2]]


def convert_rows(
    rows: Iterable[Sequence[Any]], converters: Converters, connection: BaseDatabaseWrapper
) -> Iterator[list[Any]]:
    """Yield ``rows`` with the values that Django makes of them."""
    for row in map(list, rows):
        for position, column, functions in converters:
            value = row[position]
            for function in functions:
                value = function(value, column, connection)
            row[position] = value
        yield row


def columns_of(model: type[models.Model], connection: BaseDatabaseWrapper) -> tuple[list[str], Converters]:
    """Return the names of all columns of ``model`` as ``from_db`` takes them, and their converters."""

    def find() -> tuple[list[str], Converters]:
        fields = model._meta.concrete_fields
        columns = [field.get_col(model._meta.db_table) for field in fields]
        return [field.attname for field in fields], converters_of(columns, connection)

    return kept_on(connection, model, find)


M = TypeVar("M", bound=models.Model)


def read_by_pk(model: type[M], pks: Sequence[Any]) -> dict[Any, M]:
    """Return the rows of ``model`` with these primary keys, as ``in_bulk`` does, with a SELECT that is made once."""
    if not pks:
        return {}
    connection = connections[alias_of(model)]
    names, converters = columns_of(model, connection)
    count = 1 << (len(pks) - 1).bit_length()
    sql = kept_on(connection, (model, "by pk", count), lambda: _by_pk_sql(model, connection, count))
    with prepared_cursor(connection) as cursor:
        cursor.execute(sql, [*pks, *[pks[-1]] * (count - len(pks))])
        found = cursor.fetchall()
    rows = [model.from_db(connection.alias, names, row) for row in convert_rows(found, converters, connection)]
    return {row.pk: row for row in rows}


def read_of_project(rows: models.QuerySet[M], pks: Sequence[Any]) -> dict[Any, M]:
    """Return the rows of a model of the project with these primary keys, as ``rows.in_bulk`` does.

    ``rows`` are all rows of the base manager, and come from the writer. Django compiles the SELECT once for each
    connection, unless the project's own code has a part in it: a manager, or relations that are to be read, too. It is
    compiled because such a model may have fields that are selected in their own way.
    """
    model, key = rows.model, rows.model._meta.pk
    is_plain = type(model._base_manager) is models.Manager and not rows.query.select_related
    if not is_plain or key.is_relation or not key.column or len(pks) > MAX_KEYS:
        return rows.in_bulk(pks)
    connection = connections[rows.db]
    values = [key.get_db_prep_value(pk, connection) for pk in pks]
    return {row.pk: row for row in _select_of_project(model)(values)}


@functools.lru_cache(maxsize=512)
def _select_of_project(model: type[M]) -> CompiledSelect[M]:
    def build(values: Sequence[Any]) -> models.QuerySet[M]:
        # Expressions, because a placeholder is no value of the column.
        keys = [RawSQL("%s", [value]) for value in values]
        return model._base_manager.using(alias_of(model)).filter(pk__in=keys)

    return compiled_select(build)


def _by_pk_sql(model: type[models.Model], connection: BaseDatabaseWrapper, count: int) -> str:
    quote = connection.ops.quote_name
    columns = ", ".join(quote(str(field.column)) for field in model._meta.concrete_fields)
    pk, keys = quote(str(model._meta.pk.column)), ", ".join(["%s"] * count)
    return f"SELECT {columns} FROM {quote(model._meta.db_table)} WHERE {pk} IN ({keys})"


K = TypeVar("K")


def kept_on(connection: BaseDatabaseWrapper, key: Any, make: Callable[[], K]) -> K:
    """Return what ``make`` has made for ``key`` and ``connection``. It may refer to the connection, whose attribute it
    is, and to settings that decide how values are stored."""
    kept = connection.__dict__.setdefault(_KEPT, {})
    full_key = (key, settings.USE_TZ)
    if full_key not in kept:
        kept[full_key] = make()
    return cast("K", kept[full_key])
