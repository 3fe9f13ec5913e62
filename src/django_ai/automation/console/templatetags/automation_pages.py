"""The links to the pages of the console that the user may open, for the top of a page."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.translation import gettext

from ..pages import page_links

register = template.Library()


@register.inclusion_tag("automation_console/pages.html", takes_context=True)
def automation_pages(context: template.Context) -> dict[str, Any]:
    """Draw the links as a list."""
    request = context["request"]
    return {"pages": page_links(request, request.resolver_match.namespace or "admin"), "title": gettext("Pages")}
