"""What the page of the overview shows of what ``desk`` has read: links that the reader may follow, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_permission_codename
from django.db import models
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext

from ..queues.admin_leases import span_text
from ..queues.lane_counts import LeasedRow
from .desk import WorkerLine
from .desk_entities import Entities, entity_link

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite


def may_view(request: HttpRequest, model: type[models.Model]) -> bool:
    """Return whether the user may view rows of ``model``."""
    options = model._meta
    return bool(request.user.has_perm(f"{options.app_label}.{get_permission_codename('view', options)}"))


def page_of(site: str, model: type[models.Model], request: HttpRequest, pk: int | None = None) -> str:
    """Return the address of the list of ``model``, or of one row; empty if the user may not view it, or there is no
    such page."""
    if not may_view(request, model):
        return ""
    name = f"{site}:{model._meta.app_label}_{model._meta.model_name}"
    try:
        return reverse(f"{name}_changelist") if pk is None else reverse(f"{name}_change", args=[pk])
    except NoReverseMatch:
        return ""


def worker_lines(
    site: AdminSite, request: HttpRequest, working: Sequence[WorkerLine], entities: Entities
) -> list[dict[str, Any]]:
    """Return the workers with links to what they perform, since when and until when they have leased it, and which
    entities it is about."""
    return [
        {
            "name": line.name,
            "queues": line.queues.replace(",", ", ") or gettext("all"),
            "count": len(line.leases),
            "span": span_text([row.since for row in line.leases], [row.until for row in line.leases])
            if line.leases
            else "",
            "rows": [_leased(site, request, each, entities) for each in line.shown],
            "rest": line.rest,
        }
        for line in working
    ]


def _leased(site: AdminSite, request: HttpRequest, row: LeasedRow, entities: Entities) -> dict[str, Any]:
    about = entities.get((row.model, row.pk)) if may_view(request, row.model) else None
    return {
        "text": f"{row.model._meta.verbose_name} #{row.pk}",
        "url": page_of(site.name, row.model, request, row.pk),
        "entity": None if about is None else entity_link(site, request, *about),
    }


def words_of_overview() -> dict[str, str]:
    """Return the labels of the page."""
    return {
        "read": gettext("as of"),
        "problems": gettext("Problems"),
        "no_problems": gettext("Nothing is parked, and nothing has failed."),
        "due": gettext("Due now"),
        "no_due": gettext("Nothing is due."),
        "planned": gettext("Due in the next hour"),
        "no_planned": gettext("Nothing is planned."),
        "paused": gettext("Paused"),
        "kind": gettext("Kind"),
        "queue": gettext("Queue"),
        "count": gettext("Rows"),
        "age": gettext("Oldest since"),
        "name": gettext("Name"),
        "error": gettext("Error"),
        "first": gettext("First"),
        "last": gettext("Last"),
        "newest": gettext("newest"),
        "newest_about": gettext("the newest is about"),
        "act": gettext("Resume, cancel or mute"),
        "open": gettext("Show among the problems"),
        "command": gettext("Command"),
        "activity": gettext("The last 24 hours"),
        "done": gettext("Done"),
        "failed": gettext("Failed"),
        "late": gettext("Started late"),
        "by_hour": gettext("As a table, by hour"),
        "hour": gettext("Hour"),
        "waiting": gettext("Waiting"),
        "no_waiting": gettext("Nothing waits."),
        "workers": gettext("Workers"),
        "worker": gettext("Worker"),
        "queues": gettext("Queues"),
        "leased": gettext("Performs now"),
        "no_workers": gettext("No worker is alive."),
        "slow": gettext("Slow"),
        "failing": gettext("Failing"),
        "median": gettext("Median"),
        "slowest": gettext("Slowest"),
        "failed_of": gettext("Failed"),
        "nothing_ran": gettext("Nothing has run, or you may not see what."),
        "nothing_failed": gettext("Nothing has failed."),
    }
