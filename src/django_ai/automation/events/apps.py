from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register


class EventsConfig(AppConfig):
    """The second floor: events of the project's models, and the functions that they call."""

    name = "django_ai.automation.events"
    label = "automation_events"
    verbose_name = "Automation: events"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.db.models import Q

        from ..queues import registry
        from ..queues.resumption import Kind, register_kind
        from . import checks, recorder
        from .claims import remove_ended
        from .models import CallbackExecution, Event
        from .reconcile import reconcile_dates
        from .retention import remove_events, remove_executions

        registry.register(Event)
        registry.register(CallbackExecution)
        registry.register_reconciler(reconcile_dates)
        registry.register_cleaner(remove_executions)
        registry.register_cleaner(remove_events)
        registry.register_cleaner(remove_ended)
        register_kind(Kind("event", Event, "event_name"))
        register_kind(Kind("callback", CallbackExecution, "callback", failed=Q(status="failed")))
        recorder.connect()
        register(checks.check_definitions)
        register(checks.check_callbacks)
