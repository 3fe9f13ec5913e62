"""The page of the automations of any entity, at an address below the overview."""

from __future__ import annotations

from django.apps import apps
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import URLPattern, path

from ..db.writer import alias_of
from ..queues.admin_stories import Reader
from .answers import may_view
from .entity_views import entity_view
from .reading import page_of_entity

NAME = "automation_console_overview_entity"


def entity_url(site: AdminSite) -> URLPattern:
    """Return the address of the page of any entity."""

    def view(request: HttpRequest, label: str, key: str) -> HttpResponse:
        return any_entity_view(site, request, label, key)

    return path("entity/<str:label>/<path:key>/", site.admin_view(view), name=NAME)


def any_entity_view(site: AdminSite, request: HttpRequest, label: str, key: str) -> HttpResponse:
    """Show the automations of any entity whose page the user may view, as its own admin says if it has one.

    Raises ``PermissionDenied`` and ``Http404``.
    """
    model = _model(label)
    owner = site._registry.get(model)
    if owner is not None:
        entity = owner.get_object(request, key)
        allowed = entity is not None and owner.has_view_permission(request, entity)
    else:
        allowed = may_view(request, model)
        entity = _entity(model, key) if allowed else None
    if not allowed or entity is None:
        raise PermissionDenied
    return entity_view(site, request, entity, back=page_of_entity(label, key, Reader(site.name)))


def _model(label: str) -> type[Model]:
    """Return the model of a label. Raises ``Http404``."""
    try:
        return apps.get_model(label)
    except (LookupError, ValueError) as error:
        raise Http404(f"There is no model {label!r}.") from error


def _entity(model: type[Model], key: str) -> Model | None:
    try:
        return model._base_manager.using(alias_of(model)).filter(pk=key).first()
    except (ValidationError, ValueError):  # no value of the primary key
        return None
