from __future__ import annotations

from datetime import timedelta

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _


class EventsConfig(AppConfig):
    """The second layer: events of the project's models, and the functions that subscribe to them."""

    name = "django_ai.automation.events"
    label = "automation_events"
    verbose_name = _("Automation: events")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.db.models import Q
        from django.db.models.signals import post_migrate

        from ..queues import periodic_tasks, registry
        from ..queues.bulk.verbs import BulkKind, BulkVerb, pausing_verbs, register_bulk_kind, resuming
        from ..queues.limits.owners import register_slot_owner
        from ..queues.operations.resume import ResumableKind, register_resumable_kind
        from ..queues.parking import park as park
        from ..queues.pausing import Pausable, register_pausable
        from ..queues.wakeable import Behaviour
        from . import checks
        from .callback_limits import park_execution, slot_owner
        from .callbacks import CALLBACK, all_callbacks
        from .cancellation import cancel_events
        from .execution import closed_key, new_window, perform_callback, read_events, window_of
        from .models import CallbackExecution, CapturedWrite, Event, EventStatus, ExecutionStatus, Schedule
        from .occurrence import perform_events
        from .recording import model_signals
        from .recording.reconcile import reconcile_slice
        from .rescheduling import fire_now, move
        from .retention import (
            prune_captured_writes,
            prune_claims,
            prune_collected,
            prune_events,
            prune_executions,
            prune_snapshots,
            release_orphans,
        )
        from .schedules.firing import perform_schedule
        from .schedules.rows import reconcile_schedules
        from .triggers import installation, schema_changes
        from .upcoming import register_source
        from .upcoming_events import events_and_callbacks
        from .why.asking import register_explainer
        from .why.callbacks import explain_callbacks
        from .windows import WindowKind, register_window_kind, reopen_lost_windows

        events = Behaviour(
            perform=lambda event, clock: perform_events([event], clock),
            perform_batch=perform_events,
            park=park,
            cancel=cancel_events,
            fire_now=fire_now,
            move=move,
        )
        registry.register(Event, events)
        callbacks = Behaviour(perform=perform_callback, park=park_execution, read_ahead=read_events)
        registry.register(CallbackExecution, callbacks)
        register_window_kind(
            WindowKind(
                CALLBACK,
                CallbackExecution,
                "unique_key",
                open=Q(status=ExecutionStatus.PENDING),
                ended=Q(status__in=[ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED]),
                find=window_of,
                new_row=new_window,
                closed_key=closed_key,
            )
        )
        register_slot_owner(slot_owner())
        periodic_tasks.register_reconciler("reconcile dates", reconcile_slice)
        periodic_tasks.register_reconciler("reopen lost windows", reopen_lost_windows)
        periodic_tasks.register_pruner("prune callbacks", prune_executions)
        periodic_tasks.register_pruner("release orphaned events", release_orphans, timedelta(days=1))
        periodic_tasks.register_pruner("prune events", prune_events)
        periodic_tasks.register_pruner("prune snapshots", prune_snapshots)
        periodic_tasks.register_pruner("prune claims", prune_claims)
        periodic_tasks.register_pruner("prune collected events", prune_collected)
        periodic_tasks.register_pruner("prune captured writes", prune_captured_writes, timedelta(days=1))
        parked = Q(status="parked")
        event_verbs = {
            "resume": resuming(parked),
            "cancel": BulkVerb(
                lambda event, reason: event.cancel(),
                "Cancelled",
                lambda: Q(status=EventStatus.PENDING),
                "It is not pending.",
                is_final=True,
            ),
        }
        register_bulk_kind(BulkKind("event", Event, "event_name", event_verbs))
        callback_verbs = {
            "resume": resuming(Q(status__in=[ExecutionStatus.PARKED, ExecutionStatus.FAILED])),
            **pausing_verbs(CallbackExecution, Q(status__in=[ExecutionStatus.PENDING, ExecutionStatus.PARKED])),
        }
        register_bulk_kind(BulkKind("callback", CallbackExecution, "callback", callback_verbs))
        register_bulk_kind(BulkKind("write", CapturedWrite, "model", {"resume": resuming(parked)}))
        register_bulk_kind(BulkKind("schedule", Schedule, "name", {"resume": resuming(Q(parked_at__isnull=False))}))
        register_resumable_kind(ResumableKind("event", Event, "event_name"))
        register_resumable_kind(ResumableKind("callback", CallbackExecution, "callback", failed=Q(status="failed")))
        register_source(events_and_callbacks)
        register_explainer(explain_callbacks)
        registry.register(Schedule, Behaviour(perform=perform_schedule, park=park))
        periodic_tasks.register_reconciler("declared schedules", reconcile_schedules)
        register_resumable_kind(ResumableKind("schedule", Schedule, "name", parked=Q(parked_at__isnull=False)))
        register_pausable(Pausable("callback", CallbackExecution, lambda: {each.name for each in all_callbacks()}))
        register_resumable_kind(ResumableKind("write", CapturedWrite, "model"))
        model_signals.connect()
        register(checks.check_definitions)
        register(checks.check_callbacks)
        register(checks.check_captures)
        register(checks.check_triggers, Tags.database)
        post_migrate.connect(installation.after_migrate, sender=self)
        schema_changes.keep_triggers()
