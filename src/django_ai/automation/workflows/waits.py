"""Waits and wake-ups: how a run that waits and what it waits for find each other, and nothing falls between them.

The two sides never lock each other. Both first commit what they have and then look at the other's:

* a run *registers*: its step's commit says what it waits for and lets the lease go; then ``settle`` looks for a signal
  or an occurrence that is already there, and takes it, or writes the deadline as its next ``wake_at``. Until then the
  row is due soon, so a worker that dies in between only delays the look;
* a signal or an occurrence *arrives*: it is committed first; then everybody who is registered under its keys is woken.

Whichever of the two commits last sees the other, so a wake-up is never lost, and on any database. Each write names the
state that it changes (not leased, still waiting, same ``seq``), so when both see each other one wins. What a run has
consumed stands in its history, so nothing wakes it twice. A run in a worker's hands is never touched: for instance one
whose timeout has fired.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet

from ..conf import conf
from ..events.definitions import Declared, declared_events, declared_on
from ..events.matching import Match, entity_keys, resolve_field, routing_key
from ..events.models import Event, RoutingShape
from ..exceptions import DefinitionError
from ..queues.clock import Clock
from ..queues.executor import ring_after_commit
from ..queues.keys import digest
from ..queues.lease import advance, alias_of, disturb
from .context import WakeReason
from .ending import end_runs
from .models import Signal, StepExecution, WorkflowRun, WorkflowStatus
from .outcomes import Wait


def channel_key(channel: str) -> str:
    """Return the key under which those wait who take any message on ``channel``."""
    return digest("channel", channel)


def own_key(event_name: str, label: str, entity_id: str) -> str:
    """Return the key under which a run waits for an event of its own entity."""
    return digest("own", event_name, label, entity_id)


def own_declaration(run: WorkflowRun, event_name: str) -> Declared | None:
    """Return the declaration of ``event_name`` by the model of the run's own entity, if there is one."""
    if not run.entity_type:
        return None
    try:
        model = apps.get_model(run.entity_type)
    except (LookupError, ValueError):
        return None
    return next((each for each in declared_on(model) if each.definition.name == event_name), None)


def registration(run: WorkflowRun, wait: Wait, context: Any, step_started: datetime, now: datetime) -> dict[str, Any]:
    """Return the columns that say what the run waits for."""
    key, match = channel_key(wait.signal), None
    if wait.event is not None:
        own = own_declaration(run, wait.event)
        if wait.match is not None and wait.match.lookups:
            key, match = _matched(wait.event, wait.match, context)
        elif wait.match is None and own is not None:
            key, match = own_key(wait.event, own.label, run.entity_id), {"pk": run.entity_id}
    deadline = None if wait.timeout is None else now + wait.timeout
    return {
        "wait_channel": wait.signal,
        "wait_key": key,
        "wait_since": step_started,
        "wait_match": match,
        "wait_deadline": deadline,
        "wait_then": wait.then or "",
        "on_timeout": wait.on_timeout or "",
    }


def _matched(event_name: str, match: Match, context: Any) -> tuple[str, dict[str, Any]]:
    sources = declared_events().get(event_name, [])
    for name in match.names():
        if sources and not any(_has_field(source, name) for source in sources):
            models = ", ".join(source.label for source in sources)
            raise DefinitionError(
                f"wait_for_event({event_name!r}): match compares {name!r}, and {models} has no such field. "
                "A wait compares fields for equality; follow relations with '__'."
            )
    values = match.values_from(context)
    RoutingShape.ensure(event_name, match.shape)
    return routing_key(event_name, values, sources), {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | bool | None) else str(value)


def _has_field(source: Declared, lookup: str) -> bool:
    try:
        resolve_field(source.owner, lookup)
    except Exception:
        return False
    return True


# -- the run's side ----------------------------------------------------------------------------------------------------


def settle(run: WorkflowRun, clock: Clock) -> None:
    """Look for what the run waits for, after its registration has committed: take it, or let the run rest.

    The run has no lease here; every write is fenced on ``seq``.
    """
    mine = WorkflowRun.objects.filter(pk=run.pk, seq=run.seq, lease=None, status=WorkflowStatus.SUSPENDED)
    found = _in_inbox(run) or _broadcast(run) or _occurrence(run)
    if found is None:
        if _waits_in_vain(run):
            reason = f"{run.entity_type} {run.entity_id}, whose event it waited for, was deleted."
            end_runs(mine, WorkflowStatus.CANCELLED, reason, clock())
        else:
            mine.update(wake_at=run.wait_deadline)
        return
    alias, reason = alias_of(WorkflowRun), WakeReason.SIGNAL if isinstance(found, Signal) else WakeReason.EVENT
    # The run first and then the signal, as ``deliver`` does: locks are taken in one order.
    with transaction.atomic(using=alias):
        if _wake(mine, reason, found.pk, clock()) and isinstance(found, Signal) and found.run_id is not None:
            untaken = Signal.objects.filter(pk=found.pk, consumed_at=None)
            if not disturb(untaken, consumed_at=clock(), delivered_at=clock(), wake_at=None):
                transaction.set_rollback(True, using=alias)  # delivered this instant: the run is woken by that
    ring_after_commit(alias_of(WorkflowRun))


def look_again(run: WorkflowRun, clock: Clock) -> None:
    """Finish a registration whose worker died before it had looked. Lets the lease go first, then looks."""
    advance(run, {"wake_at": clock() + conf().LEASE, "lease": None})
    settle(run, clock)


def _in_inbox(run: WorkflowRun) -> Signal | None:
    return Signal.objects.filter(run=run, name=run.wait_channel, consumed_at=None).order_by("pk").first()


def _broadcast(run: WorkflowRun) -> Signal | None:
    """A signal to everybody that came while the step was under way, or is on its way now."""
    if run.wait_key != channel_key(run.wait_channel):
        return None
    came = Q(delivered_at__gte=run.wait_since) | Q(delivered_at=None, wake_at__isnull=False)
    taken = StepExecution.objects.filter(run=run, wake_reason=WakeReason.SIGNAL).values("wake_ref")
    signals = Signal.objects.filter(came, run=None, name=run.wait_channel)
    return signals.exclude(pk__in=taken).order_by("pk").first()


def _occurrence(run: WorkflowRun) -> Event | None:
    """An event that occurred since the run's first step, for the entity that the run means, and not consumed yet."""
    if not run.wait_channel.startswith("event:"):
        return None
    name = run.wait_channel.removeprefix("event:")
    taken = StepExecution.objects.filter(run=run, wake_reason=WakeReason.EVENT).values("wake_ref")
    events = Event.objects.filter(event_name=name, occurred_at__gte=run.started_at).exclude(pk__in=taken)
    if run.event_id is not None:
        events = events.exclude(pk=run.event_id)  # what started the run is not what it waits for
    match = run.wait_match
    if not match:
        return events.order_by("occurred_at", "pk").first()
    own = own_declaration(run, name)
    if own is not None and run.wait_key == own_key(name, own.label, run.entity_id):
        mine = events.filter(entity_type=own.label, entity_id=run.entity_id)
        return mine.order_by("occurred_at", "pk").first()
    for source in declared_events().get(name, []):
        if all(_has_field(source, lookup) for lookup in match):
            found = _matching(source, match, str(run.wait_key), events.filter(entity_type=source.label))
            if found is not None:
                return found
    return None


FEW = 1000


def _matching(source: Declared, match: dict[str, Any], key: str, events: QuerySet[Event, Event]) -> Event | None:
    """Return the first of ``events`` whose entity has the routing key: by the entities that match, where they are few
    (their own index finds them), else by the events."""
    events = events.order_by("occurred_at", "pk")
    entities = source.owner._base_manager.using(alias_of(source.owner))
    try:
        pks = [str(pk) for pk in entities.filter(**match).values_list("pk", flat=True)[: FEW + 1]]
    except (ValueError, TypeError, ValidationError):
        return None  # a value that the field cannot have: no entity has it
    if len(pks) <= FEW:
        return events.filter(entity_id__in=pks).first()
    shape = ",".join(sorted(match))
    for event in events.iterator(chunk_size=FEW):
        if key in entity_keys(event.event_name, event.entity, [shape]):
            return event
    return None


def _waits_in_vain(run: WorkflowRun) -> bool:
    """Say whether the run waits for an event of its own entity, and that was deleted while its step was under way."""
    own = own_declaration(run, run.wait_channel.removeprefix("event:"))
    if own is None or run.wait_key != own_key(own.definition.name, own.label, run.entity_id):
        return False
    pk = own.owner._meta.pk.to_python(run.entity_id)
    return not own.owner._base_manager.using(alias_of(own.owner)).filter(pk=pk).exists()


# -- the other side ----------------------------------------------------------------------------------------------------


def deliver(signal: Signal, clock: Clock) -> None:
    """Wake those who wait for ``signal``, in one short transaction: a few statements, however many they are."""
    now = clock()
    with transaction.atomic(using=alias_of(Signal)):
        done = {"delivered_at": now, "wake_at": None, "lease": None}
        if signal.run_id is None:
            waiting = WorkflowRun.objects.waiting_under([channel_key(signal.name)])
            _wake(waiting.not_consumed(WakeReason.SIGNAL, signal.pk), WakeReason.SIGNAL, signal.pk, now)
        else:
            waiting = WorkflowRun.objects.filter(
                pk=signal.run_id, wait_channel=signal.name, lease=None, status=WorkflowStatus.SUSPENDED
            )
            if _wake(waiting, WakeReason.SIGNAL, signal.pk, now):
                done["consumed_at"] = now
        advance(signal, done)


def tell_of(events: Sequence[Event], now: datetime, *, late: bool) -> None:
    """Wake those who wait for these occurrences, which are committed. Idempotent.

    ``late``: a worker does it for a process that died after the commit. Runs may have begun to wait since that are
    younger than the occurrence, and are not meant.
    """
    shapes: dict[str, list[str]] = {}
    for name, shape in RoutingShape.objects.filter(event_name__in={event.event_name for event in events}).values_list(
        "event_name", "shape"
    ):
        shapes.setdefault(name, []).append(shape)
    keys = {event.pk: _keys_of(event, shapes.get(event.event_name, [])) for event in events}
    every = {key for found in keys.values() for key in found}
    # One look for the whole batch: most occurrences have nobody waiting for them.
    waited = set(WorkflowRun.objects.waiting_under(list(every)).values_list("wait_key", flat=True).distinct())
    for event in events:
        mine = [key for key in keys[event.pk] if key in waited]
        if mine:
            with transaction.atomic(using=alias_of(WorkflowRun)):
                waiting = WorkflowRun.objects.waiting_under(mine).not_consumed(WakeReason.EVENT, event.pk)
                waiting = waiting.exclude(event=event.pk)  # what started a run is not what it waits for
                if late:
                    waiting = waiting.filter(started_at__lte=event.occurred_at)
                _wake(waiting, WakeReason.EVENT, event.pk, now)


def _keys_of(event: Event, shapes: list[str]) -> list[str]:
    return [
        channel_key(f"event:{event.event_name}"),
        own_key(event.event_name, event.entity_type, event.entity_id),
        *entity_keys(event.event_name, event.entity, shapes),
    ]


def _wake(runs: Any, reason: WakeReason, ref: int, now: datetime) -> int:
    """Make ``runs`` due: one statement. What they waited for stays on the row until their next commit."""
    return disturb(
        runs, status=WorkflowStatus.RUNNING, wake_at=now, wake_reason=reason.value, wake_ref=ref, wait_key=None
    )
