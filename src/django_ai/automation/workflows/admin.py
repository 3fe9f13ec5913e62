"""Runs, their history and their signals."""

from __future__ import annotations

from django.contrib import admin
from django.db import models
from django.http import HttpRequest

from ..queues.admin import HistoryInline, RowAdmin
from .engine import engine
from .models import Signal, StepExecution, WorkflowRun


class StepInline(HistoryInline):
    model = StepExecution
    fields = readonly_fields = ("step", "attempt", "started", "finished", "outcome", "wake_reason", "error")


@admin.register(WorkflowRun)
class WorkflowRunAdmin(RowAdmin):
    list_display = ("id", "name", "status", "current_step", "waits_for", "entity_id", "created_at", "due", "last_line")
    list_filter = ("status", "name")
    search_fields = ("=id", "=entity_id", "name")
    private_fields = ("data",)
    inlines = (StepInline,)
    actions = ("resume", "cancel")

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[WorkflowRun]) -> None:
        self.apply(request, rows, lambda run: engine.cancel(run, f"Cancelled by {request.user}."), "Cancelled")


@admin.register(Signal)
class SignalAdmin(RowAdmin):
    list_display = ("name", "run", "sent_at", "delivered_at", "consumed_at", "due", "last_line")
    list_filter = ("name",)
    private_fields = ("payload",)
    list_select_related = ("run",)
    actions = ("resume",)
