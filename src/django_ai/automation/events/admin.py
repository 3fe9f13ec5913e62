"""Events and what they called: why something happened, or has not yet."""

from __future__ import annotations

from django.contrib import admin
from django.db import models
from django.http import HttpRequest

from ..queues.admin import HistoryInline, RowAdmin
from .models import CallbackExecution, Event, EventClaim


class ExecutionInline(HistoryInline):
    model = CallbackExecution
    fields = readonly_fields = ("callback", "beat", "status", "attempt", "started_at", "finished_at", "error")


@admin.register(Event)
class EventAdmin(RowAdmin):
    list_display = ("event_name", "entity_type", "entity_id", "status", "at", "occurred_at", "due", "last_line")
    list_filter = ("status", "event_name", "entity_type")
    search_fields = ("=entity_id", "event_name")
    private_fields = ("payload", "snapshot")
    inlines = (ExecutionInline,)
    actions = ("resume", "cancel")

    @admin.action(description="Cancel pending events", permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[Event]) -> None:
        self.apply(request, rows, lambda event: event.cancel(), "Cancelled")


@admin.register(EventClaim)
class EventClaimAdmin(RowAdmin):
    list_display = ("event_name", "match", "owner", "priority", "held_at", "expires_at", "events_left")
    list_filter = ("event_name", "owner_kind")
    search_fields = ("event_name", "=owner_id")


@admin.register(CallbackExecution)
class CallbackExecutionAdmin(RowAdmin):
    list_display = ("callback", "event", "beat", "status", "attempt", "due", "last_line")
    list_filter = ("status", "callback")
    list_select_related = ("event",)
    actions = ("resume",)
