"""What the admin pages of all floors share: rows to look at, and actions that are methods of the row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
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
    """A page of rows that nobody edits by hand: code writes them, a person looks, resumes and cancels."""

    list_per_page = 50
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [field.name for field in self.model._meta.fields]

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

    @admin.action(description="Resume: try again now", permissions=["change"])
    def resume(self, request: HttpRequest, rows: models.QuerySet[Any]) -> None:
        self.apply(request, rows, lambda row: row.resume(), "Resumed")


@admin.register(Worker)
class WorkerAdmin(RowAdmin):
    """Who performs the work, and since when."""

    list_display = ("name", "started_at", "worked_at", "performed")
    ordering = ("-worked_at",)
