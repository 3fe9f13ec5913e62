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
from ..queues.acting import signed
from ..queues.causation import cause_now, next_depth
from ..queues.history import note, noting
from ..queues.lanes import lane_of
from ..queues.notifier import ring_after_commit
from ..queues.positions import lower_bound
from ..queues.run import key_of
from ..state.contexts import dump_context
from ..values.classes import declaration_of
from .definitions import AgentDefinition, find_agent
from .ending import end_agents
from .models import AgentRun, AgentRunQuerySet, AgentStatus, HandlerExecution
from .redelivery import redeliver
from .routing import fingerprint, install_routes, keys_of, singleton_holder, singleton_key
from .spawning import origin_key, priority_by_event

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
        return _end(run, AgentStatus.COMPLETED, "Completed", reason)

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
        return _end(run, AgentStatus.CANCELLED, "Cancelled", reason)

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
        key = key_of(run, AgentRun, "AgentManager.resume(run)")
        row = run if isinstance(run, AgentRun) else AgentRun.objects.get(pk=key)
        row.resume()
        return row

    @staticmethod
    def redeliver(
        target: HandlerExecution | Event, /, run: AgentRun | int | None = None, *, handler: str | None = None
    ) -> list[HandlerExecution]:
        """Let handlers handle an event again that they have skipped, or in which they have failed.

        The executions are in the mailbox again, due after the commit of the caller's transaction, with all their
        attempts. The agent's claims and the handler's condition are evaluated anew, so an execution may be skipped
        again. Its idempotency key stays the same: nothing of the earlier attempts was committed. An execution that has
        completed is never repeated.

        Args:
            target: One ``HandlerExecution``; or an ``Event``, for all its executions that were skipped or have failed.
            run: With an event: only those of this agent, an ``AgentRun`` or its primary key. Default: of all agents.
            handler: With an event: only those of the handler with this name. Default: of all handlers.

        Returns:
            The executions that are handled again, at least one.

        Raises:
            StateError: If none is left that was skipped or has failed, or if its agent has ended. The message says in
                which states they are.
            DefinitionError: If ``target`` is something else, or ``run`` or ``handler`` is given with an execution.

        Example:
            A condition was wrong, and its agents have skipped the event::

                AgentManager.redeliver(event, handler="complaint_opened")
        """
        return redeliver(target, run, handler, timezone.now())


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
        ring_after_commit(alias_of(AgentRun), lane_of(run))
        return run
    raise AutomationError(
        f"AgentManager.spawn({definition.name!r}): the singleton could neither be spawned nor found. Agents of this "
        "match end too fast, or this transaction does not see them: use the isolation level READ COMMITTED (Django's "
        "default)."
    )


def _new_run(definition: AgentDefinition, event: Event | None, context: Any) -> AgentRun:
    now = timezone.now()
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
        entity_id=event.entity_id if event and not event.is_free else "",
        queue=definition.queue,
        priority=_priority(definition, event),
        caused_by=cause_now()[0],
        depth=next_depth(f"An agent {definition.name}"),
    )


def _priority(definition: AgentDefinition, event: Event | None) -> int:
    if event is None:
        return 0 if callable(definition.priority) else definition.priority
    return priority_by_event(event, definition)


def _leave_for_the_key(run: AgentRun, event: Event) -> None:
    """Insert ``run`` as PENDING, with the singleton's key and the Context, for the agent that lives after the commit.

    So no lock is held until the caller commits, and it does not matter which agent lives by then.
    """
    run.pk, run.status, run.routing = None, AgentStatus.PENDING, ""
    run.origin_key = origin_key(event, run.name)
    insert_ignoring(AgentRun, [run])


def _end(run: AgentRun | int, status: AgentStatus, done: str, reason: str) -> bool:
    method = "complete" if status == AgentStatus.COMPLETED else "cancel"
    pk = key_of(run, AgentRun, f"AgentManager.{method}(run)")

    def end() -> int:
        with noting(AgentRun) as is_noted:
            runs = AgentRun.objects.filter(pk=pk)
            ended = end_agents(runs, status, signed(done, reason), timezone.now())
            if ended and is_noted:
                note(run if isinstance(run, AgentRun) else runs.get(), done, reason)
        return ended

    ended = retry_on_deadlock(alias_of(AgentRun), end)
    if isinstance(run, AgentRun):
        run.refresh_from_db()
    return ended > 0
