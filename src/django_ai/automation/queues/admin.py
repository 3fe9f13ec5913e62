"""What the admin pages of all floors share: rows to look at, and actions that are methods of the row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.auth import get_permission_codename
from django.db import models
from django.http import HttpRequest
from django.utils import timezone
from django.utils.timesince import timeuntil

from ..exceptions import AutomationError
from .models import Worker, last_line

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
else:  # Django's own classes take no parameters when they run
    ModelAdmin, TabularInline = admin.ModelAdmin, admin.TabularInline


class HistoryInline(TabularInline):
    """Rows that hang on another, to be read only."""

    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class RowAdmin(ModelAdmin):
    """A page of rows that nobody edits by hand: code writes them, a person looks, resumes and cancels.

    To look is Django's ``view`` permission; each action has a permission of its own (``resume_workflowrun``), and so
    have the columns that hold the project's data (``view_data_workflowrun``).
    """

    list_per_page = 50
    show_full_result_count = False
    private_fields: ClassVar[tuple[str, ...]] = ()
    """What only they see who may see data."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_resume_permission(self, request: HttpRequest) -> bool:
        return self.may("resume", request)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may("cancel", request)

    def has_complete_permission(self, request: HttpRequest) -> bool:
        return self.may("complete", request)

    def may(self, action: str, request: HttpRequest) -> bool:
        """Say whether the user has the permission for ``action`` on rows of this model."""
        name = get_permission_codename(action, self.model._meta)
        return request.user.has_perm(f"{self.model._meta.app_label}.{name}")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Refuse to filter by what the user may not see: a filter answers questions about it."""
        hidden = lookup.split("__")[0] in self.private_fields and not self.may("view_data", request)
        return not hidden and super().lookup_allowed(lookup, value, request)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        hidden = () if self.may("view_data", request) else self.private_fields
        return [field.name for field in self.model._meta.fields if field.name not in hidden]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [*self.get_readonly_fields(request, obj)]

    @admin.display(description="due", ordering="wake_at")
    def due(self, row: Any) -> str:
        """Say when a worker looks at the row next, in words."""
        if row.lease:
            return f"in the hands of {row.holder}"
        if row.wake_at is None:
            return "never"
        return "now" if row.wake_at <= timezone.now() else f"in {timeuntil(row.wake_at)}"

    @admin.display(description="error")
    def last_line(self, row: Any) -> str:
        """Show the end of a traceback."""
        return last_line(row.error)

    @admin.display(description="waits for")
    def waits_for(self, row: Any) -> str:
        """Name the one thing that an unfinished row waits for."""
        if row.is_finished:
            return ""
        return row.waits_for(timezone.now()) or "nothing: it hangs"

    def apply(self, request: HttpRequest, rows: models.QuerySet[Any], act: Callable[[Any], Any], done: str) -> None:
        """Do ``act`` to each row, and say how it went."""
        count = 0
        for row in rows:
            try:
                count += act(row) is not False
            except AutomationError as error:
                self.message_user(request, str(error), messages.WARNING)
        if count:
            self.message_user(request, f"{done}: {count}.", messages.SUCCESS)

    @admin.action(description="Resume: try again now", permissions=["resume"])
    def resume(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        self.apply(request, rows, lambda row: row.resume(), "Resumed")


@admin.register(Worker)
class WorkerAdmin(RowAdmin):
    """Who performs the work, and since when."""

    list_display = ("name", "started_at", "worked_at", "performed")
    ordering = ("-worked_at",)
