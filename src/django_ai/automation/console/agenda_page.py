"""The agenda: what is planned today, tomorrow and in the next days, of all rows, on one page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..events.upcoming import Upcoming
from ..queues.admin_stories import Reader
from .agenda import planned_between
from .models import Agenda
from .reading import page_of, page_of_entity
from .story import moment_text

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

    ModelAdmin = admin.ModelAdmin[Agenda]
else:  # at run time Django's classes are not generic
    ModelAdmin = admin.ModelAdmin

MAX_PLANNED = 200
PERIODS: dict[str, StrOrPromise] = {
    "today": _("Today"),
    "tomorrow": _("Tomorrow"),
    "week": _("The next seven days"),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is planned, with the pages of its row and of its entity."""

    at: str
    kind: str
    name: str
    reason: str
    url: str
    entity: str
    entity_url: str


def bounds(period: str, now: datetime) -> tuple[datetime | None, datetime]:
    """Return the start and the end of a period in the current time zone. None: with what is overdue."""
    local = timezone.localtime(now) if timezone.is_aware(now) else now
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)

    def day(number: int) -> datetime:
        return midnight + timedelta(days=number)  # on the wall clock, so that a day may have 23 or 25 hours

    if period == "tomorrow":
        return day(1), day(2)
    return (None, day(1)) if period == "today" else (now, day(8))


class AgendaAdmin(ModelAdmin):
    """One page: what is planned in a period, the earliest first, for what the user may view."""

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
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        period = request.GET.get("period", "")
        period = period if period in PERIODS else "today"
        now, reader = timezone.now(), Reader(self.admin_site.name)
        since, until = bounds(period, now)
        found = planned_between(since, until, now, MAX_PLANNED)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": gettext("Automation: agenda"),
            "periods": [(name, text, name == period) for name, text in PERIODS.items()],
            "lines": [_line(each, reader) for each in found.planned if _may_view(request, each.row)],
            "is_cut": found.is_cut,
            "read_at": moment_text(now),
            "words": _words(),
        }
        return TemplateResponse(request, "automation_console/agenda.html", context)


def _line(planned: Upcoming, reader: Reader) -> Line:
    row = planned.row
    kind, key = str(getattr(row, "entity_type", "")), str(getattr(row, "entity_id", ""))
    return Line(
        at="" if planned.at is None else moment_text(planned.at),
        kind=str(row._meta.verbose_name),
        name=planned.name,
        reason=planned.reason,
        url=page_of(row, reader),
        entity=f"{kind} {key}".strip(),
        entity_url=page_of_entity(kind, key, reader),
    )


def _may_view(request: HttpRequest, row: models.Model) -> bool:
    options = row._meta
    return bool(request.user.has_perm(f"{options.app_label}.{get_permission_codename('view', options)}"))


def _words() -> dict[str, str]:
    return {
        "periods": gettext("Period"),
        "read": gettext("as of"),
        "at": gettext("When"),
        "kind": gettext("Kind"),
        "name": gettext("Name"),
        "entity": gettext("Entity"),
        "reason": gettext("Why then"),
        "none": gettext("Nothing is planned."),
        "cut": gettext("Later entries are not shown."),
        "what": gettext("Planned"),
    }
