"""``engine.edit_context`` for agents: other values in the Context of an agent that rests. Its routes follow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from ..db.deadlocks import retry_on_deadlock
from ..db.locks import locked
from ..db.writer import alias_of
from ..exceptions import NoContextError, StateError
from ..queues.causation import own_run_pk
from ..queues.history import note
from ..queues.lease import revoke
from ..state.editing import check_fields, edited_data
from ..state.versions import restore
from .definitions import agent_of
from .ending import KIND
from .models import AgentRun
from .routing import fingerprint, keys_of, replace_routes, singleton_key


def edit_context(run: AgentRun, fields: Mapping[str, Any], reason: str) -> None:
    """Store other values of ``fields`` in the Context of an agent that rests, and replace its routes.

    ``reason``: kept in the history of who did what, if somebody acts.
    """
    what = f"engine.edit_context({run})"
    check_fields(fields, what)
    if own_run_pk(KIND) == run.pk:
        raise StateError(f"{what}: this agent's handler runs it. Change self.context instead.", run)
    alias = alias_of(AgentRun)

    def write() -> None:
        with transaction.atomic(using=alias):
            row = locked(AgentRun.objects.filter(pk=run.pk)).first()
            if row is None:
                raise StateError(f"{what}: it was removed (RETENTION_AGENTS).", run)
            _edit(row, fields, what)
            note(row, "Edited", reason)

    retry_on_deadlock(alias, write)
    run.refresh_from_db()


def _edit(run: AgentRun, fields: Mapping[str, Any], what: str) -> None:
    if run.has_no_context:
        raise NoContextError(f"{what}: it has no Context yet; its event makes it when the agent is activated.", run)
    if run.is_finished:
        raise StateError(f"{what}: it is {run.status}, and nothing reads its Context. Spawn another agent.", run)
    if run.lease is not None:
        by = f"it is performed by {run.holder} at this moment"
        raise StateError(f"{what}: {by}. Pause it with engine.pause(), and edit it then.", run)
    definition = agent_of(run)
    data = json.loads(edited_data(definition, run.data, run.version, fields, what))
    context = restore(definition, data, definition.version, what).context
    keys, singleton = keys_of(definition, run, context), singleton_key(definition, run, context)
    before = run.singleton or None
    changes = {"data": data, "version": definition.version, "singleton": singleton or ""}
    revoke(AgentRun.objects.filter(pk=run.pk), **changes, routing=fingerprint(definition))
    replace_routes(run, keys, before, singleton)
