"""What the page of the overview shows of what ``desk`` has read: links that the reader may follow, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.auth import get_permission_codename
from django.db import models
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext

from ..queues.lane_counts import LeasedRow
from .desk import WorkerLine


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


def worker_lines(site: str, request: HttpRequest, working: Sequence[WorkerLine]) -> list[dict[str, Any]]:
    """Return the workers with links to what they perform."""
    return [
        {
            "name": line.name,
            "queues": line.queues.replace(",", ", ") or gettext("all"),
            "count": len(line.leases),
            "rows": [_leased(site, request, each) for each in line.shown],
            "rest": line.rest,
        }
        for line in working
    ]


def _leased(site: str, request: HttpRequest, row: LeasedRow) -> dict[str, str]:
    return {
        "text": f"{row.model._meta.verbose_name} #{row.pk}",
        "url": page_of(site, row.model, request, row.pk),
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
