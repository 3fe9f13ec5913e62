from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register


class AgentsConfig(AppConfig):
    """The third floor, beside the workflows: agents, their mailboxes and their routes."""

    name = "django_ai.automation.agents"
    label = "automation_agents"
    verbose_name = "Automation: agents"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from ..events.claims import register_owner
        from ..events.listeners import subscribe
        from ..queues import registry
        from . import checks
        from .ending import KIND
        from .models import AgentRun, HandlerExecution
        from .reconcile import reconcile_agents
        from .retention import remove_old
        from .switchboard import Switchboard

        registry.register(AgentRun)
        registry.register_explained(HandlerExecution)
        registry.register_reconciler(reconcile_agents)
        registry.register_cleaner(remove_old)
        register_owner(KIND, AgentRun.objects.unfinished)
        subscribe(Switchboard())
        register(checks.check_agents)
