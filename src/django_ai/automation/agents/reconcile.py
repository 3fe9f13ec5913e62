"""Gives living agents the routes that a new deployment asks for, lets go on what waited for it, and wakes those that
were forgotten.

Routes are only added here, never removed: code of before may still be at work beside ours.
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
from ..queues.maintenance import SliceResult, TimeSlice
from ..state.versions import restore
from .definitions import AgentDefinition, all_agents, check_release, has_handler
from .mailbox import wake_forgotten
from .models import AgentRoute, AgentRun, HandlerExecution, HandlerStatus, touch
from .routing import fingerprint, keys_of, singleton_key

CHUNK = 200
AT_ONCE = 10_000
MOST_BROKEN = 1000
"""So many agents of a name that get no routes are passed by; then it is the next name's turn."""


def reconcile_agents(now: datetime) -> int:
    """Bring all agents in line with the code and with their mailboxes; return how many were."""
    return take_agents(TimeSlice(now)).done


def take_agents(turn: TimeSlice) -> SliceResult:
    """Bring agents in line with the code, as long as the turn lasts, and in the last one with their mailboxes. The
    position: at which agent it stopped, and which of its runs get no routes."""
    place, routed = turn.position or {}, 0
    known = {definition.name: definition for definition in all_agents()}
    for name in sorted(known):
        if name < place.get("agent", ""):
            continue
        broken: list[int] = place["broken"] if name == place.get("agent") else []
        count, is_complete = _add_routes(known[name], turn, broken)
        routed += count
        if not is_complete:
            return SliceResult(routed, {"agent": name, "broken": broken})
    return SliceResult(routed + resume_found(turn.now) + wake_forgotten(turn.now))


def resume_found(now: datetime) -> int:
    """Let executions go on that were parked for want of a handler, or of their entity's model, which this code has;
    return how many. What nobody has costs one look at what there is, however much of it."""
    parked = HandlerExecution.objects.filter(
        status=HandlerStatus.PARKED, parked_at__isnull=False, run__in=AgentRun.objects.unfinished()
    )
    found = 0
    for name, method, milestone, label in parked.values_list(
        "run__name", "handler", "milestone", "event__entity_type"
    ).distinct():
        if not has_handler(name, method, milestone) or not is_installed(label):
            continue
        mine = parked.filter(run__name=name, handler=method, milestone=milestone, event__entity_type=label)
        rows = list(mine.order_by("pk").values_list("pk", "run")[:AT_ONCE])
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            again = HandlerExecution.objects.filter(pk__in=[pk for pk, _ in chunk], status=HandlerStatus.PARKED)
            found += again.update(status=HandlerStatus.PENDING, error="", finished_at=None, parked_at=None, due_at=now)
            touch(run for _, run in chunk)
    return found


def _add_routes(definition: AgentDefinition, turn: TimeSlice, broken: list[int]) -> tuple[int, bool]:
    """Return how many runs have got their routes, and whether those were all; add to ``broken`` the others."""
    print_of, written = fingerprint(definition), 0
    # Two ranges, not "other than": the index finds the next ones, however many are right already.
    for others in (Q(routing__lt=print_of), Q(routing__gt=print_of)):
        old = AgentRun.objects.active().filter(others, name=definition.name).order_by("routing")
        while len(broken) < MOST_BROKEN and (chunk := list(old.exclude(pk__in=broken)[:CHUNK])):
            for run in chunk:
                if _add(run, definition, print_of):
                    written += 1
                else:
                    broken.append(run.pk)
                if turn.is_over:
                    return written, False
    return written, True


def _add(run: AgentRun, definition: AgentDefinition, print_of: str) -> int:
    with transaction.atomic(using=alias_of(AgentRun)):
        # Locked, and read afresh: a handler that changes the Context writes the routes of the new one.
        fresh = locked(AgentRun.objects.active().filter(pk=run.pk)).first()
        if fresh is None:
            return 0
        try:
            check_release(fresh.version, definition, str(fresh))
            context = restore(definition, fresh.data, fresh.version, str(fresh)).context
            keys, singleton = keys_of(definition, fresh, context), singleton_key(definition, fresh, context)
        except AutomationError:
            return 0  # the agent itself is parked for it, when it next wakes
        known = set(AgentRoute.objects.filter(run=fresh).values_list("key", flat=True))
        AgentRoute.objects.bulk_create([AgentRoute(run=fresh, key=key) for key in sorted(keys - known)])
        if singleton is not None:
            # Of several that live already the first counts; the others live on beside it.
            only = AgentRoute(run=fresh, key=singleton, unique_key=singleton)
            insert_ignoring(AgentRoute, [only], key="unique_key")
        AgentRun.objects.filter(pk=fresh.pk).update(routing=print_of, singleton=singleton or "")
    return 1
