"""How an agent comes to life: its row is inserted, its Context is made, its routes are written, and it catches up.

Three facts decide what an agent hears, and none of them is a clock:

* ``position``: a place in the one order of arrivals (``queues/positions.py``), set when its row is inserted, together
  with the occurrence that spawns it. What arrived up to it was before the agent; what arrives after it is the agent's
  business, however late a worker makes its Context. Its spawning event it hears in any case, and of the entity of
  that event all that came after it.
* Its routes: once they have committed, whatever is told finds them, and is put into the mailbox if it arrived after the
  position. Only then the agent looks back, once, for what arrived after the position and was told before the routes
  were there (``catch_up``; ``started_at`` says that it has). Both sides commit first and look second.
* Its mailbox is the ledger: a unique key for each event, handler and beat, so what both sides find counts once. For a
  singleton the ledger is that of its key: what one life has had is not given to the next.

Making the Context is user code, so an event that spawns inserts a PENDING row, and a worker does the rest. Whoever
spawns a singleton by hand knows its key and its Context at once; where one lives for that key, the same PENDING row is
inserted with both. A worker that finds the place of such a row taken moves its event into the mailbox of the agent that
lives and deletes the row, in one transaction that keeps that agent from ending meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from django.db import transaction
from django.db.models import Min, Q, QuerySet
from pydantic import BaseModel

from ..conf import conf
from ..db.inserts import insert_ignoring
from ..db.locks import locked
from ..db.writer import alias_of
from ..events.definitions import EventTrigger, sources_of
from ..events.matching.lookback import met
from ..events.models import Event, EventStatus
from ..events.names import ANY, is_pattern
from ..events.subscribers import Notification
from ..exceptions import RedirectedToSingletonError, SingletonTakenError
from ..queues.attempt import Progress, attempt
from ..queues.causation import CurrentRun, Owner
from ..queues.lease import advance, release
from ..queues.notifier import ring_after_commit
from ..queues.positions import lower_bound
from ..state.contexts import dump_context
from ..state.versions import restore
from ..values.clock import Clock, shift
from ..values.digests import digest
from ..values.failures import Raised
from ..values.text import trace_of
from .definitions import AgentDefinition, HandlerDefinition, agents_spawned_by
from .delivery import executions_for
from .ending import KIND
from .mailbox import execution_of, put
from .models import AgentRun, AgentStatus, HandlerExecution, HandlerStatus, touch
from .routing import Keys, fingerprint, install, keys_of, own_labels, scope_of, singleton_key, taken_by, where

GIVEN = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED)
"""What has become of an event that an agent had; one that was cancelled with its agent was not had."""

PROMPT = timedelta(seconds=1)
"""An immediate event that occurs later than this after its save was left behind by a process that died."""


# -- spawning ----------------------------------------------------------------------------------------------------------


def spawn(events: Sequence[Event], now: datetime) -> None:
    """Insert the agents that ``events``, which occur in this transaction, bring to life."""
    wanted = [(event, each) for event in events for each in agents_spawned_by(event)]
    if not wanted:
        return
    bound = min([lower_bound(), *(event.position - 1 for event in events if event.position)])
    runs = [new_run(event, each, now, _position_of(event, bound, now)) for event, each in wanted]
    if insert_ignoring(AgentRun, runs):
        ring_after_commit(alias_of(AgentRun), AgentRun)


def new_run(event: Event, definition: AgentDefinition, now: datetime, position: int) -> AgentRun:
    """Return the unsaved agent that ``event`` spawns; its Context is made when a worker gets to it."""
    return AgentRun(
        name=definition.name,
        version=definition.version,
        status=AgentStatus.PENDING,
        created_at=now,
        wake_at=now,
        position=position,
        event=event,
        entity_type=event.entity_type,
        entity_id=event.entity_id,
        origin_key=origin_key(event, definition.name),
        caused_by=f"event:{event.pk}",
        depth=event.depth + 1,
    )


def origin_key(event: Event, name: str) -> str:
    """Return what only one agent has that ``event`` spawns, or that is left for a singleton's key."""
    return digest("agent run", event.pk, name)


def _position_of(event: Event, bound: int, now: datetime) -> int:
    """Return the position of an agent that ``event`` spawns: ``bound``, or behind what its entity did since the save
    that made an immediate event occur, where that was left to another process."""
    definition, since = event.definition, event.at
    if definition is None or definition.is_scheduled or since is None:
        return bound
    family = own_labels(event.entity_type, ANY)
    theirs = Event.objects.filter(entity_type__in=family, entity_id=event.entity_id)
    if since == event.event_created_at and event.trigger != EventTrigger.UPDATE:
        # Perhaps this save made the entity; then all that it did came after. A worker may have been quicker with a date
        # that was past already than the process that saved is with this event.
        found = theirs.aggregate(made=Min("event_created_at"), first=Min("position"))
        if found["made"] == since:
            return bound if found["first"] is None else min(bound, found["first"] - 1)
    if now - since <= PROMPT:
        return bound
    first = theirs.filter(occurred_at__gte=since).aggregate(first=Min("position"))["first"]
    return bound if first is None else min(bound, first - 1)


# -- a worker's part ---------------------------------------------------------------------------------------------------


def begin(run: AgentRun, definition: AgentDefinition, clock: Clock) -> bool:
    """Make the Context of a PENDING agent and write its routes; return whether it lives now, in this worker's hands."""
    keys: list[str | None] = []

    def work() -> Progress:
        context = _context_of(run, definition)
        keys.append(singleton_key(definition, run, context))
        return _living(run, definition, context, keys[-1])

    def rescue(error: Exception) -> Progress:
        if isinstance(error, RedirectedToSingletonError):
            return Progress({"status": AgentStatus.PENDING})
        return _not_spawned(run, definition, error, clock())

    committed = attempt(
        run,
        work,
        rescue,
        current=CurrentRun(
            f"agent:{run.pk}:create_context",
            run.depth,
            f"agent:{run.call_key}",
            Owner(KIND, run.pk, definition.namespace),
        ),
        atomic=True,
        timeout=conf().STEP_TIMEOUT,
        clock=clock,
    )
    if not committed or run.lease is None:
        return False
    if run.status == AgentStatus.ACTIVE:
        return True
    hand_over(run, definition, keys[-1] or "", clock)
    return False


def _context_of(run: AgentRun, definition: AgentDefinition) -> BaseModel:
    if run.singleton:  # spawned by hand: it was made by the caller
        return restore(definition, run.data, run.version, str(run)).context
    return definition.make_context(run.event)


def _living(run: AgentRun, definition: AgentDefinition, context: BaseModel, singleton: str | None) -> Progress:
    keys = keys_of(definition, run, context)
    if singleton is not None and run.event_id is not None and had(singleton, [run.event_id], run):
        raise RedirectedToSingletonError(f"The event that spawns {run} was given to another {run.name!r}.")
    changes = {
        "status": AgentStatus.ACTIVE,
        "version": definition.version,
        "data": dump_context(context, f"The Context of {definition.name}"),
        "routing": fingerprint(definition),
        "singleton": singleton or "",
        "attempt": 0,
        "error": "",
    }
    return Progress(changes, None, (lambda: _take_place(run, keys, singleton),))


def _take_place(run: AgentRun, keys: Keys, singleton: str | None) -> None:
    try:
        install(run, keys, singleton)
    except SingletonTakenError as error:
        raise RedirectedToSingletonError(str(error)) from error


def _not_spawned(run: AgentRun, definition: AgentDefinition, error: Exception, now: datetime) -> Progress:
    text = trace_of(error)
    delay = Raised(error, text).delay(definition.default_retry, run.attempt + 1)
    changes = {"attempt": run.attempt + 1, "error": text, "lease": None}
    if delay is None:
        changes |= {"status": AgentStatus.FAILED, "finished_at": now, "wake_at": None}
        return Progress(changes, failed=(run, text))
    return Progress(changes | {"wake_at": now + delay})


def hand_over(run: AgentRun, definition: AgentDefinition, key: str, clock: Clock) -> None:
    """Move the event of a PENDING agent whose place is taken into the mailbox of the one that lives, and delete it."""
    holder, event, is_given = taken_by(key), run.event, True
    with transaction.atomic(using=alias_of(AgentRun)):
        if event is not None and not had(key, [event.pk], run):
            # Locked, it can neither end nor change its key before this has committed.
            living = locked(AgentRun.objects.unfinished().filter(pk=holder or 0)).first()
            is_given = living is not None and taken_by(key) == holder
            if living is not None and is_given:
                put([*_as_spawning(living.pk, definition, event, clock()), *_told(living.pk, event, clock())])
        if is_given:
            advance(run, {"wake_at": None, "lease": None})
            AgentRun.objects.filter(pk=run.pk).delete()
        else:
            release(run, clock())  # the other has ended this instant: once more, to take its place
    if holder is not None:
        touch([holder])


def had(singleton: str, events: Collection[int], but: AgentRun) -> set[int]:
    """Return which of ``events`` other lives of a singleton have had, and may have ended with."""
    rows = HandlerExecution.objects.filter(event__in=events, run__singleton=singleton, status__in=GIVEN)
    return set(rows.exclude(run=but.pk).values_list("event", flat=True))


def _told(run_pk: int, event: Event, now: datetime) -> Iterator[HandlerExecution]:
    news = [
        Notification(event, milestone) for milestone in ("", *event.came) if milestone or event.occurred_at is not None
    ]
    return executions_for(news, now, only=run_pk)


def _as_spawning(run_pk: int, definition: AgentDefinition, event: Event, now: datetime) -> list[HandlerExecution]:
    """Return what an agent has of its own spawning event: it is its own, whatever the agent's match says of that
    entity. A handler with a match of its own gets it where that fits."""
    return [
        execution_of(run_pk, event, each, now)
        for each in definition.handlers
        if each.match is None and each.hears(event) and _has_come(each, event, spawned_by_it=True)
    ]


# -- catching up -------------------------------------------------------------------------------------------------------


def catch_up(run: AgentRun, definition: AgentDefinition, context: BaseModel, now: datetime) -> None:
    """Put into the mailbox what arrived after the agent's position and was told before its routes could be found, its
    spawning event, and what has fired before the date of an event that is still to come."""
    found = [] if run.event is None else _as_spawning(run.pk, definition, run.event, now)

    def listens_to(handler: HandlerDefinition) -> tuple[str, str]:
        match = definition.match_of(handler)
        return handler.event_name, "" if match is None else match.text

    for _, group in groupby(sorted(definition.handlers, key=listens_to), key=listens_to):
        handlers = list(group)
        for event, position in _missed(run, definition, handlers, context):
            found += [
                execution_of(run.pk, event, each, now)
                for each in handlers
                if each.hears(event) and _is_for(run, each, event, position)
            ]
    if run.singleton and found:
        given = had(run.singleton, {each.event_id for each in found} - {run.event_id or 0}, run)
        found = [each for each in found if each.event_id not in given]
    put(found)


def _is_for(run: AgentRun, handler: HandlerDefinition, event: Event, position: int) -> bool:
    """Return whether what ``handler`` waits for has come after ``position``, and is not told any more."""
    if event.pk == run.event_id and run.origin_key is not None:
        return _has_come(handler, event, spawned_by_it=True)
    if event.position is not None and event.position > position:
        return _has_come(handler, event)
    if handler.offset is None or not _has_come(handler, event):
        return False
    if event.status == EventStatus.PENDING and event.armed:
        return True  # before its date has come, the event is the agent's business as a whole
    return event.position_of(handler.milestone) > position


def _has_come(handler: HandlerDefinition, event: Event, *, spawned_by_it: bool = False) -> bool:
    if handler.offset is None:
        return event.occurred_at is not None
    if spawned_by_it and event.occurred_at is not None and event.at is not None:
        # An agent that is born of an occurrence comes too late for what was to be done before it.
        return handler.milestone in event.came and shift(event.at, handler.offset) >= event.at
    return handler.milestone in event.came


def _missed(
    run: AgentRun, definition: AgentDefinition, handlers: list[HandlerDefinition], context: BaseModel
) -> Iterator[tuple[Event, int]]:
    """Yield events that may have been missed by ``handlers`` (which share an event and a match), and the position after
    which they count: of its own entity that of the spawning event, of others its own."""
    first = handlers[0]
    match, sources = definition.match_of(first), sources_of(first.event_name)
    spawned = run.event.position if run.event is not None and run.event.position else run.position
    since = min(run.position, spawned)
    labels = own_labels(run.entity_type, first.event_name)
    events = _arrived(first.event_name, since, with_milestones=any(each.offset is not None for each in handlers))
    if match is None and labels:
        found: Iterator[Event] = iter(events.filter(entity_type__in=labels, entity_id=run.entity_id))
    elif match is None:
        found = iter(events)
    else:
        address = where(definition, first, match, context)
        found = met(events, sources, scope_of(definition, match), match.values_from(context), address)
    for event in found:
        is_own = event.entity_type in labels and event.entity_id == run.entity_id
        yield event, since if is_own else run.position


def _arrived(pattern: str, position: int, *, with_milestones: bool) -> QuerySet[Event, Event]:
    """Return the events that a subscriber to ``pattern`` may have missed after ``position``."""
    wanted = Q(position__gt=position)
    if with_milestones:
        still_to_come = Q(position=None, status=EventStatus.PENDING, active_key__isnull=False)
        wanted |= Q(fired_position__gt=position) | still_to_come & Q(fired_position__isnull=False)
    events = Event.objects.filter(wanted)
    if is_pattern(pattern):
        events = events.filter(declared_as__in={each.definition.name for each in sources_of(pattern)})
    else:
        events = events.filter(event_name=pattern)
    return events.order_by("position", "pk")
