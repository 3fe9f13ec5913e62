"""Base classes of the admin pages of all layers: read-only rows, and actions that call methods of the row.

The pages stay fast on tables of any size: filters offer the declared names instead of querying the table, lists count
up to a limit, and the page of a row shows the newest part of its history. Each action writes a ``LogEntry`` for each
row that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_permission_codename
from django.core.paginator import Paginator
from django.db import models
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.text import format_lazy
from django.utils.timesince import timesince, timeuntil
from django.utils.translation import gettext, override
from django.utils.translation import gettext_lazy as _

from ..db.database_clock import DatabaseNow
from ..exceptions import AutomationError
from ..values.text import last_line
from .admin_fields import json_field, time_field
from .models import Maintenance, Worker
from .operations.resume import awaits_code
from .wakeable import at_text
from .worker_status import MAX_SILENCE

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
    FormSet = BaseInlineFormSet[Any, Any, Any]
else:  # at run time Django's classes are not generic
    ModelAdmin, TabularInline, FormSet = admin.ModelAdmin, admin.TabularInline, BaseInlineFormSet

MAX_INLINE_ROWS = 50
MAX_COUNTED_ROWS = 10_000
MAX_MESSAGES = 5
MAX_ERROR_IN_LIST = 160

TECHNICAL_FIELDS = ("id", "wake_at", "lease", "seq", "losses", "parked_at")
"""Fields of every Wakeable that come last on its page."""
TECHNICAL_TITLE = _("Technical")


class NewestRows(FormSet):
    """Limits an inline to its newest rows: a row may have tens of thousands."""

    def get_queryset(self) -> Any:
        if not hasattr(self, "_newest"):
            self._newest = self.queryset.order_by("-pk")[:MAX_INLINE_ROWS] if self.queryset is not None else []
        return self._newest


def newest(what: StrOrPromise) -> StrOrPromise:
    """Return the title of an inline that shows the newest rows."""
    return format_lazy(_("newest {count} {rows}"), count=MAX_INLINE_ROWS, rows=what)


class HistoryInline(TabularInline):
    """A read-only inline of the newest related rows."""

    extra = 0
    can_delete = False
    formset = NewestRows
    columns: ClassVar[tuple[Any, ...]] = ()

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.columns

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.columns

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts up to ``MAX_COUNTED_ROWS``: counting ten million rows would take seconds."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return len(rows.order_by().values_list("pk")[:MAX_COUNTED_ROWS])


class PreparedChangeList(ChangeList):
    """A change list that passes the rows of a page to ``RowAdmin.prepare``."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        owner: Any = self.model_admin
        owner.prepare(self.result_list)


class DeclaredNameFilter(admin.SimpleListFilter):
    """A filter by name that offers the declared names. A ``SELECT DISTINCT`` would read the whole table."""

    field: ClassVar[str]

    @staticmethod
    def names() -> Collection[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        chosen = self.value()
        return [(name, name) for name in sorted({*self.names(), *([chosen] if chosen else [])})]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(**{self.field: self.value()})


def declared_name_filter(
    title: StrOrPromise, field: str, names: Callable[[], Collection[str]]
) -> type[DeclaredNameFilter]:
    """Return a filter of ``field`` that offers ``names()``."""
    given = {"title": title, "parameter_name": field, "field": field, "names": staticmethod(names)}
    return type("Declared", (DeclaredNameFilter,), given)


class RowAdmin(ModelAdmin):
    """A page of rows that only code writes. Operators view, resume and cancel them; they do not edit or delete them.

    Viewing needs Django's ``view`` permission. Each action has a permission of its own (``resume_workflowrun``), and so
    do the fields with the project's data (``view_data_workflowrun``).
    """

    list_per_page = 50
    show_full_result_count = False
    paginator = CappedPaginator
    private_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that need the permission ``view_data``."""
    first_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields and methods that come first on the page of a row."""
    field_displays: ClassVar[dict[str, Any]] = {}
    """Columns that replace fields on the page of a row, by field name."""
    exact_search: tuple[str, ...] = ()
    """Fields that a search compares exactly, so that it uses their indexes. A number is also compared with the key."""

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

    def has_action_permission(self, action: str, request: HttpRequest) -> bool:
        """Return whether the user has the permission for ``action`` on rows of this model."""
        name = get_permission_codename(action, self.model._meta)
        return request.user.has_perm(f"{self.model._meta.app_label}.{name}")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse to filter by fields that the user may not see: the results would reveal their values."""
        hidden = lookup.split("__")[0] in self.private_fields and not self.has_action_permission("view_data", request)
        return not hidden and super().lookup_allowed(lookup, value, request)

    # -- lists ---------------------------------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return PreparedChangeList

    def prepare(self, rows: Sequence[Any]) -> None:
        """Load what the columns of these rows need, in few queries."""

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return self.exact_search  # Django shows the search box if this is not empty

    def get_search_results(
        self, request: HttpRequest, queryset: models.QuerySet[Any], search_term: str
    ) -> tuple[models.QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        found = models.Q(*[(name, term) for name in self.exact_search], _connector=models.Q.OR)
        if term.isascii() and term.isdigit() and len(term) < 19:
            found |= models.Q(pk=int(term))
        return queryset.filter(found), False

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
        if isinstance(field, models.DateTimeField):
            return time_field(field.name)
        return json_field(field.name) if isinstance(field, models.JSONField) else field.name

    @admin.display(description=_("due"), ordering="wake_at")
    def due(self, row: Any) -> str:
        """Return when the row is due, in words, or which worker has leased it."""
        if row.lease:
            return gettext("leased by %s") % str(row.holder)
        if row.wake_at is None:
            return "-"
        now = timezone.now()
        if row.wake_at > now:
            return gettext("in %s") % timeuntil(row.wake_at)
        return gettext("now, since %s") % timesince(row.wake_at)

    @admin.display(description=_("error"))
    def last_line(self, row: Any) -> str:
        """Return the last line of the error, shortened; the full line is the tooltip."""
        line = last_line(row.error)
        if len(line) <= MAX_ERROR_IN_LIST:
            return line
        return format_html('<span title="{}">{}…</span>', line, line[: MAX_ERROR_IN_LIST - 1])

    @admin.display(description=_("waits for"))
    def waits_for(self, row: Any) -> str:
        """Return the one thing that an unfinished row waits for."""
        if row.is_finished:
            return "-"
        return row.waits_for(timezone.now()) or gettext("nothing (stuck: report a bug)")

    @admin.display(description=_("entity"))
    def entity_link(self, row: Any) -> str:
        """Return the entity of the row, with a link to its admin page if the project has one."""
        if not row.entity_type:
            return "-"
        text = f"{row.entity_type} {row.entity_id}"
        app, _, model = row.entity_type.partition(".")
        return _link(f"{app}_{model}", row.entity_id, text)

    @admin.display(description=_("caused by"))
    def cause_link(self, row: Any) -> str:
        """Return what caused the row, with a link to it."""
        kind, _, rest = row.caused_by.partition(":")
        model = _cause_models.get(kind)
        if model is None:
            return row.caused_by or "-"
        return _link(f"{model._meta.app_label}_{model._meta.model_name}", rest.partition(":")[0], row.caused_by)

    # -- actions -------------------------------------------------------------------------------------------------------

    def apply(
        self, request: HttpRequest, rows: models.QuerySet[Any], act: Callable[[Any], Any], done: StrOrPromise
    ) -> None:
        """Call ``act`` with each row, log each change, and report the results to the user.

        Args:
            request: The request.
            rows: The selected rows.
            act: Changes one row. Returns False if the row has already finished.
            done: The past participle for the messages, such as "Resumed".
        """
        changed, refused, awaiting_code = [], [], 0
        for row in rows:
            awaited = awaits_code(row)
            try:
                if act(row) is False:
                    refused.append(gettext("%s has already finished.") % row)
                    continue
            except AutomationError as error:
                refused.append(str(error))
                continue
            changed.append(row)
            awaiting_code += awaited
        if changed:
            with override(None):  # the history is stored, and its readers have other languages
                written = f"{done} by an action."
            LogEntry.objects.log_actions(request.user.pk or 0, changed, CHANGE, written)
            self.message_user(request, f"{done}: {len(changed)}.", messages.SUCCESS)
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


_cause_models: dict[str, type[models.Model]] = {}


def register_cause(kind: str, model: type[models.Model]) -> None:
    """Link values of ``caused_by`` that begin with ``kind`` to rows of ``model``."""
    _cause_models[kind] = model


def _link(page: str, key: str, text: str) -> str:
    try:
        url = reverse(f"admin:{page}_change", args=[key])
    except NoReverseMatch:
        return text
    return format_html('<a href="{}">{}</a>', url, text)


@admin.register(Worker)
class WorkerAdmin(RowAdmin):
    """The worker processes, and which of them are alive."""

    list_display = (
        "process",
        "runtime",
        "polled_queues",
        "state",
        time_field("started_at"),
        time_field("seen_at"),
        "last_worked",
        "performed",
    )
    ordering = ("-seen_at",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset(request).annotate(asked_at=DatabaseNow())
        return rows

    @admin.display(description=_("worker"), ordering="host")
    def process(self, row: Worker) -> str:
        return str(row)

    @admin.display(description=_("queues"), ordering="queues")
    def polled_queues(self, row: Worker) -> str:
        return row.queues.replace(",", ", ") or gettext("all")

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
