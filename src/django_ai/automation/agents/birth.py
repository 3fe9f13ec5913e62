"""How an agent comes to life: its Context is made, its routes are written, and it catches up with what it has missed.

An event that spawns agents only inserts their rows, PENDING, in the transaction in which it occurs. A worker makes the
Context (user code, tried again when it raises) and writes it together with the routes; a singleton whose place is taken
goes, and the agent that lives gets the event instead. Only after the routes have committed does the agent look back for
events that came before they could be found there (``catch_up``), so nothing falls between; ``started_at`` says that it
has looked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from django.db import transaction
from django.db.models import Q, QuerySet
from pydantic import BaseModel

from ..conf import conf
from ..events.definitions import sources_of
from ..events.listeners import News
from ..events.lookback import met
from ..events.models import Event, EventStatus
from ..events.names import is_pattern
from ..exceptions import AutomationError, HandedOnError, SingletonTakenError
from ..queues.attempt import Progress, attempt, trace_of
from ..queues.cause import Cause, Flow
from ..queues.clock import Clock, Offset, shift
from ..queues.contexts import dump_context
from ..queues.keys import digest
from ..queues.lease import advance, alias_of, release
from .definitions import AgentDefinition, HandlerDefinition
from .delivery import executions_for
from .ending import KIND
from .mailbox import execution_of, put, touch
from .models import AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from .routes import Keys, fingerprint, install, keys_of, own_labels, scope_of, singleton_key, taken_by, where

GIVEN = (HandlerStatus.COMPLETED, HandlerStatus.SKIPPED, HandlerStatus.FAILED)
"""What has become of an event that an agent had; one that was cancelled with its agent was not had."""


def run_for(event: Event, definition: AgentDefinition, now: datetime) -> AgentRun:
    """Return the unsaved agent that ``event`` spawns; its Context is made when a worker gets to it."""
    return AgentRun(
        name=definition.name,
        version=definition.version,
        status=AgentStatus.PENDING,
        created_at=now,
        wake_at=now,
        event=event,
        entity_type=event.entity_type,
        entity_id=event.entity_id,
        origin_key=digest("agent run", event.pk, definition.name),
        caused_by=f"event:{event.pk}",
        depth=event.depth + 1,
    )


def begin(run: AgentRun, definition: AgentDefinition, clock: Clock) -> bool:
    """Make the Context of a PENDING agent and write its routes; say whether it lives now, in this worker's hands."""
    made: list[BaseModel] = []

    def work() -> Progress:
        context = definition.make_context(run.event)
        made.append(context)
        return _living(run, definition, context)

    def rescue(error: Exception) -> Progress:
        if isinstance(error, HandedOnError):
            return Progress({"status": AgentStatus.PENDING})
        return _not_spawned(run, definition, error, clock())

    committed = attempt(
        run,
        work,
        rescue,
        cause=Cause(
            f"agent:{run.pk}:create_context", run.depth, f"agent:{run.pk}", Flow(KIND, run.pk, definition.namespace)
        ),
        atomic=True,
        timeout=conf().STEP_TIMEOUT,
        clock=clock,
    )
    if not committed or run.lease is None:
        return False
    if run.status == AgentStatus.ACTIVE:
        return True
    hand_over(run, definition, made[-1], clock)
    return False


def _living(run: AgentRun, definition: AgentDefinition, context: BaseModel) -> Progress:
    keys, singleton = keys_of(definition, run, context), singleton_key(definition, run, context)
    if singleton is not None and _was_given(singleton, run):
        raise HandedOnError(f"The event that spawns {run} was given to another {run.name!r}.")
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
        raise HandedOnError(str(error)) from error


def _not_spawned(run: AgentRun, definition: AgentDefinition, error: Exception, now: datetime) -> Progress:
    delay = definition.default_retry.delay(run.attempt + 1)
    if isinstance(error, AutomationError) and not error.may_pass:
        delay = None
    changes = {"attempt": run.attempt + 1, "error": trace_of(error), "lease": None}
    if delay is None:
        ended = {"status": AgentStatus.FAILED, "finished_at": now, "wake_at": None}
        return Progress(changes | ended, failed=(run, str(changes["error"])))
    return Progress(changes | {"wake_at": now + delay})


def hand_over(run: AgentRun, definition: AgentDefinition, context: BaseModel, clock: Clock) -> None:
    """Give the event that would have spawned a second singleton to the one that lives, and remove ``run``.

    Each step may be repeated, and ``run`` goes last: a worker that dies in between leaves it due again.
    """
    event, key = run.event, singleton_key(definition, run, context)
    if event is not None and key is not None and not _was_given(key, run):
        living = taken_by(key)
        if living is not None:
            deliver_to(living, definition, event, clock())
        if living is None or not AgentRun.objects.unfinished().filter(pk=living).exists():
            # It has ended this instant: once more, to take its place.
            HandlerExecution.objects.filter(run=living, event=event, status=HandlerStatus.PENDING).delete()
            release(run, clock())
            return
    with transaction.atomic(using=alias_of(AgentRun)):
        advance(run, {"wake_at": None, "lease": None})
        AgentRun.objects.filter(pk=run.pk).delete()


def _was_given(singleton: str, run: AgentRun) -> bool:
    """Say whether an agent of the same match has had the event that spawns ``run``, and may have ended with it."""
    given = HandlerExecution.objects.filter(event=run.event_id, run__singleton=singleton).exclude(run=run.pk)
    return run.event_id is not None and given.filter(status__in=GIVEN).exists()


def deliver_to(run_pk: int, definition: AgentDefinition, event: Event, now: datetime) -> None:
    """Put what has fired of an event that spawns agents into the mailbox of one agent: it is its own event, whatever
    the agent's match says of that entity. A handler with a match of its own gets it where that fits."""
    news = [News(event, beat) for beat in ("", *event.fired) if beat or event.occurred_at is not None]
    put([*_of_its_own(run_pk, definition, event, now), *executions_for(news, now, only=run_pk)])
    touch([run_pk])


def _of_its_own(run_pk: int, definition: AgentDefinition, event: Event, now: datetime) -> list[HandlerExecution]:
    # An agent that is born of its occurrence comes too late for what was to be done before it.
    mine = [
        each
        for each in definition.handlers
        if each.match is None and _has_fired(each, event, event.occurred_at, spawning=True)
    ]
    return [execution_of(run_pk, event, each, now) for each in mine]


def catch_up(run: AgentRun, definition: AgentDefinition, context: BaseModel, now: datetime) -> None:
    """Put into the mailbox what came before the agent's routes could be found: its spawning event, what occurred since,
    and what has fired before the date of an event that is still to come."""
    spawned = run.event
    found = [] if spawned is None else _of_its_own(run.pk, definition, spawned, now)
    since = run.created_at if spawned is None else _spawned_at(spawned) or run.created_at

    def listens_to(handler: HandlerDefinition) -> tuple[str, str]:
        match = definition.match_of(handler)
        return handler.event_name, "" if match is None else match.text

    for _, group in groupby(sorted(definition.handlers, key=listens_to), key=listens_to):
        handlers = list(group)
        for event, moment in _missed(run, definition, handlers, context, since):
            found += [
                execution_of(run.pk, event, each, now)
                for each in handlers
                if each.hears(event) and _has_fired(each, event, moment, spawning=event.pk == run.event_id)
            ]
    put(found)


def _spawned_at(event: Event) -> datetime | None:
    """Return since when an agent that ``event`` spawns is meant to live. An immediate event means the save that made it
    occur, however late a worker was that had to do it for a process that died."""
    definition = event.definition
    is_immediate = definition is not None and not definition.is_scheduled
    return event.at if is_immediate and event.occurred_at is not None else event.occurred_at


def _missed(
    run: AgentRun, definition: AgentDefinition, handlers: list[HandlerDefinition], context: BaseModel, since: datetime
) -> Iterator[tuple[Event, datetime]]:
    """Yield events that may have been missed by ``handlers`` (which share an event and a match), and since when."""
    first = handlers[0]
    match, sources = definition.match_of(first), sources_of(first.event_name)
    offsets = [each.offset for each in handlers if each.offset is not None]
    labels = own_labels(run.entity_type, first.event_name)
    # Of its own entity everything since the spawning event counts, of others everything since the agent is there.
    own = Q(entity_type__in=labels, entity_id=run.entity_id)
    if match is None and labels:
        for event in _events(first.event_name, since, offsets).filter(own):
            yield event, since
        return
    others = _events(first.event_name, min(since, run.created_at), offsets)
    if match is None:
        found: Iterator[Event] = iter(others)
    else:
        values = match.values_from(context)
        found = met(others, sources, scope_of(definition, match), values, where(definition, first, match, context))
    for event in found:
        is_own = event.entity_type in labels and event.entity_id == run.entity_id
        yield event, since if is_own else run.created_at


def _events(pattern: str, since: datetime, offsets: Sequence[Offset]) -> QuerySet[Event, Event]:
    wanted = Q(occurred_at__gte=since)
    if offsets:
        # Of those that live: what has fired before its date, and what may have fired after it.
        reach = max(shift(since, offset) - since for offset in offsets)
        fired = Q(status=EventStatus.PENDING, fired_at__isnull=False) | Q(at__gte=since - max(reach, timedelta(0)))
        wanted |= Q(active_key__isnull=False) & fired
    events = Event.objects.filter(wanted)
    if is_pattern(pattern):
        events = events.filter(declared_as__in={each.definition.name for each in sources_of(pattern)})
    else:
        events = events.filter(event_name=pattern)
    return events.order_by("occurred_at", "pk")


def _has_fired(handler: HandlerDefinition, event: Event, since: datetime | None, *, spawning: bool) -> bool:
    """Say whether the beat of ``handler`` has come (since a moment), and is not told any more."""
    if not handler.hears(event):
        return False
    if handler.offset is None:
        return event.occurred_at is not None and (since is None or event.occurred_at >= since)
    if handler.beat not in event.fired:
        return False
    if since is not None and not spawning and event.occurred_at is not None and event.occurred_at >= since:
        # It had not occurred when the agent was spawned: it is its business as a whole, however late the worker that
        # brings the agent to life, and whatever has become of its date and condition since.
        return True
    if event.at is None or not event.armed:
        return since is not None and event.fired_at is not None and event.fired_at > since
    # Before its date has come the event is still the agent's business; after it only what fell due in the agent's life.
    return since is None or event.status == EventStatus.PENDING or shift(event.at, handler.offset) >= since
