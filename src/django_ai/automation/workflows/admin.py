"""The admin of runs, their history and their signals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, ClassVar

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ..queues.admin import PausableAdmin, RowAdmin
from ..queues.admin_fields import time_field
from ..queues.admin_filters import QueueFilter, declared_name_filter
from ..queues.admin_links import cause_link, register_cause
from ..queues.admin_lists import HistoryInline, newest
from .bulk_verbs import cancel_run
from .definitions import all_workflows
from .engine import engine
from .models import Signal, StepExecution, WorkflowRun
from .repairing import is_asleep
from .signal_states import SignalState, signals_in, state_of
from .statuses import WorkflowStatus

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
class WorkflowRunAdmin(PausableAdmin):
    list_display = (
        "id",
        "name",
        "status",
        "entity_link",
        "waits_for",
        "last_line",
        "current_step",
        "progress_shown",
        time_field("created_at"),
        "due",
    )
    list_filter = (
        "status",
        declared_name_filter(_("workflow"), "name", lambda: {each.name for each in all_workflows()}),
        QueueFilter,
    )
    exact_search = ("entity_id", "name")
    first_fields = (
        "name",
        "status",
        "entity_link",
        "current_step",
        "waits_for",
        "cancelling_events",
        "due",
        "error",
        "cause_link",
    )
    field_displays: ClassVar[dict[str, Any]] = {"progress": "progress_shown"}
    private_fields = ("data", "waits", "branches", "ending")
    inlines = (StepInline,)
    actions = ("resume", "try_now", "skip_wait", "cancel", "cancel_at_once", "pause", "unpause")

    def prepare(self, rows: Sequence[Any]) -> None:
        super().prepare(rows)
        models.prefetch_related_objects(rows, "waits")

    @admin.display(description=_("progress"), empty_value="-")
    def progress_shown(self, row: WorkflowRun) -> str | None:
        """Return the progress that the steps have reported, as a percentage."""
        return None if row.progress is None else f"{row.progress:.0%}"

    @admin.display(description=_("cancelling events"), empty_value="-")
    def cancelling_events(self, row: WorkflowRun) -> str | None:
        """Return the events that cancel the run (``cancel_on=``). It has them from its first step until its end."""
        return None if row.is_finished else " or ".join(row.cancelling_events) or None

    def refused_actions(self, row: WorkflowRun) -> Collection[str]:
        refused = set(super().refused_actions(row))
        rests = not row.is_finished and row.lease is None and row.status != WorkflowStatus.PARKED
        if not (rests and row.is_retried):
            refused.add("try_now")
        if not (rests and (row.status == WorkflowStatus.SUSPENDED or is_asleep(row))):
            refused.add("skip_wait")
        return refused

    @admin.action(description=_("Try again now, without waiting for the backoff"), permissions=["resume"])
    def try_now(self, request: HttpRequest, rows: models.QuerySet[WorkflowRun]) -> None:
        self.apply(request, rows, engine.try_now, _("Tried again"))

    @admin.action(description=_("Skip what it waits for, as after its timeout"), permissions=["resume"])
    def skip_wait(self, request: HttpRequest, rows: models.QuerySet[WorkflowRun]) -> None:
        self.apply(request, rows, engine.skip_wait, _("Skipped the wait"))

    @admin.action(description=_("Cancel"), permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[WorkflowRun]) -> None:
        self.apply(request, rows, cancel_run, _("Cancelled"))

    @admin.action(description=_("Cancel at once, without @on_cancel"), permissions=["cancel"])
    def cancel_at_once(self, request: HttpRequest, rows: models.QuerySet[WorkflowRun]) -> None:
        self.apply(request, rows, partial(cancel_run, at_once=True), _("Cancelled"))


class SignalStateFilter(admin.SimpleListFilter):
    """Which signals were read."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(SignalState.choices)

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        chosen = self.value()
        return queryset.filter(signals_in(SignalState(chosen))) if chosen in SignalState.values else queryset


@admin.register(Signal)
class SignalAdmin(RowAdmin):
    list_display = (
        "name",
        "state",
        "receiver",
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
    list_filter = (SignalStateFilter,)
    actions = ("resume",)

    @admin.display(description=_("state"))
    def state(self, row: Signal) -> str:
        """Return whether the signal was read."""
        return str(state_of(row).label)

    @admin.display(description=_("for"))
    def receiver(self, row: Signal) -> str:
        """Return the run that the signal is for, with a link to it."""
        return str(_("all that wait")) if row.run is None else cause_link(f"workflow:{row.run_id}", str(row.run))
