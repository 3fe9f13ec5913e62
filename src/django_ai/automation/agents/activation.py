"""Activation: a worker makes the Context of a PENDING agent and writes its routes, in one transaction.

Code that spawns a singleton knows its key and its Context at once. Where another agent is active for that key, the
caller inserts a PENDING row with both, so that no lock is held until the caller commits. A worker that finds the key of
a PENDING agent taken moves its event into the mailbox of the active agent and deletes the row. One transaction does
both, and it keeps the active agent from ending meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from django.db import transaction
from pydantic import BaseModel

from ..conf import conf
from ..db.locks import locked
from ..db.writer import alias_of
from ..events.models import Event
from ..events.subscribers import Notification
from ..exceptions import RedirectedToSingletonError, SingletonTakenError
from ..queues.advance import advance
from ..queues.attempt import Progress, attempt
from ..queues.causation import CurrentRun, Owner
from ..queues.lease import release
from ..state.contexts import dump_context
from ..state.versions import restore
from ..values.clock import Clock, later
from ..values.failures import Raised
from ..values.text import trace_of
from .catch_up import spawning_executions
from .definitions import AgentDefinition
from .delivery import executions_for
from .ending import KIND
from .mailbox import handled_elsewhere, put_in_mailbox
from .models import AgentRun, AgentStatus, HandlerExecution, touch
from .routing import Keys, fingerprint, install_routes, keys_of, singleton_holder, singleton_key


def activate(run: AgentRun, definition: AgentDefinition, clock: Clock) -> bool:
    """Make the Context of a PENDING agent and write its routes; return whether it is active now, leased by this
    worker."""
    keys: list[str | None] = []

    def work() -> Progress:
        context = _context_of(run, definition)
        keys.append(singleton_key(definition, run, context))
        return _activated(run, definition, context, keys[-1])

    def rescue(error: Exception) -> Progress:
        if isinstance(error, RedirectedToSingletonError):
            return Progress({"status": AgentStatus.PENDING})
        return _retry_or_fail(run, definition, error, clock())

    committed = attempt(
        run,
        work,
        rescue,
        current=CurrentRun(
            f"agent:{run.pk}:create_context",
            run.depth,
            f"agent:{run.call_key}",
            Owner(KIND, run.pk, definition.namespace),
            trace_context=run.trace_context,
        ),
        atomic=True,
        timeout=conf().STEP_TIMEOUT,
        clock=clock,
    )
    if not committed or run.lease is None:
        return False
    if run.status == AgentStatus.ACTIVE:
        return True
    redirect_to_singleton(run, definition, keys[-1] or "", clock)
    return False


def _context_of(run: AgentRun, definition: AgentDefinition) -> BaseModel:
    if run.singleton:  # spawned by code, which has made its Context
        return restore(definition, run.data, run.version, str(run)).context
    return definition.make_context(run.event)


def _activated(run: AgentRun, definition: AgentDefinition, context: BaseModel, singleton: str | None) -> Progress:
    """Return the commit that activates the agent, with its routes."""
    keys = keys_of(definition, run, context)
    if singleton is not None and run.event_id is not None and handled_elsewhere(singleton, [run.event_id], run):
        raise RedirectedToSingletonError(f"The event that spawns {run} was handled by another {run.name!r}.")
    changes = {
        "status": AgentStatus.ACTIVE,
        "version": definition.version,
        "data": dump_context(context, f"The Context of {definition.name}"),
        "routing": fingerprint(definition),
        "singleton": singleton or "",
        "attempt": 0,
        "error": "",
    }
    return Progress(changes, None, (lambda: _install_or_redirect(run, keys, singleton),))


def _install_or_redirect(run: AgentRun, keys: Keys, singleton: str | None) -> None:
    """Write the routes. Raise ``RedirectedToSingletonError`` if another agent holds the singleton key."""
    try:
        install_routes(run, keys, singleton)
    except SingletonTakenError as error:
        raise RedirectedToSingletonError(str(error)) from error


def _retry_or_fail(run: AgentRun, definition: AgentDefinition, error: Exception, now: datetime) -> Progress:
    """Return the commit of a failed activation: a retry after a pause, or the end of the agent. Every attempt counts,
    also one that raised ``RetryAfter``."""
    raised, retry, attempt = Raised(error, trace_of(error)), definition.default_retry, run.attempt + 1
    is_last = attempt >= retry.max_attempts
    following = None if is_last else raised.next_attempt(retry, attempt, f"agent:{run.call_key}", now)
    trace = raised.text
    changes = {"attempt": attempt, "error": trace, "lease": None}
    if following is None:
        changes |= {"status": AgentStatus.FAILED, "finished_at": now, "wake_at": None}
        return Progress(changes, failed=(run, trace))
    return Progress(changes | {"wake_at": later(now, following.delay)})


def redirect_to_singleton(run: AgentRun, definition: AgentDefinition, key: str, clock: Clock) -> None:
    """Move the event of a PENDING agent, whose key another agent holds, into that agent's mailbox, and delete the
    row."""
    holder, event, is_redirected = singleton_holder(key), run.event, True
    with transaction.atomic(using=alias_of(AgentRun)):
        if event is not None and not handled_elsewhere(key, [event.pk], run):
            # Locked, it can neither end nor change its key before this transaction has committed.
            other = locked(AgentRun.objects.unfinished().filter(pk=holder or 0)).first()
            is_redirected = other is not None and singleton_holder(key) == holder
            if other is not None and is_redirected:
                spawning = spawning_executions(other.pk, definition, event, clock())
                put_in_mailbox([*spawning, *_notified_executions(other.pk, event, clock())])
        if is_redirected:
            advance(run, {"wake_at": None, "lease": None})
            AgentRun.objects.filter(pk=run.pk).delete()
        else:
            release(run, clock())  # the other has just ended: try again, and take its key
    if holder is not None:
        touch([holder])


def _notified_executions(run_pk: int, event: Event, now: datetime) -> Iterator[HandlerExecution]:
    """Yield what delivery would put into the agent's mailbox for the milestones of ``event`` that have fired."""
    milestones = [milestone for milestone in ("", *event.fired_offsets) if milestone or event.occurred_at is not None]
    return executions_for([Notification(event, milestone) for milestone in milestones], now, only=run_pk)
