"""The page of queues and limits, the links to all pages of the console, and the stories of what they list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext

from ..agents.models import HandlerExecution
from ..events.models import CallbackExecution, EventClaim, Schedule
from ..queues.admin_stories import Reader, register_story
from ..queues.models import Action, Limiter, Pause, Worker
from ..workflows.models import Signal
from .executions import callback_story, handler_story, signal_story
from .holders import claim_story, limiter_story, worker_story
from .models import Agenda, Queues
from .queues_page import queues_desk
from .schedules import schedule_story
from .story import STORY_TEMPLATE, moment_text

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:  # at run time Django's classes are not generic
    ModelAdmin = admin.ModelAdmin

register_story(CallbackExecution, callback_story, STORY_TEMPLATE)
register_story(HandlerExecution, handler_story, STORY_TEMPLATE)
register_story(Signal, signal_story, STORY_TEMPLATE)
register_story(Schedule, schedule_story, STORY_TEMPLATE)
register_story(Limiter, limiter_story, STORY_TEMPLATE)
register_story(EventClaim, claim_story, STORY_TEMPLATE)
register_story(Worker, worker_story, STORY_TEMPLATE)

LINKED: tuple[type[models.Model], ...] = (Agenda, Queues, Worker, Schedule, EventClaim, Signal, Pause, Action)
"""The pages that the overview links, in this order."""


def may_view(request: HttpRequest, model: type[models.Model]) -> bool:
    """Return whether the user may view rows of ``model``."""
    options = model._meta
    return request.user.has_perm(f"{options.app_label}.{get_permission_codename('view', options)}")


def page_links(request: HttpRequest, site: str) -> list[tuple[str, str]]:
    """Return the titles and addresses of the pages that the user may open."""
    found = []
    for model in LINKED:
        options = model._meta
        if may_view(request, model):
            try:
                address = reverse(f"{site}:{options.app_label}_{options.model_name}_changelist")
            except NoReverseMatch:  # the site of the project leaves the page out
                continue
            found.append((capfirst(str(options.verbose_name_plural)), address))
    return found


@admin.register(Queues)
class QueuesAdmin(ModelAdmin):
    """One page: what is due in each queue and since when, and which rows hold and wait for the slots of limits."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        return super().get_urls()[:1]  # the list is the only page

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        now, sees_limits = timezone.now(), may_view(request, Limiter)
        sees_values = request.user.has_perm("automation_queues.view_data_limiter")
        reader = Reader(self.admin_site.name, sees_values)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": gettext("Automation: queues and limits"),
            "desk": queues_desk(reader, now, with_limits=sees_limits),
            "sees_limits": sees_limits,
            "read_at": moment_text(now),
            "words": _words(),
        }
        return TemplateResponse(request, "automation_console/queues.html", context)


def _words() -> dict[str, str]:
    return {
        "read": gettext("as of"),
        "queues": gettext("Queues"),
        "paused": gettext("Paused"),
        "queue": gettext("Queue"),
        "kind": gettext("Kind"),
        "due": gettext("Due now"),
        "age": gettext("Oldest since"),
        "leased": gettext("Leased now"),
        "workers": gettext("Workers that poll it"),
        "stuck": gettext("no progress"),
        "limits": gettext("Limits"),
        "no_limits": gettext("No limit is in use."),
        "limit": gettext("Limit"),
        "held": gettext("Rows that hold it"),
        "queued": gettext("Rows that wait"),
        "cut": gettext("Older entries are not shown."),
        "more": gettext("and more"),
    }
