"""Agents and their mailboxes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ..queues.admin import PausableAdmin, RowAdmin
from ..queues.admin_fields import time_field
from ..queues.admin_filters import QueueFilter, declared_name_filter
from ..queues.admin_links import register_cause
from ..queues.admin_lists import HistoryInline, newest
from .definitions import all_agents
from .manager import AgentManager
from .models import AgentRun, HandlerExecution, HandlerStatus

register_cause("agent", AgentRun)


class HandlerInline(HistoryInline):
    model = HandlerExecution
    verbose_name_plural = newest(_("handler executions"))
    columns = (
        "handler",
        "event",
        "milestone",
        "status",
        "attempt",
        time_field("due_at"),
        time_field("finished_at"),
        "error",
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[HandlerExecution]:
        return super().get_queryset(request).select_related("event")


@admin.register(AgentRun)
class AgentRunAdmin(PausableAdmin):
    list_display = (
        "id",
        "name",
        "status",
        "entity_link",
        "waits_for",
        "last_line",
        time_field("created_at"),
        "due",
    )
    list_filter = (
        "status",
        declared_name_filter(_("agent"), "name", lambda: {each.name for each in all_agents()}),
        QueueFilter,
    )
    exact_search = ("entity_id", "name")
    first_fields = ("name", "status", "entity_link", "waits_for", "due", "error", "cause_link")
    private_fields = ("data",)
    inlines = (HandlerInline,)
    actions = ("resume", "complete", "cancel", "pause", "unpause")

    def prepare(self, rows: Sequence[Any]) -> None:
        super().prepare(rows)
        counted = AgentRun.objects.filter(pk__in=[run.pk for run in rows]).with_failed_handlers()
        failed = {run.pk: run.count_failed_handlers() for run in counted.only("pk")}
        for run in rows:
            run.failed_handlers = failed.get(run.pk, 0)

    @admin.action(description=_("Complete"), permissions=["complete"])
    def complete(self, request: HttpRequest, rows: models.QuerySet[AgentRun]) -> None:
        self.apply(request, rows, AgentManager.complete, _("Completed"))

    @admin.action(description=_("Cancel"), permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[AgentRun]) -> None:
        self.apply(request, rows, AgentManager.cancel, _("Cancelled"))


@admin.register(HandlerExecution)
class HandlerExecutionAdmin(RowAdmin):
    list_display = ("handler", "status", "run", "event", "last_line", "milestone", "attempt", time_field("due_at"))
    list_filter = ("status", declared_name_filter(_("handler"), "handler", lambda: _handlers()))
    list_select_related = ("run", "event")
    exact_search = ("handler",)
    first_fields = ("handler", "status", "run", "event", "error")
    actions = ("resume", "redeliver")

    def refused_actions(self, row: HandlerExecution) -> Collection[str]:
        is_again = row.status == HandlerStatus.SKIPPED and not row.run.is_finished
        return {*super().refused_actions(row), *(() if is_again else ("redeliver",))}

    @admin.action(description=_("Redeliver: handle the event again"), permissions=["resume"])
    def redeliver(self, request: HttpRequest, rows: models.QuerySet[HandlerExecution]) -> None:
        self.apply(request, rows, AgentManager.redeliver, _("Redelivered"))


def _handlers() -> set[str]:
    return {handler.method for definition in all_agents() for handler in definition.handlers}
