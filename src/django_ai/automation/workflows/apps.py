from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _


class WorkflowsConfig(AppConfig):
    """The layer of workflows, their runs and their signals, above the events and beside the agents."""

    name = "django_ai.automation.workflows"
    label = "automation_workflows"
    verbose_name = _("Automation: workflows")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.db.models import Q

        from ..events.claim_owners import register_owner
        from ..events.renaming import register_event_renamer
        from ..events.schedules.definitions import register_targets
        from ..events.subscribers import subscribe
        from ..events.upcoming import register_source
        from ..events.why.asking import register_explainer
        from ..queues import periodic_tasks, registry
        from ..queues.limits.owners import register_slot_owner
        from ..queues.operations.resume import ResumableKind, register_resumable_kind
        from ..queues.parking import park as park
        from ..queues.pausing import Pausable, register_pausable
        from ..queues.wakeable import Behaviour
        from . import checks
        from .bulk_verbs import register_verbs
        from .current_run import KIND
        from .definitions import all_workflows, newest_workflows
        from .delivery import deliver
        from .editing import edit_context
        from .event_renaming import rename_in_workflows
        from .models import Signal, StepExecution, WorkflowRun
        from .retention import prune_history, prune_runs, prune_signals, prune_unfinished_history
        from .run_limits import park_run, slot_owner
        from .runner import perform_run
        from .subscriber import WorkflowSubscriber
        from .upcoming import runs_of_workflows
        from .why import explain_workflows
        from .window_runs import register_windows

        registry.register(Signal, Behaviour(perform=deliver, park=park))
        registry.register(WorkflowRun, Behaviour(perform=perform_run, park=park_run, edit_context=edit_context))
        registry.register_encrypted_history(StepExecution)
        register_slot_owner(slot_owner())
        periodic_tasks.register_pruner("prune signals", prune_signals)
        periodic_tasks.register_pruner("prune runs", prune_runs)
        periodic_tasks.register_pruner("prune steps", prune_history)
        periodic_tasks.register_pruner("prune steps of unfinished runs", prune_unfinished_history)
        undelivered = Q(delivered_at=None, consumed_at=None, wake_at=None) & ~Q(error="")
        register_resumable_kind(ResumableKind("signal", Signal, "name", parked=undelivered))
        register_resumable_kind(
            ResumableKind("workflow", WorkflowRun, "name", failed=Q(status="failed"), takes_step=True)
        )
        register_verbs(undelivered)
        register_windows()
        declared = ("__workflow__", "@workflow(...)")
        register_pausable(Pausable("workflow", WorkflowRun, lambda: {each.name for each in all_workflows()}, declared))
        register_owner(KIND, WorkflowRun.objects.unfinished)
        register_targets(newest_workflows)
        subscribe(WorkflowSubscriber())
        register_source(runs_of_workflows)
        register_explainer(explain_workflows)
        register_event_renamer(rename_in_workflows)
        register(checks.check_workflows)
