from __future__ import annotations

from datetime import timedelta

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _


class EventsConfig(AppConfig):
    """The second layer: events of the project's models, and the functions that subscribe to them."""

    name = "django_ai.automation.events"
    label = "automation_events"
    verbose_name = _("Automation: events")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.db.models import Q

        from ..queues import periodic_tasks, registry
        from ..queues.operations.resume import ResumableKind, register_resumable_kind
        from ..queues.parking import park as park
        from ..queues.wakeable import Behaviour
        from . import checks
        from .cancellation import cancel_events
        from .execution import perform_callback
        from .models import CallbackExecution, Event
        from .occurrence import perform_events
        from .recording import model_signals
        from .recording.reconcile import reconcile_slice
        from .retention import prune_claims, prune_events, prune_executions, prune_snapshots, release_orphans

        events = Behaviour(
            perform=lambda event, clock: perform_events([event], clock),
            perform_batch=perform_events,
            park=park,
            cancel=cancel_events,
        )
        registry.register(Event, events)
        registry.register(CallbackExecution, Behaviour(perform=perform_callback, park=park))
        periodic_tasks.register_reconciler("reconcile dates", reconcile_slice)
        periodic_tasks.register_pruner("prune callbacks", prune_executions)
        periodic_tasks.register_pruner("release orphaned events", release_orphans, timedelta(days=1))
        periodic_tasks.register_pruner("prune events", prune_events)
        periodic_tasks.register_pruner("prune snapshots", prune_snapshots)
        periodic_tasks.register_pruner("prune claims", prune_claims)
        register_resumable_kind(ResumableKind("event", Event, "event_name"))
        register_resumable_kind(ResumableKind("callback", CallbackExecution, "callback", failed=Q(status="failed")))
        model_signals.connect()
        register(checks.check_definitions)
        register(checks.check_callbacks)
