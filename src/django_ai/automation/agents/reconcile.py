"""Gives living agents the routes that a new deployment asks for, and wakes those that were forgotten.

Routes are only added here, never removed: code of before may still be at work beside ours.
"""

from __future__ import annotations

import time
from datetime import datetime

from django.db import transaction

from ..exceptions import AutomationError
from ..queues.contexts import load_context
from ..queues.lease import alias_of, insert_ignoring
from .definitions import AgentDefinition, all_agents
from .mailbox import wake_forgotten
from .models import AgentRoute, AgentRun, AgentStatus
from .routes import fingerprint, keys_of, singleton_key

CHUNK = 200
SHARE = 10.0
"""Seconds that one sweep takes at most; the next one goes on."""


def reconcile_agents(now: datetime) -> int:
    """Bring agents in line with the code and with their mailboxes; return how many were."""
    until = time.monotonic() + SHARE
    return sum(_add_routes(definition, until) for definition in all_agents()) + wake_forgotten(now)


def _add_routes(definition: AgentDefinition, until: float) -> int:
    print_of, written, after = fingerprint(definition), 0, 0
    old = AgentRun.objects.active().filter(name=definition.name).exclude(routing=print_of).order_by("pk")
    while time.monotonic() < until and (chunk := list(old.filter(pk__gt=after)[:CHUNK])):
        after = chunk[-1].pk
        for run in chunk:
            written += _add(run, definition, print_of)
    return written


def _add(run: AgentRun, definition: AgentDefinition, print_of: str) -> int:
    with transaction.atomic(using=alias_of(AgentRun)):
        # Locked, and read afresh: a handler that changes the Context writes the routes of the new one.
        fresh = AgentRun.objects.select_for_update().filter(pk=run.pk, status=AgentStatus.ACTIVE).first()
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
