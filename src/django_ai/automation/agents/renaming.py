"""Renaming an agent, or a handler of one: the tables in which their names are stored.

The keys under which events find an agent are digests that contain its name. They are made again from its Context, and
those of the old name stay until the Context changes or the agent ends: a process of the release before that is still
running delivers by them, and finds its singletons. A leased agent loses its lease, because its worker would write the
routes of the old name; the handler is attempted again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from django.db import models
from django.db.models import Q
from django.utils import timezone

from ..db.inserts import insert_ignoring
from ..db.locks import locked
from ..exceptions import AutomationError, ContextError, DecryptionError, DefinitionError
from ..queues.bites import in_bites, ranges
from ..queues.lease import revoke
from ..queues.renaming import rename_in_words, rename_limiters, rename_muted_name, rename_pauses
from ..state.encryption import check_readable
from ..state.versions import restore
from .context_migration import UNKNOWN
from .definitions import AgentDefinition
from .ending import KIND
from .mailbox import execution_key
from .models import FINISHED, HANDLER, AgentRoute, AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from .routing import Keys, fingerprint, keys_of, singleton_key
from .spawning import origin_key_of

SMALL_BITE = 500
"""Keys in one range of a table whose rows have large columns."""
SUPERSEDED = "Its event has spawned another agent, under the new name."


def rename_agent(what: str, old: str, new: str, definition: AgentDefinition | None) -> int:
    """Rename an agent in all tables. Return how many rows were changed.

    ``definition``: what the code declares of it, under whichever name; None: its routes are computed by the next
    reconciliation of a release that declares it. Raises ``DefinitionError`` or ``ContextError``, before anything is
    changed, for an agent whose routes cannot be computed.
    """
    named = None if definition is None else replace(definition, name=new)
    for above, upto in ranges(AgentRun, SMALL_BITE):
        for run in AgentRun.objects.unfinished().filter(pk__gt=above, pk__lte=upto, name=old):
            _routes_of(what, run, named)

    def change(rows: models.QuerySet[models.Model]) -> int:
        return sum(_rename_agent(what, old, new, named, run) for run in locked(rows.filter(name=old)).order_by("pk"))

    changed = in_bites(what, AgentRun, change, SMALL_BITE)
    changed += rename_limiters(
        what, HANDLER, Q(name__startswith=f"{old}."), _beginning(f"{old}.", f"{new}.", of_agent=True)
    )
    changed += rename_pauses(what, AgentRun.pause_scope, old, new)
    changed += rename_muted_name(what, KIND, old, new)
    return changed + rename_in_words(what, AgentRun._meta.label_lower, f"{old} #", f"{new} #")


def _beginning(before: str, after: str, *, of_agent: bool) -> Callable[[str], str | None]:
    """Return what renames the beginning of the name of a handler's limit, ``AGENT.HANDLER on EVENT``.

    ``of_agent``: it ends before the handler, and "OLD." is also the beginning of an agent called "OLD.more".
    """

    def rename(name: str) -> str | None:
        rest = name.removeprefix(before)
        is_meant = rest != name and (not of_agent or rest.partition(" on ")[0].isidentifier())
        return f"{after}{rest}" if is_meant else None

    return rename


def _rename_agent(what: str, old: str, new: str, named: AgentDefinition | None, row: models.Model) -> int:
    assert isinstance(row, AgentRun)
    run = row
    if run.name != old:
        return 0  # MariaDB ignores case
    mine = AgentRun.objects.filter(pk=run.pk)
    changes: dict[str, Any] = {"name": new}
    if run.origin_key is not None and run.origin_key == origin_key_of(run.event_id, old):
        changes["origin_key"] = origin_key_of(run.event_id, new)
        other = AgentRun.objects.filter(origin_key=changes["origin_key"]).values_list("pk", flat=True).first()
        if other is not None:
            return _supersede(what, run, other, new)
    if run.status in FINISHED:
        return mine.update(**changes, **_former_singleton(run, named))
    routes = _routes_of(what, run, named)
    if routes is not None:
        changes |= _add_routes(run, *routes, named)
    elif run.routing:
        changes["routing"] = UNKNOWN
    due = {} if run.lease is None else {"wake_at": timezone.now()}
    return revoke(mine, **changes, **due)


def _supersede(what: str, run: AgentRun, other: int, new: str) -> int:
    """End an agent that was never active, in place of which its event has spawned another."""
    was_active = bool(run.routing) or run.started_at is not None
    if was_active:
        raise DefinitionError(
            f"{what}: agent #{run.pk} of {run.name!r} and agent #{other} of {new!r} were spawned by the same event "
            f"#{run.event_id}. The new code has run before this migration. Cancel one of the two "
            "(AgentManager.cancel) and delete its row, and migrate again."
        )
    ended: dict[str, Any] = {"name": new, "origin_key": None, "wake_at": None}
    if run.status not in FINISHED:
        ended |= {"status": AgentStatus.CANCELLED, "error": SUPERSEDED, "finished_at": timezone.now()}
    return revoke(AgentRun.objects.filter(pk=run.pk), **ended)


def _routes_of(what: str, run: AgentRun, named: AgentDefinition | None) -> tuple[Keys, str | None] | None:
    """Return the keys of an unfinished agent under its new name, and its singleton key; None: it has no Context yet, or
    the code does not declare it."""
    try:
        check_readable(run.data, f"{what}: {run}")
    except DecryptionError as error:
        raise DecryptionError(f"{error} Then migrate again.") from error
    if named is None or run.has_no_context:
        return None
    try:
        context = restore(named, run.data, run.version, str(run)).context
        return keys_of(named, run, context), singleton_key(named, run, context)
    except AutomationError as error:
        raise ContextError(
            f"{what}: the keys under which events find {run} cannot be made of its Context. Cancel it "
            f"(AgentManager.cancel) or correct its Context, and migrate again.\n{error}"
        ) from error


def _add_routes(run: AgentRun, keys: Keys, singleton: str | None, named: AgentDefinition | None) -> dict[str, Any]:
    """Add the routes of the new name, and return the columns of the agent that belong to them."""
    changes: dict[str, Any] = {"singleton": singleton or ""}
    if not run.routing or named is None:  # not active yet; a worker installs its routes
        return changes
    routes = AgentRoute.objects.filter(run=run)
    known = set(routes.values_list("key", flat=True))
    AgentRoute.objects.bulk_create([AgentRoute(run=run, key=key) for key in sorted(keys - known)])
    if singleton is not None:
        # Of several active agents with one key the first takes it; the others stay active beside it.
        insert_ignoring(AgentRoute, [AgentRoute(run=run, key=singleton, unique_key=singleton)], key="unique_key")
    return {**changes, "routing": fingerprint(named)}


def _former_singleton(run: AgentRun, named: AgentDefinition | None) -> dict[str, str]:
    """Return the singleton key of an agent that has ended, by which later ones know what it has handled."""
    if not run.singleton or named is None:
        return {}
    try:
        context = restore(named, run.data, run.version, str(run)).context
        return {"singleton": singleton_key(named, run, context) or ""}
    except AutomationError:
        return {}  # its Context is of another time


# -- handlers ----------------------------------------------------------------------------------------------------------


def rename_handler(what: str, agent: str, old: str, new: str, *, is_only: bool) -> int:
    """Rename a handler of an agent. Return how many rows were changed.

    ``is_only``: no other agent has a handler called ``old``, so muted problems of that name are meant.
    """
    before, after = (f"{agent}.{each} on " for each in (old, new))
    changed = in_bites(what, HandlerExecution, lambda rows: _rename_executions(agent, old, new, rows))
    changed += rename_limiters(what, HANDLER, Q(name__startswith=before), _beginning(before, after, of_agent=False))
    if is_only:
        changed += rename_muted_name(what, HANDLER, old, new)
    return changed


def _rename_executions(agent: str, old: str, new: str, rows: models.QuerySet[models.Model]) -> int:
    columns = ("pk", "handler", "run", "run__name", "event", "milestone", "status", "unique_key")
    found = rows.filter(handler=old, run__name=agent).values_list(*columns)
    mine = [each for each in found if (each[1], each[3]) == (old, agent)]  # MariaDB ignores case
    keys = {pk: execution_key(run, event, new, milestone) for pk, _, run, _, event, milestone, _, _ in mine}
    taken = set(
        HandlerExecution.objects.filter(unique_key__in=keys.values())
        .exclude(handler=old)
        .values_list("unique_key", flat=True)
    )
    changed = 0
    for pk, _, run, _, event, milestone, status, key in mine:
        changes = {"handler": new}
        if keys[pk] in taken:
            if status in (HandlerStatus.PENDING, HandlerStatus.WAITING, HandlerStatus.PARKED):
                # The new code has delivered the same event to the same handler: that execution is the one to perform.
                changed += rows.filter(pk=pk).delete()[0]
                continue
        elif key == execution_key(run, event, old, milestone):
            changes["unique_key"] = keys[pk]
        changed += rows.filter(pk=pk).update(**changes)
    return changed
