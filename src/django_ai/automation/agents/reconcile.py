"""Reconciliation of agents: adds the routes that a new deployment needs, unparks executions that waited for its code,
and wakes agents that miss due executions.

Routes are only added here, never deleted: workers of the previous release may still run beside this one.
"""

from __future__ import annotations

from datetime import datetime

from django.db import transaction
from django.db.models import Q

from ..db.inserts import insert_ignoring
from ..db.locks import locked
from ..db.writer import alias_of
from ..events.entities import is_installed
from ..exceptions import AutomationError
from ..queues.periodic_tasks import SliceResult, TimeSlice
from ..state.versions import restore
from .definitions import AgentDefinition, all_agents, check_release, has_handler
from .mailbox import wake_forgotten
from .models import AgentRoute, AgentRun, HandlerExecution, HandlerStatus, touch
from .routing import fingerprint, keys_of, singleton_key

ROWS_PER_CHUNK = 200
MAX_UNPARKED_EXECUTIONS = 10_000
"""Executions of one handler that one reconciliation unparks at most."""
MAX_BROKEN_AGENTS = 1000
"""After this number of agents of a name whose routes cannot be computed, the next name follows."""


def reconcile_agents(now: datetime) -> int:
    """Reconcile all agents with the code and with their mailboxes; return how many changed."""
    return reconcile_slice(TimeSlice(now)).done


def reconcile_slice(time_slice: TimeSlice) -> SliceResult:
    """Reconcile agents with the code until the time slice is over, and in the last slice with their mailboxes.

    The position is the name of the agent at which the slice stopped, and the primary keys of its runs whose routes
    cannot be computed.
    """
    place, routed = time_slice.position or {}, 0
    known = {definition.name: definition for definition in all_agents()}
    for name in sorted(known):
        if name < place.get("agent", ""):
            continue
        broken: list[int] = place["broken"] if name == place.get("agent") else []
        count, is_complete = _add_routes(known[name], time_slice, broken)
        routed += count
        if not is_complete:
            return SliceResult(routed, {"agent": name, "broken": broken})
    return SliceResult(routed + unpark_executions(time_slice.now) + wake_forgotten(time_slice.now))


def unpark_executions(now: datetime) -> int:
    """Unpark executions whose missing handler, or missing model of their entity, this code has; return how many.

    One query finds the handlers that are still missing, for any number of parked executions.
    """
    parked = HandlerExecution.objects.filter(
        status=HandlerStatus.PARKED, parked_at__isnull=False, run__in=AgentRun.objects.unfinished()
    )
    found = 0
    for name, method, milestone, label in parked.values_list(
        "run__name", "handler", "milestone", "event__entity_type"
    ).distinct():
        if not has_handler(name, method, milestone) or not (label == "" or is_installed(label)):
            continue
        mine = parked.filter(run__name=name, handler=method, milestone=milestone, event__entity_type=label)
        rows = list(mine.order_by("pk").values_list("pk", "run")[:MAX_UNPARKED_EXECUTIONS])
        for start in range(0, len(rows), ROWS_PER_CHUNK):
            chunk = rows[start : start + ROWS_PER_CHUNK]
            again = HandlerExecution.objects.filter(pk__in=[pk for pk, _ in chunk], status=HandlerStatus.PARKED)
            found += again.update(status=HandlerStatus.PENDING, error="", finished_at=None, parked_at=None, due_at=now)
            touch(run for _, run in chunk)
    return found


def _add_routes(definition: AgentDefinition, time_slice: TimeSlice, broken: list[int]) -> tuple[int, bool]:
    """Add missing routes; return for how many runs, and whether these are all. Collect the failed ones in
    ``broken``."""
    current, written = fingerprint(definition), 0
    # Two ranges instead of "not equal": the index finds the next rows, for any number of current ones.
    for others in (Q(routing__lt=current), Q(routing__gt=current)):
        old = AgentRun.objects.active().filter(others, name=definition.name).order_by("routing")
        while len(broken) < MAX_BROKEN_AGENTS and (chunk := list(old.exclude(pk__in=broken)[:ROWS_PER_CHUNK])):
            for run in chunk:
                if _add_routes_of(run, definition, current):
                    written += 1
                else:
                    broken.append(run.pk)
                if time_slice.is_over:
                    return written, False
    return written, True


def _add_routes_of(run: AgentRun, definition: AgentDefinition, current: str) -> bool:
    with transaction.atomic(using=alias_of(AgentRun)):
        # Locked and read again: a handler that changes the Context writes the routes of the new Context.
        fresh = locked(AgentRun.objects.active().filter(pk=run.pk)).first()
        if fresh is None:
            return False
        try:
            check_release(fresh.version, definition, str(fresh))
            context = restore(definition, fresh.data, fresh.version, str(fresh)).context
            keys, singleton = keys_of(definition, fresh, context), singleton_key(definition, fresh, context)
        except AutomationError:
            return False  # the agent is parked for this error when it next wakes
        known = set(AgentRoute.objects.filter(run=fresh).values_list("key", flat=True))
        AgentRoute.objects.bulk_create([AgentRoute(run=fresh, key=key) for key in sorted(keys - known)])
        if singleton is not None:
            # Of several active agents with one key the first takes it; the others stay active beside it.
            only = AgentRoute(run=fresh, key=singleton, unique_key=singleton)
            insert_ignoring(AgentRoute, [only], key="unique_key")
        AgentRun.objects.filter(pk=fresh.pk).update(routing=current, singleton=singleton or "")
    return True
