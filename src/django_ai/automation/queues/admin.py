"""What the admin pages of all layers share: rows to look at, and actions that are methods of the row.

The pages stay quick on tables of any size: filters offer what the code declares instead of asking the table, lists
count up to a limit, and a row's page shows the newest part of its history. Each action leaves a ``LogEntry`` for each
row that it changed.
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
else:  # Django's own classes take no parameters when they run
    ModelAdmin, TabularInline, FormSet = admin.ModelAdmin, admin.TabularInline, BaseInlineFormSet

MAX_INLINE_ROWS = 50
MAX_COUNTED_ROWS = 10_000
MAX_MESSAGES = 5
MAX_ERROR_IN_LIST = 160

TECHNICAL = ("id", "wake_at", "lease", "seq", "losses", "parked_at")
"""Columns of every Wakeable, which come last on its page."""
TECHNICAL_TITLE = _("Technical")


class NewestRows(FormSet):
    """The newest rows of an inline: a row may have tens of thousands."""

    def get_queryset(self) -> Any:
        if not hasattr(self, "_newest"):
            self._newest = self.queryset.order_by("-pk")[:MAX_INLINE_ROWS] if self.queryset is not None else []
        return self._newest


def newest(what: StrOrPromise) -> StrOrPromise:
    """Return the title of an inline: the newest of its rows."""
    return format_lazy(_("newest {count} {rows}"), count=MAX_INLINE_ROWS, rows=what)


class HistoryInline(TabularInline):
    """The newest rows that hang on another, to be read only."""

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
    """Counts up to ``MAX_COUNTED_ROWS``: to count a table of ten million rows takes seconds."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return len(rows.order_by().values_list("pk")[:MAX_COUNTED_ROWS])


class Page(ChangeList):
    """A page of a list, whose rows are prepared together."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        owner: Any = self.model_admin
        owner.prepare(self.result_list)


class DeclaredNames(admin.SimpleListFilter):
    """A filter by name that offers what the code declares. A ``SELECT DISTINCT`` would read the whole table."""

    field: ClassVar[str]

    @staticmethod
    def names() -> Collection[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        chosen = self.value()
        return [(name, name) for name in sorted({*self.names(), *([chosen] if chosen else [])})]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(**{self.field: self.value()})


def declared_names(title: StrOrPromise, field: str, names: Callable[[], Collection[str]]) -> type[DeclaredNames]:
    """Return a filter of ``field`` that offers ``names()``."""
    given = {"title": title, "parameter_name": field, "field": field, "names": staticmethod(names)}
    return type("Declared", (DeclaredNames,), given)


class RowAdmin(ModelAdmin):
    """A page of rows that nobody edits or deletes by hand: code writes them, an operator looks, resumes and cancels.

    To look is Django's ``view`` permission; each action has a permission of its own (``resume_workflowrun``), and so
    have the columns that hold the project's data (``view_data_workflowrun``).
    """

    list_per_page = 50
    show_full_result_count = False
    paginator = CappedPaginator
    private_fields: ClassVar[tuple[str, ...]] = ()
    """What only they see who may see data."""
    head: ClassVar[tuple[str, ...]] = ()
    """What comes first on the page of a row: names of fields and of methods."""
    displays: ClassVar[dict[str, Any]] = {}
    """How fields are shown whose value says too little."""
    exact_search: tuple[str, ...] = ()
    """Fields that a search compares exactly, so that their indexes serve; a number is compared with the key, too."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes a row by hand: others wait for it, and it is what keeps things from being done twice."""
        return False

    def has_resume_permission(self, request: HttpRequest) -> bool:
        return self.may("resume", request)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may("cancel", request)

    def has_complete_permission(self, request: HttpRequest) -> bool:
        return self.may("complete", request)

    def may(self, action: str, request: HttpRequest) -> bool:
        """Return whether the user has the permission for ``action`` on rows of this model."""
        name = get_permission_codename(action, self.model._meta)
        return request.user.has_perm(f"{self.model._meta.app_label}.{name}")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse to filter by what the user may not see: a filter answers questions about it."""
        hidden = lookup.split("__")[0] in self.private_fields and not self.may("view_data", request)
        return not hidden and super().lookup_allowed(lookup, value, request)

    # -- lists ---------------------------------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return Page

    def prepare(self, rows: Sequence[Any]) -> None:
        """Read at once what the columns of these rows ask for."""

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        return self.exact_search  # the box is there where this is not empty

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
        hidden = () if self.may("view_data", request) else self.private_fields
        fields = [field for field in self.model._meta.fields if field.name not in (*hidden, *self.head)]
        rest = [self._shown(field) for field in fields if field.name not in TECHNICAL]
        technical = [self._shown(field) for field in fields if field.name in TECHNICAL]
        return [(None, [*self.head, *rest]), (TECHNICAL_TITLE, technical)]

    def _shown(self, field: Any) -> Any:
        """Return how a field is shown: times to the second, JSON with indentation."""
        if field.name in self.displays:
            return self.displays[field.name]
        if isinstance(field, models.DateTimeField):
            return time_field(field.name)
        return json_field(field.name) if isinstance(field, models.JSONField) else field.name

    @admin.display(description=_("due"), ordering="wake_at")
    def due(self, row: Any) -> str:
        """Say when a worker looks at the row next, in words."""
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
        """Show the end of a traceback; the whole line when pointed at."""
        line = last_line(row.error)
        if len(line) <= MAX_ERROR_IN_LIST:
            return line
        return format_html('<span title="{}">{}…</span>', line, line[: MAX_ERROR_IN_LIST - 1])

    @admin.display(description=_("waits for"))
    def waits_for(self, row: Any) -> str:
        """Name the one thing that an unfinished row waits for."""
        if row.is_finished:
            return "-"
        return row.waits_for(timezone.now()) or gettext("nothing (stuck: report a bug)")

    @admin.display(description=_("entity"))
    def entity_link(self, row: Any) -> str:
        """Name the entity that the row is about, with a link to its own page where the project has one."""
        if not row.entity_type:
            return "-"
        text = f"{row.entity_type} {row.entity_id}"
        app, _, model = row.entity_type.partition(".")
        return _link(f"{app}_{model}", row.entity_id, text)

    @admin.display(description=_("caused by"))
    def cause_link(self, row: Any) -> str:
        """Name what caused the row, with a link to it."""
        kind, _, rest = row.caused_by.partition(":")
        model = _causes.get(kind)
        if model is None:
            return row.caused_by or "-"
        return _link(f"{model._meta.app_label}_{model._meta.model_name}", rest.partition(":")[0], row.caused_by)

    # -- actions -------------------------------------------------------------------------------------------------------

    def apply(
        self, request: HttpRequest, rows: models.QuerySet[Any], act: Callable[[Any], Any], done: StrOrPromise
    ) -> None:
        """Call ``act`` with each row, log each change, and say how it went. ``act`` returns False where there was
        nothing to do."""
        changed, refused, awaiting = [], [], 0
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
            awaiting += awaited
        if changed:
            with override(None):  # the history is stored, and its readers have other languages
                written = f"{done} by an action."
            LogEntry.objects.log_actions(request.user.pk or 0, changed, CHANGE, written)
            self.message_user(request, f"{done}: {len(changed)}.", messages.SUCCESS)
        if awaiting:
            self.message_user(
                request,
                gettext(
                    "%s of them had been parked because their code was missing. They are parked again unless a worker "
                    "has that code now."
                )
                % awaiting,
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


_causes: dict[str, type[models.Model]] = {}


def link_causes(kind: str, model: type[models.Model]) -> None:
    """Let ``caused_by`` texts that begin with ``kind`` link to rows of ``model``."""
    _causes[kind] = model


def _link(page: str, key: str, text: str) -> str:
    try:
        url = reverse(f"admin:{page}_change", args=[key])
    except NoReverseMatch:
        return text
    return format_html('<a href="{}">{}</a>', url, text)


@admin.register(Worker)
class WorkerAdmin(RowAdmin):
    """Which processes perform the work, and which of them are alive."""

    list_display = (
        "process",
        "runtime",
        "looks_at",
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
    def looks_at(self, row: Worker) -> str:
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
    """The periodic tasks of the engine: when each is due, what it has done, and why it failed."""

    list_display = ("name", "due", time_field("completed_at"), "done", "failures", "last_line")
    ordering = ("name",)
