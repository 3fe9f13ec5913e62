"""The address of the page that starts a workflow by hand, for those who may use it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite

PAGE = "automation_workflows_workflowrun_start"
START = "automation_workflows.start_workflowrun"
VIEW = "automation_workflows.view_workflowrun"


def start_url(site: AdminSite, request: HttpRequest, workflow: str = "") -> str:
    """Return the address of the page; empty if the user may not start workflows, or there is no such page."""
    if not (request.user.has_perm(START) and request.user.has_perm(VIEW)):
        return ""
    try:
        address = reverse(f"{site.name}:{PAGE}")
    except NoReverseMatch:  # the site of the project leaves the page out
        return ""
    return f"{address}?{urlencode({'workflow': workflow})}" if workflow else address
