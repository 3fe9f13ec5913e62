"""What agents store of an event that is renamed: the limits of their handlers, and routes that contain its name.

A handler without a match, whose events are not those of the agent's own entity, has such a route. No other key contains
the name of an event.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.db import models

from ..db.locks import locked
from ..events.name_map import NameMap
from ..events.names import pattern_of
from ..events.renaming import rename_limits_on
from ..queues.bites import in_bites
from .definitions import all_agents
from .models import HANDLER, AgentRoute, AgentRun
from .routing import any_key

SMALL_BITE = 500
"""Routes in one range: their agents are locked meanwhile."""


def rename_in_agents(what: str, names: NameMap) -> int:
    """Rename an event in the tables of agents."""
    return rename_limits_on(what, HANDLER, names, _is_handler) + _add_routes(what, names)


def _is_handler(name: str) -> bool:
    """Return whether ``name`` is that of a handler, ``AGENT.HANDLER``."""
    agent, _, method = name.rpartition(".")
    return bool(agent) and method.isidentifier()


def _add_routes(what: str, names: NameMap) -> int:
    """Let the event find the agents under its new name before the next reconciliation.

    The routes of the old name stay: processes of the release before still deliver by them.
    """
    keys = {
        any_key(agent.name, before): any_key(agent.name, after)
        for agent in all_agents()
        for before, after in _patterns(names)
    }

    def change(rows: models.QuerySet[models.Model]) -> int:
        found = list(rows.filter(key__in=list(keys)).values_list("run", "key"))
        wanted = {(run, keys[key]) for run, key in found}
        agents = AgentRun.objects.unfinished().filter(pk__in={run for run, _ in found})
        living = set(locked(agents).order_by("pk").values_list("pk", flat=True))
        known = AgentRoute.objects.filter(run__in=living, key__in=list(keys.values())).values_list("run", "key")
        missing = {(run, key) for run, key in wanted - set(known) if run in living}
        AgentRoute.objects.bulk_create([AgentRoute(run_id=run, key=key) for run, key in sorted(missing)])
        return len(missing)

    # One look into the index: few projects have such routes, and the table may be large.
    is_needed = AgentRoute.objects.filter(key__in=list(keys)).values_list("pk").exists()
    return in_bites(what, AgentRoute, change, SMALL_BITE) if is_needed else 0


def _patterns(names: NameMap) -> Iterator[tuple[str, str]]:
    """Yield what handlers may have called the event, and what they call it now.

    The code declares only its last name, and one event of a family may have a handler of its own.
    """
    yield pattern_of(names.old), pattern_of(names.new)
    yield names.old, names.new
    back = NameMap(names.new, names.old, "")
    for name in {handler.event_name for agent in all_agents() for handler in agent.handlers}:
        for old, new in ((name, names.get(name)), (back.get(name), name)):
            if old is not None and new is not None:
                yield old, new
