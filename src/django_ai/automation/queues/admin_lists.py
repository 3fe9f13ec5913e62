"""Lists and histories in the admin that stay fast on tables of any size: they count up to a limit, and show the newest
rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core.paginator import Paginator
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

    TabularInline = admin.TabularInline[Any, Any]
    FormSet = BaseInlineFormSet[Any, Any, Any]
else:  # at run time Django's classes are not generic
    TabularInline, FormSet = admin.TabularInline, BaseInlineFormSet

MAX_INLINE_ROWS = 50
MAX_COUNTED_ROWS = 10_000
OLDER_THAN = "id__lt"
"""The parameter of a list that continues where the counted rows end."""


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
    """A change list that passes the rows of a page to ``RowAdmin.prepare``.

    Its last page, at ``MAX_COUNTED_ROWS``, has a link to the rows that are older: they are found by their primary key,
    where the number of a page would let the database read and skip all rows before it.
    """

    older_url = ""
    older_title = _("older rows")

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list) if self.result_count else []  # none: no need to search again
        is_last = self.result_count >= MAX_COUNTED_ROWS and self.page_num == self.paginator.num_pages
        if is_last and self.result_list and self.queryset.query.order_by[:1] in (("-pk",), ("-id",)):
            older = {OLDER_THAN: self.result_list[-1].pk}
            self.older_url = self.get_query_string(older, remove=[PAGE_VAR])
        owner: Any = self.model_admin
        owner.prepare(self.result_list)
