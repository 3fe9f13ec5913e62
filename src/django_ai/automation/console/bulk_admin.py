"""The admin of bulk actions and of problems, which ``admin`` registers."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from ..queues.admin import RowAdmin
from ..queues.admin_fields import time_field
from ..queues.admin_links import cause_link
from ..queues.admin_stories import register_confirmation, register_story
from ..queues.bulk import words
from ..queues.bulk.creation import cancel_bulk
from ..queues.models import BulkAction, MutedProblem
from ..queues.problems import unmute
from . import bulk_pages, problem_pages
from .story import STORY_TEMPLATE


def register() -> None:
    """Add both to the admin, and ask before an action on many rows of any list."""
    admin.site.register(BulkAction, BulkActionAdmin)
    admin.site.register(MutedProblem, MutedProblemAdmin)
    register_story(BulkAction, bulk_pages.bulk_story, STORY_TEMPLATE)
    register_confirmation(bulk_pages.confirm_many)


class BulkActionAdmin(RowAdmin):
    """Bulk actions: what workers do to many rows, how far they are, who began it, and why."""

    list_display = (
        "title_shown",
        "status",
        "progress_shown",
        "done",
        "refused",
        "failed",
        "actor_link",
        "reason_line",
        time_field("created_at"),
    )
    list_filter = ("status",)
    ordering = ("-pk",)
    exact_search = ("actor", "actor_name")
    actions = ("resume", "cancel")

    def get_urls(self) -> list[Any]:
        pages = [("confirm", bulk_pages.ask), ("start", bulk_pages.start)]
        return [*[_page(self, name, view) for name, view in pages], *super().get_urls()]

    def refused_actions(self, row: BulkAction) -> Collection[str]:
        return {*super().refused_actions(row), *(("cancel",) if row.is_finished else ())}

    @admin.display(description=_("action"))
    def title_shown(self, row: BulkAction) -> str:
        return bulk_pages.title_of(row)

    @admin.display(description=_("progress"))
    def progress_shown(self, row: BulkAction) -> str:
        text = bulk_pages.progress_text(row)
        return format_html('<progress max="100" value="{}">{}</progress> {}', bulk_pages.share_of(row), text, text)

    @admin.display(description=_("who"))
    def actor_link(self, row: BulkAction) -> str:
        return cause_link(row.actor, row.actor_name)

    @admin.display(description=_("reason"), empty_value="-")
    def reason_line(self, row: BulkAction) -> str | None:
        return row.reason or None

    @admin.action(description=words.STOP, permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: models.QuerySet[BulkAction]) -> None:
        self.apply(request, rows, cancel_bulk, _("Cancelled"))


class MutedProblemAdmin(RowAdmin):
    """Problems, with what is muted of them: until when, by whom, and why. The list is the page of all problems."""

    first_fields = ("mute_shown",)
    actions = ("unmute",)

    def get_urls(self) -> list[Any]:
        return [_page(self, "mute", problem_pages.mute_problem), *super().get_urls()]

    def has_unmute_permission(self, request: HttpRequest) -> bool:
        return self.has_action_permission("delete", request)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return problem_pages.problems_page(self.admin_site, request)

    @admin.display(description=words.MUTED)
    def mute_shown(self, row: MutedProblem) -> str:
        return problem_pages.muted_text(row)

    @admin.action(description=words.UNMUTE, permissions=["unmute"])
    def unmute(self, request: HttpRequest, rows: models.QuerySet[MutedProblem]) -> HttpResponse:
        self.apply(request, rows, unmute, words.UNMUTED, words.NOT_MUTED)
        return problem_pages.back_to_problems(self.admin_site)


def _page(owner: RowAdmin, name: str, view: Any) -> Any:
    options = owner.opts
    wrapped = owner.admin_site.admin_view(partial(view, owner.admin_site))
    return path(f"{name}/", wrapped, name=f"{options.app_label}_{options.model_name}_{name}")
