"""``AgentManager``: what code outside an agent says to it: spawn, list, complete, cancel, resume."""

from __future__ import annotations

import json
from typing import Any

from django.db import transaction
from django.utils import timezone

from ..db.deadlocks import retry_on_deadlock
from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..events.models import Event
from ..exceptions import AutomationError, DefinitionError, SingletonTakenError
from ..queues.causation import current_cause, next_depth
from ..queues.notifier import ring_after_commit
from ..queues.positions import lower_bound
from ..state.contexts import dump_context
from ..values.classes import declaration_of
from .definitions import AgentDefinition, find_agent
from .ending import end_agents
from .models import AgentRun, AgentRunQuerySet, AgentStatus
from .routing import fingerprint, install, keys_of, singleton_key, taken_by
from .spawning import origin_key

__all__ = ["AgentManager"]

TRIES = 20


class AgentManager:
    """The way in from outside. Every method only writes rows, in the caller's transaction, and returns at once."""

    @staticmethod
    def spawn(agent: str | type, /, event: Event | None = None, **arguments: Any) -> AgentRun:
        """Bring an agent to life by its name (or class), and return its run.

        ``event`` goes to its ``create_context``, and is the agent's spawning event: a handler for it runs once. Without
        an event ``arguments`` go to ``create_context``; where that needs an event, or there is none, they are the
        fields of the Context. Where the agent is a singleton and one lives for the same match, that one is returned,
        and gets the event. Raises ``UnknownAgentError``, what ``create_context`` raises, pydantic's
        ``ValidationError``, ``DefinitionError``, ``NotStorableError``, and ``EventStormError`` where agents spawn each
        other without end.
        """
        if event is not None and not isinstance(event, Event):
            raise DefinitionError(f"AgentManager.spawn(event={event!r}): give an Event, or leave it out.")
        definition = _definition(agent)
        context = definition.context_by_hand(event, **arguments)
        return retry_on_deadlock(alias_of(AgentRun), lambda: _spawn(definition, event, context))

    @staticmethod
    def list_active(agent: str | type | None = None) -> AgentRunQuerySet:
        """Return the agents that live, of one name (or class) or all: a QuerySet.

        One that an event spawns is among them once a worker has made its Context. Raises ``UnknownAgentError``.
        """
        active = AgentRun.objects.active().order_by("pk")
        return active if agent is None else active.filter(name=_definition(agent).name)

    @staticmethod
    def complete(run: AgentRun | int, reason: str = "") -> bool:
        """End an agent well; say whether it was unfinished.

        Its claims are released, and what is left in its mailbox is cancelled. From within its own handler it ends with
        that handler's commit; what the handler of another worker is doing is not kept.
        """
        return _end(run, AgentStatus.COMPLETED, reason)

    @staticmethod
    def cancel(run: AgentRun | int, reason: str = "Cancelled.") -> bool:
        """End an agent before its time; otherwise the same as ``complete``."""
        return _end(run, AgentStatus.CANCELLED, reason)

    @staticmethod
    def resume(run: AgentRun | int) -> AgentRun:
        """Let a parked agent go on, or try to spawn a failed one again. Raises ``NotResumableError``."""
        row = run if isinstance(run, AgentRun) else AgentRun.objects.get(pk=run)
        row.resume()
        return row


def _definition(agent: str | type) -> AgentDefinition:
    if isinstance(agent, type):
        return find_agent(declaration_of(agent, "__agent__", "an agent", "@agent(...)").name)
    return find_agent(agent)


def _spawn(definition: AgentDefinition, event: Event | None, context: Any) -> AgentRun:
    for _ in range(TRIES):
        run = _new_run(definition, event, context)
        keys, singleton = keys_of(definition, run, context), singleton_key(definition, run, context)
        run.singleton = singleton or ""
        try:
            with transaction.atomic(using=alias_of(AgentRun)):
                run.save(force_insert=True, using=alias_of(AgentRun))
                install(run, keys, singleton)
        except SingletonTakenError:
            living = AgentRun.objects.unfinished().filter(pk=taken_by(run.singleton) or 0).first()
            if living is None:
                continue  # it has ended this instant
            if event is not None and event.occurred_at is not None:
                _leave_for_the_key(run, event)
            run = living
        ring_after_commit(alias_of(AgentRun), AgentRun)
        return run
    raise AutomationError(
        f"The agent {definition.name!r} lives and ends too fast to be spawned or found, or this transaction does "
        "not see it: use the isolation level READ COMMITTED (Django's default)."
    )


def _new_run(definition: AgentDefinition, event: Event | None, context: Any) -> AgentRun:
    now, cause = timezone.now(), current_cause()
    return AgentRun(
        name=definition.name,
        version=definition.version,
        status=AgentStatus.ACTIVE,
        data=json.loads(dump_context(context, f"The Context of {definition.name}")),
        routing=fingerprint(definition),
        created_at=now,
        wake_at=now,
        position=lower_bound(),
        event=event,
        entity_type=event.entity_type if event else "",
        entity_id=event.entity_id if event else "",
        caused_by=cause.label if cause else "",
        depth=next_depth(f"An agent {definition.name}"),
    )


def _leave_for_the_key(run: AgentRun, event: Event) -> None:
    """Leave an event for whoever lives for the key of a singleton when this has committed: ``run``, PENDING, with the
    key and the Context. So no lock is held until the caller commits, and nothing depends on who lives then."""
    run.pk, run.status, run.routing = None, AgentStatus.PENDING, ""
    run.origin_key = origin_key(event, run.name)
    insert_ignoring(AgentRun, [run])


def _end(run: AgentRun | int, status: AgentStatus, reason: str) -> bool:
    pk = run.pk if isinstance(run, AgentRun) else run
    runs = AgentRun.objects.filter(pk=pk)
    ended = retry_on_deadlock(alias_of(AgentRun), lambda: end_agents(runs.all(), status, reason, timezone.now()))
    if isinstance(run, AgentRun):
        run.refresh_from_db()
    return ended > 0
