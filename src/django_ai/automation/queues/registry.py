"""The registry of Wakeable models, and when the next row of each is due.

The layers above register their models in ``AppConfig.ready()``; this layer imports none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any

from django.db import connections
from django.db.models import Model

from ..conf import conf
from ..db.writer import alias_of
from ..exceptions import DefinitionError
from ..values.clock import check_duration
from ..values.retry import Retry
from .due_query import DueQuery
from .lanes import EVERYTHING, Lane, Selection, are_used
from .models import Maintenance
from .wakeable import Behaviour, Wakeable

_wakeables: list[type[Wakeable]] = []
_explained: list[type[Model]] = []
_encrypted_histories: list[type[Model]] = []
_longest_timeout = timedelta(0)


def register(model: type[Wakeable], behaviour: Behaviour) -> None:
    """Let ``drain`` perform rows of ``model`` with ``behaviour``. Models with a lower ``drain_order`` come first."""
    model.behaviour = behaviour
    if model not in _wakeables:
        _wakeables.append(model)
        _wakeables.sort(key=lambda each: each.drain_order)


def register_explained(model: type[Model]) -> None:
    """Let ``automation_health --explain`` also list unfinished rows of ``model``, which is no Wakeable but has the same
    ``unfinished()``, ``load_reasons(rows)`` and ``waits_for(now)``."""
    if model not in _explained:
        _explained.append(model)


def register_encrypted_history(model: type[Model]) -> None:
    """Let ``automation_reencrypt`` also write the encrypted columns of ``model``, whose rows never change."""
    if model not in _encrypted_histories:
        _encrypted_histories.append(model)


def encrypted_histories() -> tuple[type[Model], ...]:
    return tuple(_encrypted_histories)


def declare_timeout(timeout: timedelta) -> None:
    """Declare that user code may run for ``timeout``, so that no task queue kills the worker earlier."""
    global _longest_timeout
    _longest_timeout = max(_longest_timeout, timeout)


def check_attempts(what: str, retry: Any, timeout: Any) -> None:
    """Raise ``DefinitionError`` unless ``retry`` and ``timeout`` are valid for attempts of user code, and declare the
    timeout."""
    if retry is not None and not isinstance(retry, Retry):
        raise DefinitionError(f"{what}: retry={retry!r} must be a Retry(...).")
    if timeout is not None:
        check_duration(timeout, f"{what}: timeout")
        declare_timeout(timeout)


def longest_timeout() -> timedelta:
    return max(_longest_timeout, conf().STEP_TIMEOUT)


def wakeables() -> tuple[type[Wakeable], ...]:
    """Return the models whose rows are work. They do not include the engine's own ``Maintenance``."""
    return tuple(_wakeables)


def kinds() -> list[str]:
    """Return the kinds of rows, as in ``automation_worker --kinds``."""
    everything: list[type[Wakeable]] = [*_wakeables, Maintenance]
    return list(dict.fromkeys(model.kind for model in everything))


def models_of_kinds(names: Collection[str]) -> tuple[type[Wakeable], ...]:
    """Return the models of the given kinds of rows. Raises ``ValueError`` for an unknown name."""
    everything: list[type[Wakeable]] = [*_wakeables, Maintenance]
    known = {model.kind: model for model in everything}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"There is no kind of row {name!r}.{hint} Kinds: {', '.join(sorted(known))}.")
    return tuple(model for model in everything if model.kind in names or set(model.accompanies) & set(names))


def explained() -> tuple[type[Any], ...]:
    """Return the models whose unfinished rows can report what they wait for."""
    return (*_wakeables, *_explained)


def due_times(
    since: Mapping[Lane, datetime] | None = None, *, maintenance: bool = False, with_paused: bool = False
) -> dict[Lane, datetime]:
    """Return for each lane with due or waiting rows when its next row is due: one cheap query, answered from the
    indexes. Paused lanes are left out.

    ``since``: read only these lanes of the models that it names, and skip rows with an earlier ``wake_at`` (default:
    all lanes, from the beginning; see ``due``). ``maintenance``: include ``Maintenance``. ``with_paused``: include
    paused lanes.
    """
    if not _wakeables:
        return {}
    connection = connections[alias_of(_wakeables[0])]
    selected: list[type[Wakeable]] = [*_wakeables, Maintenance] if maintenance else _wakeables
    query = DueQuery(connection)
    for number, model in enumerate(selected):
        starts = {} if since is None else {lane: start for lane, start in since.items() if lane.model is model}
        if starts:
            for lane, start in starts.items():
                query.add_lane(number, lane, start)
        elif not are_used(model):
            query.add_lane(number, Lane(model))
        else:
            query.add_all_lanes(number, model)
    rows, pauses = query.execute()
    found = {Lane(selected[number], queue, priority): value for number, queue, priority, value in rows}
    if with_paused or not pauses.targets:
        return found
    return {lane: value for lane, value in found.items() if not pauses.is_paused_lane(lane)}


def due_models(
    now: datetime,
    times: Mapping[Lane, datetime] | None = None,
    models: Collection[type[Wakeable]] | None = None,
) -> list[type[Wakeable]]:
    """Return the models that have a due row, in the order of draining, maintenance last. ``times``: the result of
    ``due_times``. ``models``: only these (default: all in ``times``)."""
    return [lane.model for lane in due_lanes(now, due_times() if times is None else times, Selection.of(models))]


def due_lanes(now: datetime, times: Mapping[Lane, datetime], selection: Selection = EVERYTHING) -> list[Lane]:
    """Return, for each model with a due row in ``times``, the lane to claim from first (``Lane.rank``), in the order of
    draining, maintenance last."""
    first: dict[type[Wakeable], Lane] = {}
    for lane, wake_at in times.items():
        if wake_at > now or lane not in selection:
            continue
        best = first.get(lane.model)
        if best is None or lane.rank(wake_at) < best.rank(times[best]):
            first[lane.model] = lane
    return [first[model] for model in (*_wakeables, Maintenance) if model in first]
