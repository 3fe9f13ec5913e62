from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from importlib import import_module

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import Tags, register
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class QueuesConfig(AppConfig):
    """The queues layer: due rows, leases, the drain, runtimes, schedules."""

    name = "django_ai.automation.queues"
    label = "automation_queues"
    verbose_name = _("Automation: queues")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from ..db.forking import connect_fork_hook
        from ..db.mariadb import compare_exactly
        from ..db.sqlite import connect_tuning
        from ..db.writer import alias_of
        from . import checks, maintenance, registry
        from .arrival_pruning import prune_arrivals
        from .bulk.creation import resume_bulk
        from .bulk.performing import perform_bulk
        from .deployment import check_parked_rows_soon
        from .discovery import discover
        from .history_pruning import prune_actions, prune_bulk_actions
        from .lanes import look_for_lanes
        from .limits.admission import perform_slots, postpone
        from .limits.reconcile import prune_counted, prune_limiters, reconcile_limits
        from .models import BulkAction, Maintenance, Slot, Worker
        from .operations.resume import ResumableKind, register_resumable_kind
        from .orphans import prune_orphans
        from .parking import park
        from .pausing import reconcile_pauses
        from .periodic_tasks import SliceResult, register_pruner, register_reconciler
        from .registry import wakeables
        from .runtimes.q2 import connect_registration
        from .runtimes.q2_schedules import install_schedules
        from .signals import connect_logging
        from .wakeable import Behaviour

        Maintenance.behaviour = Behaviour(perform=maintenance.perform, park=maintenance.postpone)
        connect_logging()
        connect_tuning(lambda alias: alias == alias_of(Worker))
        by_limiter = Behaviour(
            perform=lambda slot, clock: perform_slots([slot], clock), perform_batch=perform_slots, park=postpone
        )
        registry.register(Slot, by_limiter)
        registry.register(BulkAction, Behaviour(perform=perform_bulk, park=park, resume=resume_bulk))
        register_resumable_kind(ResumableKind("bulk", BulkAction, "verb"))
        register_reconciler("reconcile limits", reconcile_limits)
        register_pruner("prune counted starts", prune_counted)
        register_pruner("prune limits", prune_limiters, timedelta(hours=1))
        register_reconciler("look for code", lambda turn: SliceResult(check_parked_rows_soon(turn.now)))
        register_reconciler("look for lanes", lambda turn: SliceResult(look_for_lanes(wakeables())))
        register_reconciler("reconcile pauses", reconcile_pauses)
        register_pruner("prune arrivals", prune_arrivals)
        register_pruner("prune actions", prune_actions, timedelta(hours=1))
        register_pruner("prune bulk actions", prune_bulk_actions, timedelta(hours=1))
        register_pruner("prune orphans", prune_orphans, timedelta(days=1))
        connect_fork_hook()
        connect_registration()
        post_migrate.connect(install_schedules, sender=self, dispatch_uid="django_ai.automation.schedules")
        post_migrate.connect(compare_exactly, dispatch_uid="django_ai.automation.exact_text")
        register(checks.check_apps)
        register(checks.check_settings)
        register(checks.check_runtime, deploy=True)
        register(checks.check_queues)
        register(checks.check_surroundings)
        register(checks.check_broker)
        register(checks.check_secret_key, Tags.security)
        register(checks.check_queue_times)
        register(checks.check_database, Tags.database)
        discover()
        found = getattr(settings, "AUTOMATION", None)  # what is no dictionary, a check reports
        if isinstance(found, dict) and found.get("RUNTIME") == "celery":
            # Registers the doorbell task and the dispatcher of a Celery worker. A check reports a missing Celery.
            with suppress(ImportError):
                import_module(f"{self.name}.runtimes.celery")
