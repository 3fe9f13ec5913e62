"""Agents and their mailboxes."""

from __future__ import annotations

from django.contrib import admin
from django.db import models
from django.http import HttpRequest

from ..queues.admin import HistoryInline, RowAdmin
from .manager import AgentManager
from .models import AgentRun, AgentStatus, HandlerExecution


class HandlerInline(HistoryInline):
    model = HandlerExecution
    fields = readonly_fields = ("handler", "event", "beat", "status", "attempt", "due_at", "finished_at", "error")
    max_num = 100


@admin.register(AgentRun)
class AgentRunAdmin(RowAdmin):
    list_display = ("id", "name", "status", "entity_id", "waits_for", "created_at", "due", "last_line")
    list_filter = ("status", "name")
    search_fields = ("=id", "=entity_id", "name")
    inlines = (HandlerInline,)
    actions = ("resume", "complete", "cancel")

    @admin.display(description="waits for")
    def waits_for(self, run: AgentRun) -> str:
        """Name the one thing that the agent needs to go on."""
        if run.status == AgentStatus.PARKED:
            return "a person: resume it"
        if run.status == AgentStatus.PENDING:
            return "a worker, to make its Context"
        if run.status != AgentStatus.ACTIVE:
            return ""
        return "its events" if run.wake_at is None else "what is due in its mailbox"

    @admin.action(description="Complete", permissions=["change"])
    def complete(self, request: HttpRequest, rows: models.QuerySet[AgentRun]) -> None:
        self.apply(request, rows, lambda run: AgentManager.complete(run, f"By {request.user}."), "Completed")

    @admin.action(description="Cancel", permissions=["change"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[AgentRun]) -> None:
        self.apply(request, rows, lambda run: AgentManager.cancel(run, f"Cancelled by {request.user}."), "Cancelled")


@admin.register(HandlerExecution)
class HandlerExecutionAdmin(RowAdmin):
    list_display = ("handler", "run", "event", "beat", "status", "attempt", "due_at", "last_line")
    list_filter = ("status", "handler")
    list_select_related = ("run", "event")
    actions = ("resume",)
