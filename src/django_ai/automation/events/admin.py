"""The admin of events, claims, callback executions and schedules: why something happened, or has not happened yet."""

from __future__ import annotations

import zoneinfo
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.admin.views.main import ChangeList
from django.db import models
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext, override
from django.utils.translation import gettext_lazy as _

from ..queues.acting import acting_as
from ..queues.admin import PausableAdmin, RowAdmin
from ..queues.admin_fields import json_field, time_field
from ..queues.admin_filters import QueueFilter, declared_name_filter
from ..queues.admin_links import cause_link, register_cause
from ..queues.admin_lists import HistoryInline, PreparedChangeList, newest
from ..queues.history import note, together
from .callbacks import all_callbacks
from .capture import captured_tables
from .claim_owners import find_owners, owner_kinds
from .declarations import declaring_models
from .models import CallbackExecution, CapturedWrite, Event, EventClaim, EventStatus, Schedule
from .schedules.definitions import problem_with_arguments, targets
from .schedules.firing import fire_now
from .sources import declared_names

register_cause("event", Event)
register_cause("callback", CallbackExecution)

MAX_EVENTS_OF_ENTITY = 1_000
"""How many of the newest events of an entity a search of their callbacks looks at."""

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
        declared_name_filter(_("event"), "declared_as", declared_names),
        declared_name_filter(
            _("model"), "entity_type", lambda: [model._meta.label_lower for model in declaring_models()]
        ),
    )
    exact_search = ("entity_id", "event_name")
    first_fields = ("event_name", "status", "entity_link", "waits_for", "due", "error", "cause_link")
    private_fields = ("payload", "changed_values", "snapshot")
    field_displays: ClassVar[dict[str, Any]] = {"snapshot": json_field("snapshot", of="data")}
    inlines = (ExecutionInline,)
    actions = ("resume", "fire_now", "cancel")

    def has_fire_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("fire", request)

    @admin.display(description=_("waits for"))
    def waits_for(self, row: Event) -> str:
        pending = Event.unfinished().filter(pk=row.pk).exists()
        return super().waits_for(row) if pending else "-"

    def refused_actions(self, row: Event) -> Collection[str]:
        is_pending = row.status == EventStatus.PENDING
        may_fire = is_pending and row.armed and row.at is not None and row.at > timezone.now()
        refused = [name for name, is_allowed in (("cancel", is_pending), ("fire_now", may_fire)) if not is_allowed]
        return {*super().refused_actions(row), *refused}

    @admin.action(description=_("Fire now"), permissions=["fire"])
    def fire_now(self, request: HttpRequest, rows: models.QuerySet[Event]) -> None:
        self.apply(request, rows, lambda event: event.fire_now(), _("Fired"), _("%s is about to occur anyway."))

    @admin.action(description=_("Cancel pending events"), permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[Event]) -> None:
        self.apply(request, rows, lambda event: event.cancel(), _("Cancelled"))


@admin.register(CapturedWrite)
class CapturedWriteAdmin(RowAdmin):
    list_display = ("model", "operation", "status", "entity_link", "last_line", time_field("written_at"), "due")
    list_filter = (
        "status",
        declared_name_filter(_("model"), "model", lambda: [model._meta.label_lower for model in captured_tables()]),
    )
    exact_search = ("entity_id",)
    first_fields = ("model", "operation", "status", "entity_link", "waits_for", "due", "error", "cause_link")
    private_fields = ("old",)
    actions = ("resume",)


class ClaimChangeList(PreparedChangeList):
    """A list of claims whose names show only what the user may see."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        owner: Any = self.model_admin
        for claim in self.result_list:
            owner.without_data(request, claim)


@admin.register(EventClaim)
class EventClaimAdmin(RowAdmin):
    list_display = (
        "event_name",
        "owner_shown",
        "match",
        time_field("held_at"),
        time_field("expires_at"),
    )
    list_filter = (declared_name_filter(_("event"), "event_name", declared_names), OWNER_KINDS)
    exact_search = ("event_name", "owner_id")
    private_fields = ("match", "residual")
    actions = ("release",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ClaimChangeList

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> EventClaim | None:
        claim: EventClaim | None = super().get_object(request, object_id, from_field)
        return claim if claim is None else self.without_data(request, claim)

    def without_data(self, request: HttpRequest, claim: EventClaim) -> EventClaim:
        """Take from a claim what the user may not see: Django shows its name in titles and labels."""
        if not self.has_action_permission("view_data", request):
            claim.match, claim.residual = {}, {}
        return claim

    def has_release_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("release", request)

    @admin.action(description=_("Release"), permissions=["release"])
    def release(self, request: HttpRequest, rows: models.QuerySet[EventClaim]) -> None:
        self.apply(request, rows, lambda claim: claim.release(), _("Released"), _("%s has ended already."))

    def prepare(self, rows: Sequence[EventClaim]) -> None:
        super().prepare(rows)
        owners = find_owners((row.owner_kind, row.owner_id) for row in rows)
        for row in rows:
            owner, name = owners.get((row.owner_kind, row.owner_id)), f"{row.owner_kind} {row.owner_id}"
            shown = gettext("%s (deleted)") % name if owner is None else cause_link(name.replace(" ", ":"), str(owner))
            row.__dict__["_owner_shown"], row.__dict__["loaded_owner"] = shown, owner

    @admin.display(description=_("owner"))
    def owner_shown(self, row: EventClaim) -> str:
        return str(row.__dict__.get("_owner_shown", ""))


@admin.register(CallbackExecution)
class CallbackExecutionAdmin(PausableAdmin):
    list_display = ("callback", "status", "event", "last_line", "milestone", "attempt", "due")
    list_filter = (
        "status",
        declared_name_filter(_("callback"), "callback", lambda: {each.name for each in all_callbacks()}),
        QueueFilter,
    )
    list_select_related = ("event",)
    exact_search = ("callback",)
    first_fields = ("callback", "status", "event", "waits_for", "due", "error")
    actions = ("resume", "pause", "unpause")

    def search_condition(self, term: str, *, is_number: bool) -> models.Q:
        """The name of a callback, or the entity of its event. In two steps, as no index finds a row by the field of
        another table or its own key."""
        if any(each.name == term for each in all_callbacks()):
            return models.Q(callback=term)
        events = Event.objects.filter(entity_id=term).order_by("-pk").values_list("pk", flat=True)
        return models.Q(event__in=list(events[:MAX_EVENTS_OF_ENTITY]))

    @admin.display(description=_("waits for"))
    def waits_for(self, row: CallbackExecution) -> str:
        return super().waits_for(row) if row.status in ("pending", "parked") else "-"


# -- schedules ---------------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[Schedule]
else:  # at run time Django's class is not generic
    ModelForm = forms.ModelForm

EDITABLE = (
    "name",
    "target",
    "cron",
    "every",
    "timezone",
    "arguments",
    "catch_up",
    "catch_up_within",
    "overlap",
)


class ScheduleForm(ModelForm):
    """The form of a schedule: the target and the time zone are chosen from lists."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        chosen = getattr(self.instance, "target", "")
        names = sorted({*targets(), *([chosen] if chosen else [])})
        zones = ["", *sorted(zoneinfo.available_timezones())]
        if "target" in self.fields:
            self.fields["target"] = forms.ChoiceField(choices=[(name, name) for name in names], label=_("target"))
        if "timezone" in self.fields:
            self.fields["timezone"] = forms.ChoiceField(
                choices=[(name, name or _("the project's")) for name in zones], required=False, label=_("time zone")
            )

    def clean(self) -> dict[str, Any]:
        """Refuse arguments with which the target cannot start."""
        values = super().clean() or self.cleaned_data
        if isinstance(values.get("arguments"), dict) and (target := values.get("target")):
            problem = problem_with_arguments(target, values["arguments"])
            if problem:
                self.add_error("arguments", problem)
        return values


@admin.register(Schedule)
class ScheduleAdmin(RowAdmin):
    """Schedules of the code can be paused and fired; those that staff has added can be changed, too."""

    form = ScheduleForm
    list_display = (
        "name",
        "target",
        "times",
        "state",
        "due",
        time_field("fired_at"),
        "fired",
        "last_event_link",
        "skipped",
        "last_line",
    )
    list_filter = ("is_declared", "overlap")
    list_select_related = ("last_event",)
    ordering = ("name",)
    exact_search = ("name", "target")
    actions = ("fire", "pause", "unpause", "resume")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_action_permission("add", request)

    def has_change_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        return (obj is None or not obj.is_declared) and self.has_action_permission("change", request)

    def has_delete_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        return self.has_action_permission("delete", request)

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("pause", request)

    def has_fire_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("fire", request)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        shown = super().get_readonly_fields(request, obj)
        if obj is not None and not self.has_change_permission(request, obj):
            return shown
        return [each for each in shown if each not in EDITABLE] if obj is not None else []

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return [(None, {"fields": EDITABLE})]
        return super().get_fieldsets(request, obj)

    def _display_of(self, field: Any) -> Any:
        return field.name if field.name in EDITABLE else super()._display_of(field)

    def log_addition(self, request: HttpRequest, obj: Schedule, message: Any) -> LogEntry:
        with acting_as(request.user):
            note(obj, "Added")
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Schedule, message: Any) -> LogEntry:
        entry: LogEntry = super().log_change(request, obj, message)
        with acting_as(request.user), override(None):
            note(obj, "Changed", entry.get_change_message())
        return entry

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        with acting_as(request.user), together():
            for row in queryset:
                note(row, "Deleted")
        return super().log_deletions(request, queryset)

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        """Save what staff has written, and let the schedule continue with its next time from now on."""
        super().save_model(request, obj, form, change)
        if obj.paused_at is None and (not change or form.changed_data):
            obj.plan(timezone.now())

    @admin.display(description=_("last event"), empty_value="-")
    def last_event_link(self, row: Schedule) -> str | None:
        event = row.last_event
        return None if event is None else cause_link(f"event:{event.pk}", f"{event.get_status_display()} #{event.pk}")

    @admin.display(description=_("times"))
    def times(self, row: Schedule) -> str:
        return row.in_words

    @admin.display(description=_("state"))
    def state(self, row: Schedule) -> str:
        if row.paused_at is not None:
            return str(_("paused"))
        return str(_("parked")) if row.parked_at is not None else str(_("active"))

    @admin.action(description=_("Fire now"), permissions=["fire"])
    def fire(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        self.apply(request, rows, lambda row: fire_now(row, timezone.now()), _("Fired"))

    @admin.action(description=_("Pause"), permissions=["pause"])
    def pause(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        self.apply(request, rows, lambda row: row.pause(), _("Paused"))

    @admin.action(description=_("Continue with the next time"), permissions=["pause"])
    def unpause(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        self.apply(request, rows, lambda row: row.unpause(), _("Unpaused"))
