"""The registry of Wakeable models, and when the next row of each is due.

The layers above register their models in ``AppConfig.ready()``; this layer imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from ..conf import conf
from ..db.writer import alias_of
from .models import Maintenance
from .wakeable import Behaviour, Wakeable

_wakeables: list[type[Wakeable]] = []
_explained: list[type[Model]] = []
_longest_timeout = timedelta(0)


def register(model: type[Wakeable], behaviour: Behaviour) -> None:
    """Let ``drain`` perform rows of ``model`` with ``behaviour``. Models with a lower ``drain_order`` come first."""
    model.behaviour = behaviour
    if model not in _wakeables:
        _wakeables.append(model)
        _wakeables.sort(key=lambda each: each.drain_order)


def register_explained(model: type[Model]) -> None:
    """Let ``automation_health --explain`` also list unfinished rows of ``model``, which is no Wakeable but has the same
    ``unfinished()`` and ``waits_for(now)``."""
    if model not in _explained:
        _explained.append(model)


def declare_timeout(timeout: timedelta) -> None:
    """Declare that user code may run for ``timeout``, so that no task queue kills the worker earlier."""
    global _longest_timeout
    _longest_timeout = max(_longest_timeout, timeout)


def longest_timeout() -> timedelta:
    return max(_longest_timeout, conf().STEP_TIMEOUT)


def wakeables() -> tuple[type[Wakeable], ...]:
    """Return the models whose rows are work. They do not include the engine's own ``Maintenance``."""
    return tuple(_wakeables)


def models_of_queues(names: Collection[str]) -> tuple[type[Wakeable], ...]:
    """Return the models of the given queue names. Raises ``ValueError`` for an unknown name."""
    everything: list[type[Wakeable]] = [*_wakeables, Maintenance]
    known = {model.queue: model for model in everything}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"There is no queue {name!r}.{hint} Known queues: {', '.join(sorted(known))}.")
    return tuple(model for model in everything if model.queue in names)


def explained() -> tuple[type[Any], ...]:
    """Return the models whose unfinished rows can report what they wait for."""
    return (*_wakeables, *_explained)


def due_times(
    since: Mapping[type[Wakeable], datetime] | None = None, *, maintenance: bool = False
) -> dict[type[Wakeable], datetime]:
    """Return for each Wakeable model when its next row is due: one cheap query, answered from the indexes.

    ``since``: skip rows of a model with an earlier ``wake_at`` (default: skip none; see ``due``). ``maintenance``:
    include ``Maintenance``.
    """
    if not _wakeables:
        return {}
    connection = connections[alias_of(_wakeables[0])]
    quote = connection.ops.quote_name
    # min() over an index, not EXISTS: one answer shows whether a row is due and, if not, how long to sleep.
    starts = {model: connection.ops.adapt_datetimefield_value(moment) for model, moment in (since or {}).items()}
    selected: list[type[Wakeable]] = [*_wakeables, Maintenance] if maintenance else _wakeables
    sql = " UNION ALL ".join(
        f"SELECT {number}, min(wake_at) FROM {quote(model._meta.db_table)} "
        f"WHERE wake_at {'>= %s' if model in starts else 'IS NOT NULL'}"
        for number, model in enumerate(selected)
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [starts[model] for model in selected if model in starts])
        rows = cursor.fetchall()
    convert = _converter(connection)
    return {selected[number]: convert(value) for number, value in rows if value is not None}


def _converter(connection: BaseDatabaseWrapper) -> Callable[[object], datetime]:
    """Return the function that converts raw datetimes of this database to Python's, as Django does for the column."""
    field = Wakeable._meta.get_field("wake_at")
    converters = [
        *connection.ops.get_db_converters(field.get_col("")),
        *field.get_db_converters(connection),
    ]

    def convert(value: object) -> datetime:
        for converter in converters:
            value = converter(value, field, connection)
        return value  # type: ignore[return-value]

    return convert


def due_models(
    now: datetime,
    times: Mapping[type[Wakeable], datetime] | None = None,
    models: Collection[type[Wakeable]] | None = None,
) -> list[type[Wakeable]]:
    """Return the models that have a due row, in the order of draining, maintenance last. ``times``: the result of
    ``due_times``. ``models``: only these (default: all in ``times``)."""
    if times is None:
        times = due_times()
    everything: list[type[Wakeable]] = [*_wakeables, Maintenance]
    selected = [model for model in everything if models is None or model in models]
    return [model for model in selected if model in times and times[model] <= now]
