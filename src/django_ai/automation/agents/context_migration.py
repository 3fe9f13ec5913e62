"""Migrating the Contexts of agents: their routes follow, as when a handler changes the Context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..exceptions import ContextError, SingletonTakenError
from ..queues.context_migration import ContextMigration
from ..state.contexts import load_context
from .definitions import AgentDefinition
from .models import AgentRoute, AgentRun
from .routing import Keys, fingerprint, keys_of, replace_routes, singleton_key

UNKNOWN = "unknown"
"""The ``routing`` of an agent whose routes the next reconciliation computes: no digest of matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentContextMigration(ContextMigration):
    """One direction of a migration of the Contexts of agents."""

    def _check(self, row: Any, data: dict[str, Any]) -> None:
        if row.routing and self.target is not None:
            self._routes(self.target, row, data)

    def _write_more(self, row: Any, data: dict[str, Any]) -> None:
        """Replace the routes. Where only the code of the release before knows them, on the way back, its reconciliation
        adds them."""
        agents = AgentRun.objects.filter(pk=row.pk)
        if self.target is None:
            if row.routing:
                agents.update(routing=UNKNOWN)
            return
        keys, singleton = self._routes(self.target, row, data)
        if not row.routing:  # not active yet: code has spawned it, and has made its Context
            agents.update(singleton=singleton or "")
            return
        routes = AgentRoute.objects.filter(run=row, unique_key__isnull=False)
        # Of several agents with one key, as after ``singleton=`` was added, only the first has the route.
        before = row.singleton or None
        is_holder = before is None or routes.exists()
        try:
            replace_routes(row, keys, before if is_holder else None, singleton if is_holder else None)
        except SingletonTakenError as error:
            raise SingletonTakenError(
                f"{self.what}: {error} With its new Context it would be the second one. Let one of them end "
                "(AgentManager.complete), and migrate again."
            ) from error
        agents.update(routing=fingerprint(_definition(self.target)), singleton=singleton or "")

    def _routes(self, target: Any, row: Any, data: dict[str, Any]) -> tuple[Keys, str | None]:
        definition, where = _definition(target), f"{self.what}: {row}"
        context = load_context(definition.context, data, where)
        try:
            return keys_of(definition, row, context), singleton_key(definition, row, context)
        except ContextError as error:
            raise ContextError(f"{where}: {error}") from error


def _definition(target: Any) -> AgentDefinition:
    assert isinstance(target, AgentDefinition)
    return target
