"""Waits, the arriving side: which runs a signal or an occurrence wakes. One indexed lookup by key, for any number of
waiting runs.

A signal or an occurrence commits first (a signal together with its delivery). Then the runs that wait under its keys
are woken; the head of ``waits`` explains why no wake-up is lost. The transaction that wakes a run deletes all its
waits; ``branches`` says what runs do that wait for several things at once. The same lookup finds the runs that the
event cancels (``cancellation``), and ends them first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connections, transaction
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet

from ..db.selects import compiled_select
from ..db.writer import alias_of
from ..events.matching.lookups import event_satisfies, payload_satisfies
from ..events.matching.match import address, event_keys, namespaced_key
from ..events.matching.payload_fields import read_field
from ..events.models import Event, RoutingShape, Shapes
from ..events.sources import event_sources, owners_of, stored_names
from ..events.subscriptions import subscriptions
from ..events.windows import collectors_of
from ..queues.advance import advance
from ..queues.positions import allocate, is_allocated_by_advance, record_arrivals
from ..values.clock import Clock
from .branches import Arrival
from .current_run import KIND, WakeReason
from .ending import end_runs
from .models import IS_CANCELLING, IS_OPEN, WHOLE_RUN, Signal, Wait, WaitQuerySet, WorkflowRun
from .statuses import WorkflowStatus
from .wait_keys import EVENT_CHANNEL, WAITS, channel_key, own_key
from .waking import wake_runs

RUNS_PER_TRANSACTION = 100
"""Runs that one transaction cancels: it locks them until its end."""


def deliver(signal: Signal, clock: Clock) -> None:
    """Wake the runs that wait for ``signal``, in one transaction: a few statements, for any number of runs."""
    now = clock()
    with transaction.atomic(using=alias_of(Signal)):
        done = {"delivered_at": now, "wake_at": None, "lease": None}
        is_for_event = signal.name.startswith(EVENT_CHANNEL)
        if signal.run_id is None:
            keys = signal_keys(signal)
            waited, cancelling = _keys_in_use(keys) if is_for_event else (keys, [])
            if cancelling:
                _cancel(_satisfied_waits(signal, Wait.objects.cancelling().filter(key__in=cancelling)), signal, now)
            if waited:
                waits = Wait.objects.under(waited).not_consumed(WakeReason.SIGNAL, signal.pk)
                wake_runs(_satisfied_waits(signal, waits), Arrival.of(signal), now)
        else:
            mine = Wait.objects.filter(run=signal.run_id, channel=signal.name)
            is_cancelled = is_for_event and _cancel(mine.cancelling(), signal, now)
            if is_cancelled or wake_runs(mine.open(), Arrival.of(signal), now):
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
    # One query for the whole batch: most occurrences have no waiting run, and cancel none.
    waited, cancelling = map(set, _keys_in_use(list(every)))
    for event in events:
        if theirs := [key for key in keys[event.pk] if key in cancelling]:
            _cancel_by_event(event, theirs, now)
        mine = [key for key in keys[event.pk] if key in waited]
        if mine:
            waits = Wait.objects.under(mine).not_consumed(WakeReason.EVENT, event.pk)
            fitting = _fitting(waits.filter(run__position__lt=event.position or 0), event)
            with transaction.atomic(using=alias_of(WorkflowRun)):
                wake_runs(fitting, Arrival.of(event), now)


def _fitting(waits: WaitQuerySet, event: Event) -> WaitQuerySet:
    """Return those of ``waits`` whose residual ``event`` satisfies, and whose run it has neither started nor been
    collected by."""
    waits = waits.exclude(run__event=event.pk)
    if subscriptions.has_windows:
        waits = waits.exclude(run__in=collectors_of(KIND, event.pk))
    return _with_residual(waits, partial(event_satisfies, event), event.event_name)


def _keys_in_use(keys: list[str]) -> tuple[list[str], list[str]]:
    """Return under which of ``keys`` runs wait, and under which of them there are runs to cancel."""
    waited: list[str] = []
    cancelling: list[str] = []
    for key, is_cancelling in _in_use(keys):
        (cancelling if is_cancelling else waited).append(key)
    return waited, cancelling


@compiled_select
def _in_use(keys: Sequence[str]) -> QuerySet[Wait, tuple[str, bool]]:
    cancels = ExpressionWrapper(Q(visit=WHOLE_RUN), output_field=BooleanField())
    rows = Wait.objects.filter(IS_OPEN | IS_CANCELLING, key__in=keys)
    return rows.values_list("key", cancels).distinct()


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
    return address(event_name, match, event_sources(event_name)).residual


def _keys_of(event: Event, shapes: Shapes) -> list[str]:
    keys = [
        channel_key(f"{EVENT_CHANNEL}{event.event_name}"),
        own_key(event.event_name, event.entity_type, event.entity_id),
        *event_keys(event.event_name, event, shapes.of(WAITS, event)),
    ]
    return keys + [namespaced_key(event.namespace, key) for key in keys] if event.namespace else keys


# -- what cancels runs -------------------------------------------------------------------------------------------------


def cancelled_by(cause: Event | Signal) -> str:
    """Return the ``error`` of a run that an event cancels, or a signal that stands for it."""
    return f"Cancelled by {cause}, which its workflow names in cancel_on=."


def _cancel_by_event(event: Event, keys: list[str], now: datetime) -> None:
    waits = Wait.objects.cancelling().filter(key__in=keys, since__lt=event.position or 0)
    _cancel(_fitting(waits, event), event, now)


def _cancel(waits: WaitQuerySet, cause: Event | Signal, now: datetime) -> int:
    """Cancel the runs of ``waits`` as ``engine.cancel`` does, and return how many ended."""
    pks = sorted(set(waits.values_list("run", flat=True)))
    ended = 0
    for start in range(0, len(pks), RUNS_PER_TRANSACTION):
        runs = WorkflowRun.objects.filter(pk__in=pks[start : start + RUNS_PER_TRANSACTION]).order_by("pk")
        ended += end_runs(runs, WorkflowStatus.CANCELLED, cancelled_by(cause), now)
    return ended


# -- signals that stand for an event: engine.signal("event:X", payload) ------------------------------------------------


def signal_keys(signal: Signal) -> list[str]:
    """Return the keys of the waits that a broadcast signal wakes. On the channel of an event the payload stands for the
    entity: the signal also wakes waits whose match the payload satisfies."""
    keys = [channel_key(signal.name)]
    if not signal.name.startswith(EVENT_CHANNEL):
        return keys
    payload, name = signal.payload or {}, signal.name.removeprefix(EVENT_CHANNEL)
    sources = event_sources(name)
    if isinstance(payload.get("entity_id"), str | int):
        payload = {"pk": payload["entity_id"], **payload}
        keys += [own_key(name, source.label, str(payload["entity_id"])) for source in sources]
    patterns = stored_names(name) | {name}
    for shape in RoutingShape.objects.filter(used_by=WAITS, event_name__in=patterns).values_list("shape", flat=True):
        fields = shape.split(",") if shape else []
        with suppress(LookupError):
            keys += address(name, {field: read_field(payload, field) for field in fields}, sources).keys
    namespace = payload.get("namespace")
    return keys + [namespaced_key(namespace, key) for key in keys] if isinstance(namespace, str) and namespace else keys


def _satisfied_waits(signal: Signal, waits: WaitQuerySet) -> WaitQuerySet:
    if not signal.name.startswith(EVENT_CHANNEL):
        return waits
    name = signal.name.removeprefix(EVENT_CHANNEL)
    return _with_residual(waits, partial(_signal_satisfies, signal, name), name)


def signal_satisfies(signal: Signal, wait: Wait) -> bool:
    """Return whether a signal on the channel of an event satisfies ``wait``."""
    name = signal.name.removeprefix(EVENT_CHANNEL)
    if wait.key not in signal_keys(signal):
        return False
    return not wait.residual or _signal_satisfies(signal, name, residual_of(wait.match or {}, name))


def _signal_satisfies(signal: Signal, event_name: str, residual: Mapping[str, Any]) -> bool:
    return payload_satisfies(owners_of(event_sources(event_name)), signal.payload or {}, residual)
