"""The admin of runs, their history and their signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ..queues.admin import HistoryInline, RowAdmin, declared_name_filter, newest, register_cause
from ..queues.admin_fields import time_field
from .definitions import all_workflows
from .engine import engine
from .models import Signal, StepExecution, WorkflowRun

register_cause("workflow", WorkflowRun)


class StepInline(HistoryInline):
    model = StepExecution
    verbose_name_plural = newest(_("step executions"))
    columns = (
        "step",
        "visit",
        "attempt",
        time_field("started"),
        time_field("finished"),
        "outcome",
        "wake_reason",
        "wake_ref",
        "error",
    )


@admin.register(WorkflowRun)
class WorkflowRunAdmin(RowAdmin):
    list_display = (
        "id",
        "name",
        "status",
        "entity_link",
        "waits_for",
        "last_line",
        "current_step",
        time_field("created_at"),
        "due",
    )
    list_filter = (
        "status",
        declared_name_filter(_("workflow"), "name", lambda: {each.name for each in all_workflows()}),
    )
    exact_search = ("entity_id", "name")
    first_fields = ("name", "status", "entity_link", "current_step", "waits_for", "due", "error", "cause_link")
    private_fields = ("data", "waits")
    inlines = (StepInline,)
    actions = ("resume", "cancel")

    def prepare(self, rows: Sequence[Any]) -> None:
        super().prepare(rows)
        models.prefetch_related_objects(rows, "waits")

    @admin.action(description=_("Cancel"), permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[WorkflowRun]) -> None:
        self.apply(request, rows, lambda run: engine.cancel(run, f"Cancelled by {request.user}."), _("Cancelled"))


@admin.register(Signal)
class SignalAdmin(RowAdmin):
    list_display = (
        "name",
        "run",
        time_field("sent_at"),
        time_field("delivered_at"),
        time_field("consumed_at"),
        "due",
        "last_line",
    )
    exact_search = ("name",)
    first_fields = ("name", "run", "due", "error", "cause_link")
    private_fields = ("payload",)
    list_select_related = ("run",)
    actions = ("resume",)
