"""Waits, the run's side: what a run waits for becomes rows, and it looks for what has come already.

The two sides never lock each other. Both first commit what they have and then look at the other's:

* a run *registers*: its step's commit inserts a ``Wait`` for each thing that it waits for and lets the lease go; then
  ``settle`` looks for a signal or an occurrence that is already there, and takes it, or writes the deadline as its next
  ``wake_at``. Until then the row is due soon, so a worker that dies in between only delays the look;
* a signal or an occurrence *arrives*: it is committed first; then everybody who is registered under its keys is woken
  (``arrivals``).

Whichever of the two commits last sees the other, so a wake-up is never lost, and on any database. Each write names the
state that it changes (not leased, still waiting, same ``seq``), so when both see each other one wins. A run in a
worker's hands is never touched.

A timeout wins by a commit, too (``time_out``): a worker that comes for it looks first, and what was committed before it
looked wins, however late it came.

A run may hear what has a position above its own (``queues/positions.py``) and is not in its history, which says what it
has consumed. No clock is asked: neither when a worker got to it, nor which of two machines is ahead.
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
from ..events.definitions import Declared, EventDefinition, EventTrigger, declared_on, sources_of
from ..events.matching.context_expressions import evaluate
from ..events.matching.lookback import occurred_of
from ..events.matching.lookups import problem_with
from ..events.matching.match import Address, address, within
from ..events.matching.typed_values import plain
from ..events.models import Event, RoutingShape
from ..events.names import ANY, MAX_NAME, pattern_of
from ..exceptions import DefinitionError
from ..queues.advance import advance
from ..queues.lease import revoke
from ..values.clock import Clock
from .arrivals import answers_by_hand
from .current import WakeReason
from .ending import end_runs
from .models import Signal, StepExecution, Wait, WorkflowRun, WorkflowStatus
from .outcomes import Wait as WaitOutcome
from .wait_keys import EVENT_CHANNEL, WAITS, channel_key, own_key
from .waking import wake

__all__ = ["is_there", "look_again", "registration", "settle", "time_out", "waits_of"]


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
    """Return the unsaved row that says what the run waits for. ``step``: where it goes on, unless the wait says it."""
    channel, match, residual, namespace = wait.signal, None, False, ""
    key = channel_key(channel)
    if wait.event is not None:
        name = _name(wait.event, context)
        channel = f"{EVENT_CHANNEL}{name}"
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
    """Return where a wait with these values is found, and see to it that occurrences are looked up there."""
    sources = sources_of(event_name)
    for name in values:
        troubles = [problem_with(source.owner, name) for source in sources]
        if troubles and all(troubles):
            raise DefinitionError(f"wait_for_event({event_name!r}): match compares {name!r}. {troubles[0]}")
    where = address(event_name, values, sources)
    for pattern in {pattern_of(source.definition.name) for source in sources} or {event_name}:
        RoutingShape.ensure(WAITS, pattern, where.shape)
    return where


def waits_of(run: WorkflowRun) -> list[Wait]:
    """Return what the run waits for now, what ends first first."""
    return list(run.waits.filter(visit=run.visit).order_by(F("deadline").asc(nulls_last=True), "pk"))


@dataclass(frozen=True, slots=True)
class Message:
    """What one of a run's waits has waited for, and has come."""

    wait: Wait
    what: Signal | Event

    @property
    def order(self) -> tuple[bool, int, int]:
        """What has arrived goes before what is still on its way."""
        return self.what.position is None, self.what.position or 0, self.what.pk


def settle(run: WorkflowRun, clock: Clock, waits: list[Wait] | None = None) -> None:
    """Look for what the run waits for, after its registration has committed: take it, or let the run rest.

    The run has no lease here; every write is fenced on ``seq``. ``waits``: its rows, where they are known.
    """
    waits = waits_of(run) if waits is None else waits
    mine = WorkflowRun.objects.filter(pk=run.pk, seq=run.seq, lease=None, status=WorkflowStatus.SUSPENDED)
    message = _first_of(run, waits)
    if message is None:
        if waits and all(_waits_in_vain(run, wait) for wait in waits):
            reason = f"{run.entity_type} {run.entity_id}, whose event it waited for, was deleted."
            end_runs(mine, WorkflowStatus.CANCELLED, reason, clock())
        else:
            mine.update(wake_at=min((wait.deadline for wait in waits if wait.deadline is not None), default=None))
        return
    alias, found = alias_of(WorkflowRun), message.what
    # The run first and then the signal, as ``deliver`` does: locks are taken in one order.
    with transaction.atomic(using=alias):
        if isinstance(found, Event):
            wake(mine, [run.pk], WakeReason.EVENT, found.pk, message.wait.then, clock(), depth=found.depth + 1)
        elif wake(mine, [run.pk], WakeReason.SIGNAL, found.pk, message.wait.then, clock()) and found.run_id is not None:
            untaken = Signal.objects.filter(pk=found.pk, consumed_at=None)
            if not revoke(untaken, consumed_at=clock(), delivered_at=clock(), wake_at=None):
                transaction.set_rollback(True, using=alias)  # delivered this instant: the run is woken by that


def is_there(run: WorkflowRun, waits: list[Wait]) -> bool:
    """Return whether something that the run waits for has come: asked when its deadline has passed. What was committed
    before a worker came to fire the timeout wins, also where nobody has taken it: workers were behind, or the one that
    registered the wait died before it had looked."""
    return _first_of(run, waits) is not None


def time_out(run: WorkflowRun, waits: list[Wait]) -> None:
    """Let the timeout win, by a commit of its own before its step runs: what comes from now on is too late for these
    waits, also where the step is tried again or its worker dies."""
    with transaction.atomic(using=alias_of(WorkflowRun)):
        fired = {"wake_reason": WakeReason.TIMEOUT.value, "wake_ref": None, "wake_step": waits[0].on_timeout}
        advance(run, {"status": WorkflowStatus.RUNNING, **fired, "losses": run.losses})
        run.waits.all().delete()


def look_again(run: WorkflowRun, clock: Clock, waits: list[Wait]) -> None:
    """Finish a registration whose worker died before it had looked. Lets the lease go first, then looks."""
    advance(run, {"wake_at": clock() + conf().LEASE, "lease": None})
    settle(run, clock, waits)


def _first_of(run: WorkflowRun, waits: list[Wait]) -> Message | None:
    found = [(wait, _in_inbox(run, wait) or _broadcast(run, wait) or _occurrence(run, wait)) for wait in waits]
    messages = [Message(wait, what) for wait, what in found if what is not None]
    return min(messages, key=lambda each: each.order, default=None)


def _taken(run: WorkflowRun, reason: WakeReason) -> Exists:
    """Return whether the run has consumed a row: one look into its history for each, however long that is."""
    return Exists(StepExecution.objects.filter(run=run, wake_reason=reason, wake_ref=OuterRef("pk")))


def _in_inbox(run: WorkflowRun, wait: Wait) -> Signal | None:
    return Signal.objects.filter(run=run, name=wait.channel, consumed_at=None).order_by("pk").first()


def _broadcast(run: WorkflowRun, wait: Wait) -> Signal | None:
    """A signal to everybody that has come since the run was created, or is on its way now."""
    comes = Q(position__gt=run.position) | Q(position=None, delivered_at=None, wake_at__isnull=False)
    signals = Signal.objects.filter(comes, run=None, name=wait.channel).filter(~_taken(run, WakeReason.SIGNAL))
    ordered = signals.order_by(F("position").asc(nulls_last=True), "pk")
    if not wait.channel.startswith(EVENT_CHANNEL):
        return ordered.first()
    return next((signal for signal in ordered if answers_by_hand(signal, wait)), None)


def _occurrence(run: WorkflowRun, wait: Wait) -> Event | None:
    """An event that has occurred since the run was created, for the entity that the wait means, not consumed yet."""
    if not wait.channel.startswith(EVENT_CHANNEL):
        return None
    name = wait.channel.removeprefix(EVENT_CHANNEL)
    events = Event.objects.filter(event_name=name, position__gt=run.position).filter(~_taken(run, WakeReason.EVENT))
    if run.event_id is not None:
        events = events.exclude(pk=run.event_id)  # what started the run is not what it waits for
    if wait.namespace:
        events = events.filter(namespace=wait.namespace)
    if not wait.match:
        return events.order_by("position").first()
    own = own_declaration(run, name)
    if own is not None and wait.match == {"pk": run.entity_id}:
        return events.filter(entity_type=own.label, entity_id=run.entity_id).order_by("position").first()
    sources = sources_of(name)
    return next(occurred_of(events, sources, name, wait.match, address(name, wait.match, sources)), None)


def counts_deletions(definition: EventDefinition) -> bool:
    return EventTrigger.DELETE in definition.triggers


def deletions_to_come(label: str, entity_ids: Sequence[str]) -> set[tuple[str, str]]:
    """Return which events of the deletion of which entities were recorded, and have not occurred yet."""
    deletions = Event.objects.filter(entity_type=label, entity_id__in=entity_ids, trigger=EventTrigger.DELETE)
    return set(deletions.filter(occurred_at=None).values_list("entity_id", "declared_as"))


def _waits_in_vain(run: WorkflowRun, wait: Wait) -> bool:
    """Return whether it is an event of the run's own entity, and that was deleted while its step was under way."""
    own = own_declaration(run, wait.channel.removeprefix(EVENT_CHANNEL))
    if own is None or wait.match != {"pk": run.entity_id}:
        return False
    name = own.definition.name
    if counts_deletions(own.definition) and (run.entity_id, name) in deletions_to_come(own.label, [run.entity_id]):
        return False
    pk = own.owner._meta.pk.to_python(run.entity_id)
    return not own.owner._base_manager.using(alias_of(own.owner)).filter(pk=pk).exists()
