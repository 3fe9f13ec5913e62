"""Gives living agents the routes that a new deployment asks for, and wakes those that were forgotten.

Routes are only added here, never removed: code of before may still be at work beside ours.
"""

from __future__ import annotations

import time
from datetime import datetime

from django.db import transaction
from django.db.models import Q

from ..exceptions import AutomationError
from ..queues.contexts import load_context
from ..queues.lease import alias_of, insert_ignoring, locked
from .definitions import AgentDefinition, all_agents
from .mailbox import wake_forgotten
from .models import AgentRoute, AgentRun
from .routes import fingerprint, keys_of, singleton_key

CHUNK = 200
SHARE = 10.0
"""Seconds that one sweep takes at most; the next one goes on."""


def reconcile_agents(now: datetime) -> int:
    """Bring agents in line with the code and with their mailboxes; return how many were."""
    until = time.monotonic() + SHARE
    return sum(_add_routes(definition, until) for definition in all_agents()) + wake_forgotten(now)


def _add_routes(definition: AgentDefinition, until: float) -> int:
    print_of, written = fingerprint(definition), 0
    broken: list[int] = []
    # Two ranges, not "other than": the index finds the next ones, however many are right already.
    for others in (Q(routing__lt=print_of), Q(routing__gt=print_of)):
        old = AgentRun.objects.active().filter(others, name=definition.name).order_by("routing")
        while time.monotonic() < until and (chunk := list(old.exclude(pk__in=broken)[:CHUNK])):
            for run in chunk:
                if _add(run, definition, print_of):
                    written += 1
                else:
                    broken.append(run.pk)
    return written


def _add(run: AgentRun, definition: AgentDefinition, print_of: str) -> int:
    with transaction.atomic(using=alias_of(AgentRun)):
        # Locked, and read afresh: a handler that changes the Context writes the routes of the new one.
        fresh = locked(AgentRun.objects.active().filter(pk=run.pk)).first()
        if fresh is None:
            return 0
        try:
            context = load_context(definition.context, fresh.data, str(fresh))
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
