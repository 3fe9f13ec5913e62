"""``{% automation_panel entity %}``: the box with the automations of an entity, for templates of the project."""

from __future__ import annotations

from typing import Any

from django import template
from django.db.models import Model
from django.urls import NoReverseMatch, reverse

from ...events.models import Event
from ..answers import may_view
from ..entity_admin import box_of

register = template.Library()


@register.inclusion_tag("automation_console/panel.html", takes_context=True)
def automation_panel(context: template.Context, entity: Model, site: str = "admin") -> dict[str, Any]:
    """Draw what is planned next for an entity, with a link to everything.

    It draws nothing for users who may not view events, and for requests without a user. The page that it links to has
    the style sheet ``automation_console/console.css``.

    Args:
        context: The context of the template, which has the ``request``.
        entity: A saved model instance.
        site: The name of the admin site. Default: "admin".

    Returns:
        What the template of the box shows.

    Example:
        In a template of the project::

            {% load automation_console %}
            {% automation_panel reservation %}
    """
    request = context.get("request")
    if request is None or not hasattr(request, "user") or getattr(entity, "pk", None) is None:
        return {}
    if not may_view(request, Event):
        return {}
    return {"automation_box": box_of(request, entity, _address(entity, site))}


def _address(entity: Model, site: str) -> str:
    label = entity._meta.label_lower
    try:
        return reverse(f"{site}:automation_console_overview_entity", args=[label, entity.pk])
    except NoReverseMatch:  # the site of the project has no console
        return ""
