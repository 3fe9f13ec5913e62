"""The admin of events, claims and callback executions: why something happened, or has not happened yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..queues.admin import HistoryInline, RowAdmin, declared_name_filter, newest, register_cause
from ..queues.admin_fields import json_field, time_field
from .callbacks import all_callbacks
from .claim_owners import find_owners, owner_kinds
from .declarations import declared_events, declaring_models
from .models import CallbackExecution, Event, EventClaim

register_cause("event", Event)
register_cause("callback", CallbackExecution)

OWNER_KINDS = declared_name_filter(_("kind of owner"), "owner_kind", owner_kinds)


class ExecutionInline(HistoryInline):
    model = CallbackExecution
    verbose_name_plural = newest(_("callback executions"))
    columns = (
        "callback",
        "milestone",
        "status",
        "attempt",
        time_field("started_at"),
        time_field("finished_at"),
        "error",
    )


@admin.register(Event)
class EventAdmin(RowAdmin):
    list_display = (
        "event_name",
        "status",
        "entity_link",
        "last_line",
        time_field("at"),
        time_field("occurred_at"),
        "due",
    )
    list_filter = (
        "status",
        declared_name_filter(_("event"), "declared_as", lambda: declared_events().keys()),
        declared_name_filter(
            _("model"), "entity_type", lambda: [model._meta.label_lower for model in declaring_models()]
        ),
    )
    exact_search = ("entity_id", "event_name")
    first_fields = ("event_name", "status", "entity_link", "waits_for", "due", "error", "cause_link")
    private_fields = ("payload", "snapshot")
    field_displays: ClassVar[dict[str, Any]] = {"snapshot": json_field("snapshot", of="data")}
    inlines = (ExecutionInline,)
    actions = ("resume", "cancel")

    @admin.display(description=_("waits for"))
    def waits_for(self, row: Event) -> str:
        pending = Event.unfinished().filter(pk=row.pk).exists()
        return super().waits_for(row) if pending else "-"

    @admin.action(description=_("Cancel pending events"), permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[Event]) -> None:
        self.apply(request, rows, lambda event: event.cancel(), _("Cancelled"))


@admin.register(EventClaim)
class EventClaimAdmin(RowAdmin):
    list_display = (
        "event_name",
        "match",
        "owner_shown",
        "priority",
        time_field("held_at"),
        time_field("expires_at"),
        "events_left",
    )
    list_filter = (declared_name_filter(_("event"), "event_name", lambda: declared_events().keys()), OWNER_KINDS)
    exact_search = ("event_name", "owner_id")
    private_fields = ("match", "residual")

    def prepare(self, rows: Sequence[EventClaim]) -> None:
        owners = find_owners((row.owner_kind, row.owner_id) for row in rows)
        for row in rows:
            owner = owners.get((row.owner_kind, row.owner_id))
            row.__dict__["_owner_shown"] = str(owner or gettext("%s (deleted)") % f"{row.owner_kind} {row.owner_id}")

    @admin.display(description=_("owner"))
    def owner_shown(self, row: EventClaim) -> str:
        return str(row.__dict__.get("_owner_shown", ""))


@admin.register(CallbackExecution)
class CallbackExecutionAdmin(RowAdmin):
    list_display = ("callback", "status", "event", "last_line", "milestone", "attempt", "due")
    list_filter = (
        "status",
        declared_name_filter(_("callback"), "callback", lambda: {each.name for each in all_callbacks()}),
    )
    list_select_related = ("event",)
    exact_search = ("callback", "event__entity_id")
    first_fields = ("callback", "status", "event", "waits_for", "due", "error")
    actions = ("resume",)

    @admin.display(description=_("waits for"))
    def waits_for(self, row: CallbackExecution) -> str:
        return super().waits_for(row) if row.status in ("pending", "parked") else "-"
