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

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.apps import apps
from django.db import connections, transaction
from django.db.models import Q, QuerySet

from ..conf import conf
from ..events.definitions import Declared, EventDefinition, EventTrigger, declared_on, sources_of
from ..events.lookback import met
from ..events.matching import Address, address, entity_keys, evaluate, plain, satisfies, trouble_with, within
from ..events.models import Event, RoutingShape, Shapes
from ..events.names import ANY, MAX_NAME, pattern_of
from ..exceptions import DefinitionError
from ..queues.clock import Clock
from ..queues.executor import ring_after_commit
from ..queues.keys import digest
from ..queues.lease import advance, alias_of, disturb
from ..queues.positions import allot, is_folded, note_arrivals
from .context import WakeReason
from .ending import end_runs
from .models import Signal, StepExecution, WorkflowRun, WorkflowStatus
from .outcomes import Wait

WAITS = "waits"


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
    channel, match, residual, namespace = wait.signal, None, False, ""
    key = channel_key(channel)
    if wait.event is not None:
        name = _name(wait.event, context)
        channel = f"event:{name}"
        key = channel_key(channel)
        # A name made of the Context's fields says by itself whose event is meant.
        own = own_declaration(run, name) if name == wait.event else None
        if wait.match is not None and wait.match.lookups:
            values = wait.match.values_from(context)
            where = _address(name, values)
            (key,) = where.keys
            match, residual = {each: plain(value) for each, value in values.items()}, bool(where.residual)
        elif wait.match is None and own is not None:
            key, match = own_key(name, own.label, run.entity_id), {"pk": run.entity_id}
        if wait.namespace not in (None, ANY):
            namespace = str(wait.namespace)
            key = within(namespace, key)
    deadline = None if wait.timeout is None else now + wait.timeout
    return {
        "wait_channel": channel,
        "wait_key": key,
        "wait_since": step_started,
        "wait_match": match,
        "wait_residual": residual,
        "wait_namespace": namespace,
        "wait_deadline": deadline,
        "wait_then": wait.then or "",
        "on_timeout": wait.on_timeout or "",
    }


def _name(template: str, context: Any) -> str:
    name = str(evaluate(template, context))
    if not 0 < len(name) <= MAX_NAME:
        raise DefinitionError(
            f"wait_for_event({template!r}): the name becomes {name[:60]!r}..., of {len(name)} characters."
        )
    return name


def _address(event_name: str, values: dict[str, Any]) -> Address:
    """Return where a wait with these values is found, and see to it that occurrences are looked up there."""
    sources = sources_of(event_name)
    for name in values:
        troubles = [trouble_with(source.owner, name) for source in sources]
        if troubles and all(troubles):
            raise DefinitionError(f"wait_for_event({event_name!r}): match compares {name!r}. {troubles[0]}")
    where = address(event_name, values, sources)
    for pattern in {pattern_of(source.definition.name) for source in sources} or {event_name}:
        RoutingShape.ensure(WAITS, pattern, where.shape)
    return where


def _residual(run_match: dict[str, Any], event_name: str) -> dict[str, Any]:
    """Return what of a wait's match the key does not say."""
    return address(event_name, run_match, sources_of(event_name)).residual


# -- the run's side ----------------------------------------------------------------------------------------------------


def settle(run: WorkflowRun, clock: Clock) -> None:
    """Look for what the run waits for, after its registration has committed: take it, or let the run rest.

    The run has no lease here; every write is fenced on ``seq``.
    """
    mine = WorkflowRun.objects.filter(pk=run.pk, seq=run.seq, lease=None, status=WorkflowStatus.SUSPENDED)
    found = _there(run)
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
        deeper = {} if isinstance(found, Signal) else {"depth": found.depth + 1}
        if _wake(mine, reason, found.pk, clock(), **deeper) and isinstance(found, Signal) and found.run_id is not None:
            untaken = Signal.objects.filter(pk=found.pk, consumed_at=None)
            if not disturb(untaken, consumed_at=clock(), delivered_at=clock(), wake_at=None):
                transaction.set_rollback(True, using=alias)  # delivered this instant: the run is woken by that
    ring_after_commit(alias_of(WorkflowRun))


def came_in_time(run: WorkflowRun) -> bool:
    """Say whether what the run waits for came before the timeout, which has passed: nobody took it, because the worker
    that registered the wait died before it had looked."""
    found = _there(run)
    came = None if found is None else found.sent_at if isinstance(found, Signal) else found.occurred_at
    return came is not None and run.wait_deadline is not None and came < run.wait_deadline


def look_again(run: WorkflowRun, clock: Clock) -> None:
    """Finish a registration whose worker died before it had looked. Lets the lease go first, then looks."""
    advance(run, {"wake_at": clock() + conf().LEASE, "lease": None})
    settle(run, clock)


def _there(run: WorkflowRun) -> Signal | Event | None:
    return _in_inbox(run) or _broadcast(run) or _occurrence(run)


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
    if run.wait_namespace:
        events = events.filter(namespace=run.wait_namespace)
    events, match = events.order_by("occurred_at", "pk"), run.wait_match
    if not match:
        return events.first()
    own = own_declaration(run, name)
    if own is not None and match == {"pk": run.entity_id}:
        return events.filter(entity_type=own.label, entity_id=run.entity_id).first()
    sources = sources_of(name)
    return next(met(events, sources, name, match, address(name, match, sources)), None)


def counts_deletions(definition: EventDefinition) -> bool:
    return EventTrigger.DELETE in definition.triggers


def deletions_to_come(label: str, entity_id: str) -> set[str]:
    """Return the events of an entity's deletion that were recorded, and have not occurred yet."""
    deletions = Event.objects.filter(entity_type=label, entity_id=entity_id, trigger=EventTrigger.DELETE)
    return set(deletions.filter(occurred_at=None).values_list("declared_as", flat=True))


def _waits_in_vain(run: WorkflowRun) -> bool:
    """Say whether the run waits for an event of its own entity, and that was deleted while its step was under way."""
    own = own_declaration(run, run.wait_channel.removeprefix("event:"))
    if own is None or run.wait_match != {"pk": run.entity_id}:
        return False
    name = own.definition.name
    if counts_deletions(own.definition) and name in deletions_to_come(own.label, run.entity_id):
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
        if is_folded(connections[alias_of(Signal)]):
            note_arrivals(connections[alias_of(Signal)])
            advance(signal, done, arrives=("position",))
        else:
            advance(signal, done | {"position": allot(1)[0]})


def tell_of(events: Sequence[Event], shapes: Shapes, now: datetime, *, late: bool) -> None:
    """Wake those who wait for these occurrences, which are committed. Idempotent.

    ``late``: a worker does it for a process that died after the commit. Runs may have begun to wait since that are
    younger than the occurrence, and are not meant.
    """
    keys = {event.pk: _keys_of(event, shapes) for event in events}
    every = {key for found in keys.values() for key in found}
    # One look for the whole batch: most occurrences have nobody waiting for them.
    waited = set(WorkflowRun.objects.waiting_under(list(every)).values_list("wait_key", flat=True).distinct())
    for event in events:
        mine = [key for key in keys[event.pk] if key in waited]
        if mine:
            waiting = WorkflowRun.objects.waiting_under(mine).not_consumed(WakeReason.EVENT, event.pk)
            waiting = waiting.exclude(event=event.pk)  # what started a run is not what it waits for
            if late:
                waiting = waiting.filter(started_at__lte=event.occurred_at)
            meant = Q(wait_residual=False) | Q(pk__in=_fitting(event, waiting.filter(wait_residual=True)))
            with transaction.atomic(using=alias_of(WorkflowRun)):
                _wake(waiting.filter(meant), WakeReason.EVENT, event.pk, now, depth=event.depth + 1)


def _fitting(event: Event, waiting: QuerySet[WorkflowRun, WorkflowRun]) -> list[int]:
    """Return those of ``waiting`` whose match holds for more than what the key says."""
    verdicts: dict[str, bool] = {}
    fitting = []
    for pk, match in waiting.values_list("pk", "wait_match"):
        assert match is not None
        known = json.dumps(match, sort_keys=True)
        if known not in verdicts:
            verdicts[known] = event.entity is not None and satisfies(event.entity, _residual(match, event.event_name))
        if verdicts[known]:
            fitting.append(pk)
    return fitting


def _keys_of(event: Event, shapes: Shapes) -> list[str]:
    keys = [
        channel_key(f"event:{event.event_name}"),
        own_key(event.event_name, event.entity_type, event.entity_id),
        *entity_keys(event.event_name, event.entity, shapes.of(WAITS, event)),
    ]
    return keys + [within(event.namespace, key) for key in keys] if event.namespace else keys


def _wake(runs: Any, reason: WakeReason, ref: int, now: datetime, **changes: Any) -> int:
    """Make ``runs`` due: one statement. What they waited for stays on the row until their next commit. Who waited for
    an event goes on with its chain of causes (``depth``)."""
    woken = {"status": WorkflowStatus.RUNNING, "wake_at": now, "wake_reason": reason.value, "wake_ref": ref}
    return disturb(runs, **woken, wait_key=None, **changes)
