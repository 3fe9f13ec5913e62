"""Waits, the run's side: a run registers what it waits for, and looks for what has arrived already.

The two sides never lock each other. Each commits first and then looks for the other:

* a run *registers*: the commit of its step inserts a ``Wait`` for each thing that it waits for and releases the lease.
  Then ``settle`` looks for a signal or an occurrence that has arrived already, and consumes it, or writes the deadline
  as the next ``wake_at``. Until then the row is due soon, so a worker that dies in between only delays the look;
* a signal or an occurrence *arrives*: it commits first. Then the runs that wait under its keys are woken
  (``arrivals``).

Whichever commits last sees the other, on any database, so no wake-up is lost. Each write names the state that it
changes (not leased, still waiting, same ``seq``), so if both see each other, one wins. A leased run is never changed.

A timeout wins by a commit, too (``time_out``): the worker that fires it looks first, and what was committed before that
look wins, even after the deadline.

A run can receive what has a position after its own (``queues/positions.py``) and is not in its history, the record of
what it has consumed. No clock decides: neither when a worker reached the run, nor the difference between two machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.apps import apps
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q

from ..conf import conf
from ..db.writer import alias_of
from ..events.declarations import Declared, declared_on, sources_of
from ..events.definitions import EventDefinition, EventTrigger
from ..events.matching.context_expressions import evaluate
from ..events.matching.lookback import occurred_matching
from ..events.matching.lookups import problem_with
from ..events.matching.match import Address, address, namespaced_key
from ..events.matching.typed_values import json_value
from ..events.models import Event, RoutingShape
from ..events.names import ANY, MAX_NAME, pattern_of
from ..exceptions import DefinitionError
from ..queues.advance import advance
from ..queues.lease import revoke
from ..values.clock import Clock
from .arrivals import signal_satisfies
from .current import WakeReason
from .ending import end_runs
from .models import Signal, StepExecution, Wait, WorkflowRun, WorkflowStatus
from .outcomes import Wait as WaitOutcome
from .wait_keys import EVENT_CHANNEL, WAITS, channel_key, own_key
from .waking import wake

__all__ = ["finish_registration", "is_there", "registration", "settle", "time_out", "waits_of"]


def own_declaration(run: WorkflowRun, event_name: str) -> Declared | None:
    """Return the declaration of ``event_name`` by the model of the run's own entity, if there is one."""
    if not run.entity_type:
        return None
    try:
        model = apps.get_model(run.entity_type)
    except (LookupError, ValueError):
        return None
    return next((each for each in declared_on(model) if each.definition.name == event_name), None)


def registration(run: WorkflowRun, step: str, wait: WaitOutcome, context: Any, now: datetime) -> Wait:
    """Return the unsaved row of what the run waits for. ``step``: the next step, unless the wait names one."""
    channel, match, residual, namespace = wait.signal, None, False, ""
    key = channel_key(channel)
    if wait.event is not None:
        name = _name(wait.event, context)
        channel = f"{EVENT_CHANNEL}{name}"
        key = channel_key(channel)
        # A name that is made of the Context's fields already selects the entity.
        own = own_declaration(run, name) if name == wait.event else None
        if wait.match is not None and wait.match.lookups:
            values = wait.match.values_from(context)
            where = _address(name, values)
            (key,) = where.keys
            match, residual = {each: json_value(value) for each, value in values.items()}, bool(where.residual)
        elif wait.match is None and own is not None:
            key, match = own_key(name, own.label, run.entity_id), {"pk": run.entity_id}
        if wait.namespace not in (None, ANY):
            namespace = str(wait.namespace)
            key = namespaced_key(namespace, key)
    return Wait(
        run_id=run.pk,
        visit=run.visit + 1,
        channel=channel,
        key=key,
        match=match,
        residual=residual,
        namespace=namespace,
        deadline=None if wait.timeout is None else now + wait.timeout,
        then=wait.then or step,
        on_timeout=wait.on_timeout or step,
    )


def _name(template: str, context: Any) -> str:
    name = str(evaluate(template, context))
    if not 0 < len(name) <= MAX_NAME:
        raise DefinitionError(
            f"wait_for_event({template!r}): the name becomes {name[:60]!r}..., of {len(name)} characters."
        )
    return name


def _address(event_name: str, values: dict[str, Any]) -> Address:
    """Return the address of a wait with these values, and declare its shape, so that occurrences look there."""
    sources = sources_of(event_name)
    for name in values:
        problems = [problem_with(source.owner, name) for source in sources]
        if problems and all(problems):
            raise DefinitionError(f"wait_for_event({event_name!r}): match compares {name!r}. {problems[0]}")
    where = address(event_name, values, sources)
    for pattern in {pattern_of(source.definition.name) for source in sources} or {event_name}:
        RoutingShape.ensure(WAITS, pattern, where.shape)
    return where


def waits_of(run: WorkflowRun) -> list[Wait]:
    """Return what the run waits for now, the earliest deadline first."""
    return list(run.waits.filter(visit=run.visit).order_by(F("deadline").asc(nulls_last=True), "pk"))


@dataclass(frozen=True, slots=True)
class Message:
    """A signal or an event that has arrived for one of a run's waits."""

    wait: Wait
    row: Signal | Event

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sort key: what was delivered comes before what is still on its way."""
        return self.row.position is None, self.row.position or 0, self.row.pk


def settle(run: WorkflowRun, clock: Clock, waits: list[Wait] | None = None) -> None:
    """Look for what the run waits for, after its registration has committed: consume it, or write the deadline.

    The run has no lease here; every write is fenced on ``seq``. ``waits``: its rows, if they are known.
    """
    waits = waits_of(run) if waits is None else waits
    mine = WorkflowRun.objects.filter(pk=run.pk, seq=run.seq, lease=None, status=WorkflowStatus.SUSPENDED)
    message = _first_arrival(run, waits)
    if message is None:
        if waits and all(_cannot_arrive(run, wait) for wait in waits):
            reason = f"{run.entity_type} {run.entity_id}, whose event it waited for, was deleted."
            end_runs(mine, WorkflowStatus.CANCELLED, reason, clock())
        else:
            mine.update(wake_at=min((wait.deadline for wait in waits if wait.deadline is not None), default=None))
        return
    alias, found = alias_of(WorkflowRun), message.row
    # The run first and then the signal, as in ``deliver``: locks are taken in one order.
    with transaction.atomic(using=alias):
        if isinstance(found, Event):
            wake(mine, [run.pk], WakeReason.EVENT, found.pk, message.wait.then, clock(), depth=found.depth + 1)
        elif wake(mine, [run.pk], WakeReason.SIGNAL, found.pk, message.wait.then, clock()) and found.run_id is not None:
            unconsumed = Signal.objects.filter(pk=found.pk, consumed_at=None)
            if not revoke(unconsumed, consumed_at=clock(), delivered_at=clock(), wake_at=None):
                transaction.set_rollback(True, using=alias)  # delivered just now, which wakes the run


def is_there(run: WorkflowRun, waits: list[Wait]) -> bool:
    """Return whether something that the run waits for has arrived, when its deadline has passed.

    What was committed before a worker fires the timeout wins, even if it was not consumed yet: workers were late, or
    the worker that registered the wait died before it had looked.
    """
    return _first_arrival(run, waits) is not None


def time_out(run: WorkflowRun, waits: list[Wait]) -> None:
    """Let the timeout win, with a commit of its own before its step runs.

    What arrives from now on is too late for these waits, even if the step is retried or its worker dies.
    """
    with transaction.atomic(using=alias_of(WorkflowRun)):
        fired = {"wake_reason": WakeReason.TIMEOUT.value, "wake_ref": None, "wake_step": waits[0].on_timeout}
        advance(run, {"status": WorkflowStatus.RUNNING, **fired, "losses": run.losses})
        run.waits.all().delete()


def finish_registration(run: WorkflowRun, clock: Clock, waits: list[Wait]) -> None:
    """Finish a registration whose worker died before it had looked: release the lease first, then look."""
    advance(run, {"wake_at": clock() + conf().LEASE, "lease": None})
    settle(run, clock, waits)


def _first_arrival(run: WorkflowRun, waits: list[Wait]) -> Message | None:
    found = [(wait, _in_inbox(run, wait) or _broadcast(run, wait) or _occurrence(run, wait)) for wait in waits]
    messages = [Message(wait, row) for wait, row in found if row is not None]
    return min(messages, key=lambda each: each.order, default=None)


def _consumed(run: WorkflowRun, reason: WakeReason) -> Exists:
    """Return whether the run has consumed a row: one index lookup for each, for a history of any length."""
    return Exists(StepExecution.objects.filter(run=run, wake_reason=reason, wake_ref=OuterRef("pk")))


def _in_inbox(run: WorkflowRun, wait: Wait) -> Signal | None:
    return Signal.objects.filter(run=run, name=wait.channel, consumed_at=None).order_by("pk").first()


def _broadcast(run: WorkflowRun, wait: Wait) -> Signal | None:
    """Return a broadcast signal that has arrived since the run was created, or is on its way."""
    arrived = Q(position__gt=run.position) | Q(position=None, delivered_at=None, wake_at__isnull=False)
    signals = Signal.objects.filter(arrived, run=None, name=wait.channel).filter(~_consumed(run, WakeReason.SIGNAL))
    ordered = signals.order_by(F("position").asc(nulls_last=True), "pk")
    if not wait.channel.startswith(EVENT_CHANNEL):
        return ordered.first()
    return next((signal for signal in ordered if signal_satisfies(signal, wait)), None)


def _occurrence(run: WorkflowRun, wait: Wait) -> Event | None:
    """Return an event that has occurred since the run was created, satisfies the wait, and is not consumed yet."""
    if not wait.channel.startswith(EVENT_CHANNEL):
        return None
    name = wait.channel.removeprefix(EVENT_CHANNEL)
    events = Event.objects.filter(event_name=name, position__gt=run.position).filter(~_consumed(run, WakeReason.EVENT))
    if run.event_id is not None:
        events = events.exclude(pk=run.event_id)  # a run never waits for the event that started it
    if wait.namespace:
        events = events.filter(namespace=wait.namespace)
    if not wait.match:
        return events.order_by("position").first()
    own = own_declaration(run, name)
    if own is not None and wait.match == {"pk": run.entity_id}:
        return events.filter(entity_type=own.label, entity_id=run.entity_id).order_by("position").first()
    sources = sources_of(name)
    return next(occurred_matching(events, sources, name, wait.match, address(name, wait.match, sources)), None)


def has_delete_trigger(definition: EventDefinition) -> bool:
    """Return whether the deletion of its entity makes the event occur."""
    return EventTrigger.DELETE in definition.triggers


def pending_deletions(label: str, entity_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Return the entity and the event of each recorded deletion that has not occurred yet."""
    deletions = Event.objects.filter(entity_type=label, entity_id__in=entity_ids, trigger=EventTrigger.DELETE)
    return set(deletions.filter(occurred_at=None).values_list("entity_id", "declared_as"))


def _cannot_arrive(run: WorkflowRun, wait: Wait) -> bool:
    """Return whether the wait is for an event of the run's own entity, which was deleted while its step was running."""
    own = own_declaration(run, wait.channel.removeprefix(EVENT_CHANNEL))
    if own is None or wait.match != {"pk": run.entity_id}:
        return False
    name = own.definition.name
    if has_delete_trigger(own.definition) and (run.entity_id, name) in pending_deletions(own.label, [run.entity_id]):
        return False
    pk = own.owner._meta.pk.to_python(run.entity_id)
    return not own.owner._base_manager.using(alias_of(own.owner)).filter(pk=pk).exists()
