"""``AgentManager``: how code outside an agent spawns, lists, completes, cancels and resumes agents."""

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
from .routing import fingerprint, install_routes, keys_of, singleton_holder, singleton_key
from .spawning import origin_key

__all__ = ["AgentManager"]

MAX_SPAWN_ATTEMPTS = 20


class AgentManager:
    """What code outside an agent calls: spawn, list, end and resume agents. All methods are static.

    Every method writes rows in the caller's transaction and returns at once. Workers see them after the commit; after a
    rollback nothing has happened.

    Example:
        Count the agents of one kind::

            AgentManager.list_active("complaints").count()
    """

    @staticmethod
    def spawn(agent: str | type, /, event: Event | None = None, **arguments: Any) -> AgentRun:
        """Spawn an agent, and return its run.

        The run is inserted in the caller's transaction. If the agent is a singleton and one lives for the same match,
        that one is returned and gets the event.

        Args:
            agent: The agent, as its name or its class.
            event: The ``Event`` that spawns it. It is passed to ``create_context``, and a handler for this event runs
                once. Default: none.
            **arguments: Arguments of ``create_context``. If there is none, or if it needs an event and none is given:
                the fields of the Context.

        Returns:
            The ``AgentRun``.

        Raises:
            UnknownAgentError: If no agent has this name.
            DefinitionError: If ``event`` or the class is invalid, or if the Context cannot be made for want of an
                event.
            pydantic.ValidationError: If the arguments do not fit the Context. Whatever else ``create_context`` raises
                is raised too.
            NotStorableError: If the Context cannot be stored as JSON.
            EventStormError: If agents spawn each other without end.
            AutomationError: If singletons of one match are spawned and end faster than they can be read.

        Example:
            Give an older customer an agent, too::

                run = AgentManager.spawn("complaints", customer_id=7)
        """
        if event is not None and not isinstance(event, Event):
            raise DefinitionError(f"AgentManager.spawn(event={event!r}): give an Event, or leave event= out.")
        definition = _definition(agent)
        context = definition.context_by_hand(event, **arguments)
        return retry_on_deadlock(alias_of(AgentRun), lambda: _spawn(definition, event, context))

    @staticmethod
    def list_active(agent: str | type | None = None) -> AgentRunQuerySet:
        """Return the agents that live. An agent that an event spawns is among them once a worker has made its Context.

        Args:
            agent: The agent, as its name or its class. Default: all agents.

        Returns:
            A QuerySet of ``AgentRun``, the oldest first.

        Raises:
            UnknownAgentError: If no agent has this name.
            DefinitionError: If the class is not an agent.

        Example:
            End all agents of one kind::

                for run in AgentManager.list_active("complaints"):
                    AgentManager.complete(run)
        """
        active = AgentRun.objects.active().order_by("pk")
        return active if agent is None else active.filter(name=_definition(agent).name)

    @staticmethod
    def complete(run: AgentRun | int, reason: str = "") -> bool:
        """End an agent successfully.

        Its claims are released, and what is left in its mailbox is cancelled, in the caller's transaction. A handler
        that ends its own agent does so with its commit. A handler that runs in another worker is not interrupted, but
        nothing of it is committed.

        Args:
            run: The agent, as an ``AgentRun`` or its primary key.
            reason: Why, as a string for the operator. Default: none.

        Returns:
            True if the agent was unfinished.

        Raises:
            AgentRun.DoesNotExist: If ``run`` is an object whose row was removed.

        Example:
            A handler ends its own agent::

                @handler("customer_left")
                def stop(self, run):
                    AgentManager.complete(run, "The customer has left.")
        """
        return _end(run, AgentStatus.COMPLETED, reason)

    @staticmethod
    def cancel(run: AgentRun | int, reason: str = "Cancelled.") -> bool:
        """End an agent before its time; its status is CANCELLED, otherwise the same as ``complete``.

        Args:
            run: The agent, as an ``AgentRun`` or its primary key.
            reason: Why, as a string for the operator. Default ``"Cancelled."``.

        Returns:
            True if the agent was unfinished.

        Raises:
            AgentRun.DoesNotExist: If ``run`` is an object whose row was removed.

        Example:
            Cancel an agent that was spawned by mistake::

                AgentManager.cancel(run, "The customer was imported twice.")
        """
        return _end(run, AgentStatus.CANCELLED, reason)

    @staticmethod
    def resume(run: AgentRun | int) -> AgentRun:
        """Let a parked agent continue, or try again to make the Context of one that failed.

        The agent is due after the commit of the caller's transaction.

        Args:
            run: The agent, as an ``AgentRun`` or its primary key.

        Returns:
            The ``AgentRun``.

        Raises:
            NotResumableError: If the agent is neither parked nor failed.
            AgentRun.DoesNotExist: If no agent has this primary key.

        Example:
            Resume an agent after its bug was mended::

                AgentManager.resume(run)
        """
        row = run if isinstance(run, AgentRun) else AgentRun.objects.get(pk=run)
        row.resume()
        return row


def _definition(agent: str | type) -> AgentDefinition:
    if isinstance(agent, type):
        return find_agent(declaration_of(agent, "__agent__", "an agent", "@agent(...)").name)
    return find_agent(agent)


def _spawn(definition: AgentDefinition, event: Event | None, context: Any) -> AgentRun:
    for _ in range(MAX_SPAWN_ATTEMPTS):
        run = _new_run(definition, event, context)
        keys, singleton = keys_of(definition, run, context), singleton_key(definition, run, context)
        run.singleton = singleton or ""
        try:
            with transaction.atomic(using=alias_of(AgentRun)):
                run.save(force_insert=True, using=alias_of(AgentRun))
                install_routes(run, keys, singleton)
        except SingletonTakenError:
            living = AgentRun.objects.unfinished().filter(pk=singleton_holder(run.singleton) or 0).first()
            if living is None:
                continue  # it ended in between
            if event is not None and event.occurred_at is not None:
                _leave_for_the_key(run, event)
            run = living
        ring_after_commit(alias_of(AgentRun), AgentRun)
        return run
    raise AutomationError(
        f"AgentManager.spawn({definition.name!r}): the singleton could neither be spawned nor found. Agents of this "
        "match end too fast, or this transaction does not see them: use the isolation level READ COMMITTED (Django's "
        "default)."
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
    """Insert ``run`` as PENDING, with the singleton's key and the Context, for the agent that lives after the commit.

    So no lock is held until the caller commits, and it does not matter which agent lives by then.
    """
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
