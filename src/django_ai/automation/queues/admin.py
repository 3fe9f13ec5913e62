"""Base classes of the admin pages of all layers: read-only rows, and actions that call methods of the row.

The pages stay fast on tables of any size: filters offer the declared names instead of querying the table, lists count
up to a limit, and the page of a row shows the newest part of its history. Actions act as the user, with the reason
that the user gives (``acting``): each changed row gets an ``Action`` by its verb, which its page shows under *History*,
and a ``LogEntry`` for Django's own log, in the transaction of the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.forms import CharField
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext, override
from django.utils.translation import gettext_lazy as _

from ..db.database_clock import DatabaseNow
from ..db.deadlocks import retry_on_deadlock
from ..db.writer import alias_of
from ..exceptions import AutomationError
from . import pausing
from .acting import acting_as
from .admin_fields import as_message, json_field, since_text, time_field, until_text
from .admin_filters import declared_name_filter
from .admin_leases import leased_now, load_leased
from .admin_links import HistoryEntry, cause_link, link
from .admin_lists import CappedPaginator, PreparedChangeList
from .admin_pause_form import PauseForm
from .admin_stories import StoryPage
from .history import DONE, actions_of, done_in_words, together
from .lanes import shown_name
from .models import Action, Limiter, Maintenance, Pause, Slot, SlotState, Worker
from .operations.resume import BATCH_SIZE, awaits_code
from .pauses import described
from .wakeable import Wakeable, at_text
from .worker_status import MAX_SILENCE

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise


MAX_MESSAGES = 5
MAX_ERROR_IN_LIST = 160
MAX_REASON = 1000

TECHNICAL_FIELDS = ("id", "wake_at", "lease", "seq", "losses", "parked_at")
"""Fields of every Wakeable that come last on its page."""
TECHNICAL_TITLE = _("Technical")
ALREADY_FINISHED = _("%s has already finished.")


class ReasonForm(ActionForm):
    """The form above a list: which action, and why."""

    reason = CharField(label=_("Reason"), required=False, max_length=1000)


class RowAdmin(StoryPage):
    """A page of rows that only code writes. Operators view, resume and cancel them; they do not edit or delete them.

    Viewing needs Django's ``view`` permission. Each action has a permission of its own (``resume_workflowrun``), and so
    do the fields with the project's data (``view_data_workflowrun``).
    """

    list_per_page = 50
    show_full_result_count = False
    paginator = CappedPaginator
    change_list_template = "automation_queues/list.html"
    action_form = ReasonForm
    private_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that need the permission ``view_data``."""
    first_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields and methods that come first on the page of a row."""
    field_displays: ClassVar[dict[str, Any]] = {}
    """Columns that replace fields on the page of a row, by field name."""
    exact_search: tuple[str, ...] = ()
    """Fields that a search compares exactly, so that it uses their indexes. A number is also compared with the key."""

    class Media:
        css: ClassVar[dict[str, Any]] = {"all": ("automation_queues/rows.css",)}

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows are never deleted by hand: other rows wait for them, and they guarantee once-only execution."""
        return False

    def has_resume_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("resume", request)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("cancel", request)

    def has_complete_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("complete", request)

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("pause", request)

    def has_action_permission(self, action: str, request: HttpRequest) -> bool:
        """Return whether the user has the permission for ``action`` on rows of this model."""
        name = get_permission_codename(action, self.model._meta)
        return request.user.has_perm(f"{self.model._meta.app_label}.{name}")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse to filter by fields that the user may not see: the results would reveal their values."""
        hidden = lookup.split("__")[0] in self.private_fields and not self.has_action_permission("view_data", request)
        return not hidden and super().lookup_allowed(lookup, value, request)

    # -- lists ---------------------------------------------------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list, or execute an action. Refuse one that the user may not execute, which Django would ignore."""
        if request.method == "POST":
            allowed = self.allowed_actions(request)
            if not allowed or request.POST.get("action", "") not in ("", *allowed):
                raise PermissionDenied
        return super().changelist_view(request, extra_context)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return PreparedChangeList

    def prepare(self, rows: Sequence[Any]) -> None:
        """Load what the columns of these rows need, in few queries."""
        if issubclass(self.model, Wakeable):
            self.model.load_reasons(rows)

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return self.exact_search  # Django shows the search box if this is not empty

    def get_search_results(
        self, request: HttpRequest, queryset: models.QuerySet[Any], search_term: str
    ) -> tuple[models.QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        is_number = term.isascii() and term.isdigit() and len(term) < 19
        by_key = models.Q(pk=int(term)) if is_number else models.Q(pk__in=())
        return queryset.filter(by_key | self.search_condition(term, is_number=is_number)), False

    def search_condition(self, term: str, *, is_number: bool) -> models.Q:
        """Return the condition of the rows that a search finds by their fields."""
        found = models.Q(pk__in=())
        for name in self.exact_search:
            if is_number or not isinstance(self.model._meta.get_field(name), models.IntegerField):
                found |= models.Q((name, term))
        return found

    # -- the page of a row ---------------------------------------------------------------------------------------------

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [name for _, group in self._groups(request) for name in group]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return [
            (title, {"fields": group, "classes": ["collapse"] if title == TECHNICAL_TITLE else []})
            for title, group in self._groups(request)
        ]

    def _groups(self, request: HttpRequest) -> list[tuple[StrOrPromise | None, list[Any]]]:
        hidden = () if self.has_action_permission("view_data", request) else self.private_fields
        fields = [field for field in self.model._meta.fields if field.name not in (*hidden, *self.first_fields)]
        rest = [self._display_of(field) for field in fields if field.name not in TECHNICAL_FIELDS]
        technical = [self._display_of(field) for field in fields if field.name in TECHNICAL_FIELDS]
        return [(None, [*self.first_fields, *rest]), (TECHNICAL_TITLE, technical)]

    def _display_of(self, field: Any) -> Any:
        """Return the column that shows a field: times to the second, JSON with indentation."""
        if field.name in self.field_displays:
            return self.field_displays[field.name]
        if field.name == "queue":
            return "queue_name"
        if isinstance(field, models.DateTimeField):
            return time_field(field.name)
        return json_field(field.name) if isinstance(field, models.JSONField) else field.name

    @admin.display(description=_("queue"), ordering="queue")
    def queue_name(self, row: Any) -> str:
        return shown_name(row.queue)

    @admin.display(description=_("due"), ordering="wake_at")
    def due(self, row: Any) -> str:
        """Return when the row is due, in words, or which worker has leased it."""
        if row.lease:
            return gettext("leased by %s") % str(row.holder)
        if row.wake_at is None:
            return "-"
        now = timezone.now()
        if row.wake_at > now:
            return gettext("in %s") % until_text(row.wake_at, now)
        return gettext("now, since %s") % since_text(row.wake_at, now)

    @admin.display(description=_("error"))
    def last_line(self, row: Any) -> str:
        """Return the last line of the error, shortened; the full line is the tooltip."""
        line: str = row.error_summary
        if len(line) <= MAX_ERROR_IN_LIST:
            return line
        return format_html('<span title="{}">{}…</span>', line, line[: MAX_ERROR_IN_LIST - 1])

    @admin.display(description=_("waits for"))
    def waits_for(self, row: Any) -> str:
        """Return the one thing that an unfinished row waits for."""
        if row.is_finished:
            return "-"
        return row.waiting_text(timezone.now()) or gettext("nothing (stuck: report a bug)")

    @admin.display(description=_("entity"))
    def entity_link(self, row: Any) -> str:
        """Return the entity of the row, with a link to its admin page if the project has one."""
        if not row.entity_type:
            return row.entity_id or "-"  # the key of an event without an entity
        text = f"{row.entity_type} {row.entity_id}"
        app, _, model = row.entity_type.partition(".")
        return link(f"{app}_{model}", row.entity_id, text)

    @admin.display(description=_("caused by"))
    def cause_link(self, row: Any) -> str:
        """Return what caused the row, with a link to it."""
        return cause_link(row.caused_by, row.caused_by)

    def history_key(self, row: Any) -> str:
        """Return the key of the actions that were done to the row."""
        return str(row.pk)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show who did what to the row. Django checks the permission to view it."""
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return super().history_view(request, object_id, extra_context)
        paginator = self.get_paginator(request, actions_of(self.model, self.history_key(row)), 100)
        page = paginator.get_page(request.GET.get(PAGE_VAR, 1))
        shown = {
            "action_list": page,
            "page_range": paginator.get_elided_page_range(page.number),
            "pagination_required": paginator.count > 100,
        }
        page.object_list = [HistoryEntry(action) for action in page.object_list]
        return super().history_view(request, object_id, {**shown, **(extra_context or {})})

    # -- actions -------------------------------------------------------------------------------------------------------

    def apply(
        self,
        request: HttpRequest,
        rows: Iterable[Any],
        act: Callable[[Any], Any],
        done: StrOrPromise,
        refusal: StrOrPromise = ALREADY_FINISHED,
    ) -> None:
        """Call ``act`` with each row as the user, log each change, and report the results to the user.

        Commits after every ``BATCH_SIZE`` rows, together with the entries of their histories.

        Args:
            request: The request.
            rows: The selected rows.
            act: Changes one row. Returns False if that is refused.
            done: The past participle for the messages, such as "Resumed".
            refusal: The message for a row that was refused. Default: it has already finished.
        """
        with override(None):  # the history is stored, and its readers have other languages
            reason, plain = str(request.POST.get("reason", "")).strip()[:MAX_REASON], str(done)
        log = f"{plain} by an action: {reason}" if reason else f"{plain} by an action."
        alias = alias_of(self.model)

        def apply_to(batch: Sequence[Any]) -> tuple[int, list[str], int]:
            changed, refused, awaiting_code = [], [], 0
            with transaction.atomic(using=alias), acting_as(request.user, reason), together():
                for row in batch:
                    awaited = awaits_code(row)
                    try:
                        if act(row) is False:
                            refused.append(as_message(str(refusal % row), row))
                            continue
                    except AutomationError as error:
                        refused.append(as_message(str(error), row))
                        continue
                    changed.append(row)
                    awaiting_code += awaited and not getattr(row, "is_finished", False)
                if changed:
                    LogEntry.objects.log_actions(request.user.pk or 0, changed, CHANGE, log)
            return len(changed), refused, awaiting_code

        changed, refused, awaiting_code = 0, list[str](), 0
        selected = list(rows)
        for start in range(0, len(selected), BATCH_SIZE):
            batch = selected[start : start + BATCH_SIZE]
            more_changed, more_refused, more_awaiting = retry_on_deadlock(alias, partial(apply_to, batch))
            changed, awaiting_code = changed + more_changed, awaiting_code + more_awaiting
            refused += more_refused
        if changed:
            self.message_user(request, f"{done}: {changed}.", messages.SUCCESS)
        if awaiting_code:
            self.message_user(
                request,
                gettext(
                    "%s of them had been parked because their code was missing. They are parked again unless a worker "
                    "has that code now."
                )
                % awaiting_code,
                messages.WARNING,
            )
        for reason in refused[:MAX_MESSAGES]:
            self.message_user(request, reason, messages.WARNING)
        if len(refused) > MAX_MESSAGES:
            self.message_user(
                request, gettext("%s more were refused.") % (len(refused) - MAX_MESSAGES), messages.WARNING
            )

    @admin.action(description=_("Resume: try again now"), permissions=["resume"])
    def resume(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        self.apply(request, rows, lambda row: row.resume(), _("Resumed"))


class PausableAdmin(RowAdmin):
    """A page of rows that can be paused."""

    @admin.action(description=_("Pause"), permissions=["pause"])
    def pause(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        refusal = _("%s has finished, or is paused already.")
        self.apply(request, rows, pausing.pause_row, _("Paused"), refusal)

    @admin.action(description=_("Unpause"), permissions=["pause"])
    def unpause(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        self.apply(
            request, rows, lambda row: pausing.unpause(row.own_target), _("Unpaused"), _("%s is not paused itself.")
        )


@admin.register(Worker)
class WorkerAdmin(RowAdmin):
    """The worker processes, and which of them are alive."""

    list_display = (
        "process",
        "runtime",
        "performed_kinds",
        "polled_queues",
        "state",
        time_field("started_at"),
        time_field("seen_at"),
        "last_worked",
        "performed",
        leased_now,
    )
    ordering = ("-seen_at",)

    def prepare(self, rows: Sequence[Worker]) -> None:
        load_leased(rows)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset(request).annotate(asked_at=DatabaseNow())
        return rows

    @admin.display(description=_("worker"), ordering="host")
    def process(self, row: Worker) -> str:
        return str(row)

    @admin.display(description=_("kinds"), ordering="kinds")
    def performed_kinds(self, row: Worker) -> str:
        return row.kinds.replace(",", ", ") or gettext("all")

    @admin.display(description=_("queues"), ordering="queues")
    def polled_queues(self, row: Worker) -> str:
        names = row.queues.split(",") if row.queues else []
        shown = ", ".join(name for name in names if not name.startswith("!")) or gettext("all")
        excluded = ", ".join(name[1:] for name in names if name.startswith("!"))
        return (
            gettext("%(queues)s except %(excluded)s") % {"queues": shown, "excluded": excluded} if excluded else shown
        )

    @admin.display(description=_("state"))
    def state(self, row: Any) -> str:
        if row.stopped_at is not None:
            return gettext("stopped %s") % at_text(row.stopped_at)
        return gettext("alive") if row.asked_at - row.seen_at < MAX_SILENCE else gettext("dead")

    @admin.display(description=_("worked at"), empty_value="-")
    def last_worked(self, row: Worker) -> str | None:
        return None if row.worked_at is None else at_text(row.worked_at)


@admin.register(Maintenance)
class MaintenanceAdmin(RowAdmin):
    """The periodic tasks of the engine: when each is due, what it did, and why it failed."""

    list_display = ("name", "due", time_field("completed_at"), "done", "failures", "last_line")
    ordering = ("name",)


@admin.register(Pause)
class PauseAdmin(RowAdmin):
    """What is paused. Runs, agents and callback executions are paused alone on their own pages."""

    list_display = ("target_in_words", "row_kind", "row_pk", "reason", time_field("paused_at"))
    ordering = ("-pk",)
    exact_search = ("target",)
    form = PauseForm
    actions = ("end",)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_action_permission("add", request)

    def has_end_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("end", request)

    def history_key(self, row: Any) -> str:
        return str(row.target)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return [(None, {"fields": ["target", "reason"]})] if obj is None else super().get_fieldsets(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [] if obj is None else super().get_readonly_fields(request, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        target = form.cleaned_data["target"]
        with acting_as(request.user):
            pausing.pause(target, form.cleaned_data["reason"])
        obj.__dict__.update(Pause.objects.get(target=target).__dict__)

    @admin.display(description=_("paused"), ordering="target")
    def target_in_words(self, row: Pause) -> str:
        return described(row.target)

    @admin.action(description=_("Unpause"), permissions=["end"])
    def end(self, request: HttpRequest, rows: models.QuerySet[Pause]) -> None:
        self.apply(request, rows, lambda row: pausing.unpause(row.target), _("Unpaused"), _("%s has ended already."))


@admin.register(Action)
class ActionAdmin(RowAdmin):
    """Who did what."""

    list_display = ("done_in_words", "row_link", "actor_link", "reason_line", time_field("done_at"))
    list_filter = (declared_name_filter(_("action"), "done", lambda: DONE),)
    ordering = ("-pk",)
    exact_search = ("key", "actor", "actor_name")

    @admin.display(description=_("action"))
    def done_in_words(self, row: Action) -> str:
        return done_in_words(row)

    @admin.display(description=_("row"))
    def row_link(self, row: Action) -> str:
        """Return the row, with a link to its page if it has a primary key."""
        return link(row.model.replace(".", "_"), row.key, row.what) if row.key.isdigit() else row.what

    @admin.display(description=_("actor"))
    def actor_link(self, row: Action) -> str:
        return cause_link(row.actor, row.actor_name)

    @admin.display(description=_("reason"), empty_value="-")
    def reason_line(self, row: Action) -> str | None:
        return row.reason or None


@admin.register(Limiter)
class LimiterAdmin(RowAdmin):
    """The limits that are in use, one row for each value of a key, and how many rows execute and wait."""

    list_display = ("limit_name", "row_kind", "name", "value_shown", "held", "queued", time_field("created_at"))
    list_filter = ("row_kind",)
    ordering = ("-pk",)
    exact_search = ("name",)
    first_fields = ("limit", "row_kind", "name", "held", "queued")
    private_fields = ("value",)

    def prepare(self, rows: Sequence[Any]) -> None:
        counted = Slot.objects.filter(limiter__in=rows).values("limiter", "state").annotate(number=models.Count("pk"))
        numbers = {(each["limiter"], each["state"]): each["number"] for each in counted.order_by()}
        for row in rows:
            row.held_count = numbers.get((row.pk, SlotState.HELD), 0)
            row.queued_count = numbers.get((row.pk, SlotState.QUEUED), 0)

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        shown = self.has_action_permission("view_data", request)
        return [each for each in self.list_display if shown or each != "value_shown"]

    @admin.display(description=_("limit"), ordering="limit")
    def limit_name(self, row: Limiter) -> str:
        return row.limit

    @admin.display(description=_("value"), empty_value="-")
    def value_shown(self, row: Limiter) -> str | None:
        return row.value or None

    @admin.display(description=_("held"))
    def held(self, row: Any) -> int:
        return int(self._count(row, "held_count", SlotState.HELD))

    @admin.display(description=_("queued"))
    def queued(self, row: Any) -> int:
        return int(self._count(row, "queued_count", SlotState.QUEUED))

    def _count(self, row: Any, name: str, state: SlotState) -> int:
        if name not in row.__dict__:
            row.__dict__[name] = Slot.objects.filter(limiter=row, state=state).count()
        return int(row.__dict__[name])
