"""Gives the pages of rows their stories, and the overview its page.

Imported by ``admin.autodiscover``, so only where the admin is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.translation import gettext

from ..agents.models import AgentRun
from ..events.models import CallbackExecution, Event
from ..queues.admin_stories import register_row_view, register_story
from ..queues.models import MutedProblem, Worker
from ..workflows.models import WorkflowRun
from . import agent_verbs, bulk_admin, event_verbs, run_verbs, start_page
from . import pages as pages
from .agenda_page import AgendaAdmin
from .agents import agent_story
from .catalogue import page as _catalogue  # noqa: F401 - it registers its page
from .desk import desk
from .desk_entities import Entities, entities_of, entity_link
from .desk_pages import may_view, page_of, words_of_overview, worker_lines
from .entity_urls import entity_url
from .entity_views import event_why
from .events import event_story
from .models import Agenda, Overview
from .problem_pages import can_change
from .problems import Problem
from .repair import repair_run
from .runs import run_story
from .story import STORY_TEMPLATE, moment_text

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Overview]
else:  # at run time Django's classes are not generic
    ModelAdmin = admin.ModelAdmin

admin.site.register(Agenda, AgendaAdmin)
register_story(WorkflowRun, run_story, STORY_TEMPLATE)
register_story(AgentRun, agent_story, STORY_TEMPLATE)
register_story(Event, event_story, STORY_TEMPLATE)
register_row_view(WorkflowRun, "repair", repair_run)
register_row_view(Event, "why", event_why, lambda *_: gettext("Why?"))
bulk_admin.register()
run_verbs.register()
start_page.register()
agent_verbs.register()
event_verbs.register()


@admin.register(Overview)
class OverviewAdmin(ModelAdmin):
    """One page: what is broken, due, planned and paused. Problems of rows that the user may not view are left out."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        return [entity_url(self.admin_site), *super().get_urls()[:1]]  # the list is the only other page

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        readable = [model for model in (WorkflowRun, CallbackExecution, AgentRun) if may_view(request, model)]
        found = desk(timezone.now(), readable)
        seen = [each for each in found.problems if may_view(request, each.model)]
        leased = [(row.model, row.pk) for line in found.working for row in line.shown if may_view(request, row.model)]
        entities = entities_of([*((each.model, each.newest_pk) for each in seen), *leased])
        problems_url = page_of(self.admin_site.name, MutedProblem, request)
        shown = [self._shown(request, each, entities, problems_url) for each in seen]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": gettext("Automation: overview"),
            "desk": found,
            "problems": shown,
            "working": worker_lines(self.admin_site, request, found.working, entities),
            "workers_url": page_of(self.admin_site.name, Worker, request),
            "words": words_of_overview(),
        }
        return TemplateResponse(request, "automation_console/desk.html", context)

    def _shown(self, request: HttpRequest, problem: Problem, entities: Entities, problems_url: str) -> dict[str, Any]:
        about = entities.get((problem.model, problem.newest_pk))
        options = problem.model._meta
        page = f"{self.admin_site.name}:{options.app_label}_{options.model_name}"
        query = {"status__exact": problem.state} if problem.model is not Event else {}
        try:
            rows, newest = reverse(f"{page}_changelist"), reverse(f"{page}_change", args=[problem.newest_pk])
        except NoReverseMatch:  # the site of the project leaves the page out
            rows = newest = ""
        return {
            "kind": str(options.verbose_name),
            "name": problem.name,
            "state": problem.state,
            "error": problem.error,
            "count": f"{problem.count}+" if problem.is_capped else str(problem.count),
            "first": "" if problem.first_at is None else moment_text(problem.first_at),
            "last": "" if problem.last_at is None else moment_text(problem.last_at),
            "rows": f"{rows}?{urlencode({**query, 'q': problem.name})}" if rows else "",
            "newest": newest,
            "command": problem.command,
            "entity": None if about is None else entity_link(self.admin_site, request, *about),
            "group": f"{problems_url}?{urlencode({'problem': problem.key})}" if problems_url else "",
            "may_act": can_change(self.admin_site, request, problem),
        }
