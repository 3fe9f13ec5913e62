"""Waits, the arriving side: which runs a signal or an occurrence wakes. One indexed lookup by key, for any number of
waiting runs.

A signal or an occurrence commits first (a signal together with its delivery). Then the runs that wait under its keys
are woken; the head of ``waits`` explains why no wake-up is lost. The transaction that wakes a run deletes all its
waits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connections, transaction

from ..db.writer import alias_of
from ..events.declarations import sources_of
from ..events.matching.lookups import COMPARISONS, compare, satisfies
from ..events.matching.match import address, entity_keys, namespaced_key
from ..events.models import Event, RoutingShape, Shapes
from ..events.names import pattern_of
from ..queues.advance import advance
from ..queues.positions import allocate, is_allocated_by_advance, record_arrivals
from ..values.clock import Clock
from .current import WakeReason
from .models import Signal, Wait, WaitQuerySet, WorkflowRun
from .wait_keys import EVENT_CHANNEL, WAITS, channel_key, own_key
from .waking import wake_runs


def deliver(signal: Signal, clock: Clock) -> None:
    """Wake the runs that wait for ``signal``, in one transaction: a few statements, for any number of runs."""
    now = clock()
    with transaction.atomic(using=alias_of(Signal)):
        done = {"delivered_at": now, "wake_at": None, "lease": None}
        if signal.run_id is None:
            waits = Wait.objects.under(signal_keys(signal)).not_consumed(WakeReason.SIGNAL, signal.pk)
            wake_runs(_satisfied_waits(signal, waits), WakeReason.SIGNAL, signal.pk, now)
        else:
            waits = Wait.objects.open().filter(run=signal.run_id, channel=signal.name)
            if wake_runs(waits, WakeReason.SIGNAL, signal.pk, now):
                done["consumed_at"] = now
        if is_allocated_by_advance(connections[alias_of(Signal)]):
            record_arrivals(connections[alias_of(Signal)])
            advance(signal, done, position_columns=("position",))
        else:
            advance(signal, done | {"position": allocate(1)[0]})


def wake_waiting_for(events: Sequence[Event], shapes: Shapes, now: datetime) -> None:
    """Wake the runs that wait for these occurrences, which are committed.

    Idempotent, and correct however late it is called: a run receives nothing that arrived before it was created.
    """
    keys = {event.pk: _keys_of(event, shapes) for event in events}
    every = {key for found in keys.values() for key in found}
    # One query for the whole batch: most occurrences have no waiting run.
    waited = set(Wait.objects.under(list(every)).values_list("key", flat=True).distinct())
    for event in events:
        mine = [key for key in keys[event.pk] if key in waited]
        if mine:
            waits = Wait.objects.under(mine).not_consumed(WakeReason.EVENT, event.pk)
            waits = waits.filter(run__position__lt=event.position or 0)
            waits = waits.exclude(run__event=event.pk)  # a run never waits for the event that started it
            fitting = _with_residual(waits, lambda residual, event=event: _satisfies(event, residual), event.event_name)
            with transaction.atomic(using=alias_of(WorkflowRun)):
                wake_runs(fitting, WakeReason.EVENT, event.pk, now, depth=event.depth + 1)


def _satisfies(event: Event, residual: Mapping[str, Any]) -> bool:
    return event.entity is not None and satisfies(event.entity, residual)


def _with_residual(waits: WaitQuerySet, holds: Any, event_name: str) -> WaitQuerySet:
    """Return those of ``waits`` whose match is satisfied beyond its key: its residual holds, too."""
    verdicts: dict[str, bool] = {}
    wrong = []
    for pk, match in waits.filter(residual=True).values_list("pk", "match"):
        assert match is not None
        known = json.dumps(match, sort_keys=True)
        if known not in verdicts:
            verdicts[known] = holds(residual_of(match, event_name))
        if not verdicts[known]:
            wrong.append(pk)
    return waits.exclude(pk__in=wrong) if wrong else waits


def residual_of(match: dict[str, Any], event_name: str) -> dict[str, Any]:
    """Return the part of a wait's match that its key does not cover."""
    return address(event_name, match, sources_of(event_name)).residual


def _keys_of(event: Event, shapes: Shapes) -> list[str]:
    keys = [
        channel_key(f"{EVENT_CHANNEL}{event.event_name}"),
        own_key(event.event_name, event.entity_type, event.entity_id),
        *entity_keys(event.event_name, event.entity, shapes.of(WAITS, event)),
    ]
    return keys + [namespaced_key(event.namespace, key) for key in keys] if event.namespace else keys


# -- signals that stand for an event: engine.signal("event:X", payload) ------------------------------------------------


def signal_keys(signal: Signal) -> list[str]:
    """Return the keys of the waits that a broadcast signal wakes. On the channel of an event the payload stands for the
    entity: the signal also wakes waits whose match the payload satisfies."""
    keys = [channel_key(signal.name)]
    if not signal.name.startswith(EVENT_CHANNEL):
        return keys
    payload, name = signal.payload or {}, signal.name.removeprefix(EVENT_CHANNEL)
    sources = sources_of(name)
    if isinstance(payload.get("entity_id"), str | int):
        payload = {"pk": payload["entity_id"], **payload}
        keys += [own_key(name, source.label, str(payload["entity_id"])) for source in sources]
    patterns = {pattern_of(source.definition.name) for source in sources} | {name}
    for shape in RoutingShape.objects.filter(used_by=WAITS, event_name__in=patterns).values_list("shape", flat=True):
        fields = shape.split(",") if shape else []
        if all(field in payload for field in fields):
            keys += address(name, {field: payload[field] for field in fields}, sources).keys
    namespace = payload.get("namespace")
    return keys + [namespaced_key(namespace, key) for key in keys] if isinstance(namespace, str) and namespace else keys


def _satisfied_waits(signal: Signal, waits: WaitQuerySet) -> WaitQuerySet:
    if not signal.name.startswith(EVENT_CHANNEL):
        return waits
    name = signal.name.removeprefix(EVENT_CHANNEL)
    return _with_residual(waits, lambda residual: _payload_satisfies(signal, name, residual), name)


def signal_satisfies(signal: Signal, wait: Wait) -> bool:
    """Return whether a signal on the channel of an event satisfies ``wait``."""
    name = signal.name.removeprefix(EVENT_CHANNEL)
    if wait.key not in signal_keys(signal):
        return False
    return not wait.residual or _payload_satisfies(signal, name, residual_of(wait.match or {}, name))


def _payload_satisfies(signal: Signal, event_name: str, residual: Mapping[str, Any]) -> bool:
    """Return whether the payload satisfies ``residual``. A lookup that needs the database is never satisfied."""
    payload = signal.payload or {}
    owners = [source.owner for source in sources_of(event_name)]
    for name, value in residual.items():
        path, _, lookup = name.rpartition("__")
        if lookup not in COMPARISONS or path not in payload:
            return False
        try:
            if not compare(owners, path, lookup, payload[path], value):
                return False
        except TypeError:
            return False
    return True
