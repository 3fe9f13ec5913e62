from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _


class AgentsConfig(AppConfig):
    """The layer of agents, their mailboxes and their routes, above the events and beside the workflows."""

    name = "django_ai.automation.agents"
    label = "automation_agents"
    verbose_name = _("Automation: agents")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.db.models import Q

        from ..events.claim_owners import register_owner
        from ..events.renaming import register_event_renamer
        from ..events.subscribers import subscribe
        from ..events.upcoming import register_source
        from ..events.why.asking import register_explainer
        from ..queues import periodic_tasks, registry
        from ..queues.bulk.verbs import BulkKind, BulkVerb, pausing_verbs, register_bulk_kind, resuming
        from ..queues.limits.owners import register_slot_owner
        from ..queues.operations.resume import ResumableKind, register_resumable_kind
        from ..queues.parking import park as park
        from ..queues.pausing import Pausable, register_pausable
        from ..queues.wakeable import Behaviour
        from . import checks
        from .definitions import all_agents
        from .editing import edit_context
        from .ending import KIND
        from .event_renaming import rename_in_agents
        from .handler_limits import park_agent, slot_owner
        from .manager import AgentManager
        from .models import FINISHED, AgentRun, HandlerExecution
        from .reconcile import reconcile_slice
        from .retention import prune_agents, prune_executions
        from .runner import perform_agent
        from .subscriber import AgentSubscriber
        from .upcoming import agents_and_handlers
        from .why import explain_agents

        registry.register(AgentRun, Behaviour(perform=perform_agent, park=park_agent, edit_context=edit_context))
        register_slot_owner(slot_owner())
        registry.register_explained(HandlerExecution)
        periodic_tasks.register_reconciler("reconcile agents", reconcile_slice)
        periodic_tasks.register_pruner("prune agents", prune_agents)
        periodic_tasks.register_pruner("prune handlers", prune_executions)
        unfinished = ~Q(run__status__in=FINISHED)
        stopped = Q(status__in=["parked", "failed"])
        lives = ~Q(status__in=FINISHED)
        verbs = {
            "resume": resuming(stopped),
            "complete": BulkVerb(AgentManager.complete, "Completed", lambda: lives, is_final=True),
            "cancel": BulkVerb(
                lambda run, reason: AgentManager.cancel(run, reason or "Cancelled."),
                "Cancelled",
                lambda: lives,
                is_final=True,
            ),
            **pausing_verbs(AgentRun, lives),
        }
        register_bulk_kind(BulkKind("agent", AgentRun, "name", verbs))
        handler_verbs = {"resume": resuming(stopped & unfinished)}
        register_bulk_kind(BulkKind("handler", HandlerExecution, "handler", handler_verbs))
        register_resumable_kind(ResumableKind("agent", AgentRun, "name", failed=Q(status="failed")))
        register_resumable_kind(
            ResumableKind(
                "handler",
                HandlerExecution,
                "handler",
                parked=Q(status="parked") & unfinished,
                failed=Q(status="failed") & unfinished,
            )
        )
        declared = ("__agent__", "@agent(...)")
        register_pausable(Pausable("agent", AgentRun, lambda: {each.name for each in all_agents()}, declared))
        register_owner(KIND, AgentRun.objects.unfinished)
        subscribe(AgentSubscriber())
        register_source(agents_and_handlers)
        register_explainer(explain_agents)
        register_event_renamer(rename_in_agents)
        register(checks.check_agents)
