"""Agents and their mailboxes."""

from __future__ import annotations

from django.contrib import admin
from django.db import models
from django.http import HttpRequest

from ..queues.admin import HistoryInline, RowAdmin
from .manager import AgentManager
from .models import AgentRun, HandlerExecution


class HandlerInline(HistoryInline):
    model = HandlerExecution
    fields = readonly_fields = ("handler", "event", "beat", "status", "attempt", "due_at", "finished_at", "error")
    max_num = 100


@admin.register(AgentRun)
class AgentRunAdmin(RowAdmin):
    list_display = ("id", "name", "status", "entity_id", "waits_for", "created_at", "due", "last_line")
    list_filter = ("status", "name")
    search_fields = ("=id", "=entity_id", "name")
    private_fields = ("data",)
    inlines = (HandlerInline,)
    actions = ("resume", "complete", "cancel")

    @admin.action(description="Complete", permissions=["complete"])
    def complete(self, request: HttpRequest, rows: models.QuerySet[AgentRun]) -> None:
        self.apply(request, rows, lambda run: AgentManager.complete(run, f"By {request.user}."), "Completed")

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[AgentRun]) -> None:
        self.apply(request, rows, lambda run: AgentManager.cancel(run, f"Cancelled by {request.user}."), "Cancelled")


@admin.register(HandlerExecution)
class HandlerExecutionAdmin(RowAdmin):
    list_display = ("handler", "run", "event", "beat", "status", "attempt", "due_at", "last_line")
    list_filter = ("status", "handler")
    list_select_related = ("run", "event")
    actions = ("resume",)
