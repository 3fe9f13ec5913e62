"""Which entities the rows are about that the overview names: one query, whatever the number of rows and kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import models
from django.db.models import IntegerField, Value
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from ..db.writer import alias_of
from .answers import may_view
from .entity_urls import NAME

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite

Row = tuple[type[models.Model], int]
Entities = dict[Row, tuple[str, str]]


def entities_of(rows: Iterable[Row]) -> Entities:
    """Return the label and the key of the entity that each row is about; rows that are about none are left out."""
    wanted: dict[type[models.Model], set[int]] = {}
    for model, pk in rows:
        wanted.setdefault(model, set()).add(pk)
    paths = [(model, path) for model in wanted if (path := _path(model)) is not None]
    queries: list[Any] = [
        model._base_manager.using(alias_of(model))
        .filter(pk__in=wanted[model])
        .annotate(number=Value(number, output_field=IntegerField()))
        .values_list("number", "pk", f"{path}entity_type", f"{path}entity_id")
        for number, (model, path) in enumerate(paths)
    ]
    about = queries[0].union(*queries[1:], all=True) if queries else []
    return {(paths[number][0], pk): (label, key) for number, pk, label, key in about if label and key}


def _path(model: type[models.Model]) -> str | None:
    """Return the lookup of the row that has the columns of the entity; None: there is none."""
    names = {field.name for field in model._meta.fields}
    if "entity_type" in names:
        return ""
    return next((f"{name}__" for name in ("event", "run") if name in names), None)


def entity_link(site: AdminSite, request: HttpRequest, label: str, key: str) -> dict[str, str]:
    """Return the text and the address of the page *Automations* of an entity; an empty address: the user may not view
    it, or there is no such page."""
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):  # the model was removed
        return {"text": f"{label} {key}", "url": ""}
    owner = site._registry.get(model)
    allowed = may_view(request, model) if owner is None else owner.has_view_permission(request)
    text = f"{model._meta.verbose_name} {key}"
    try:
        return {"text": text, "url": reverse(f"{site.name}:{NAME}", args=[label, key]) if allowed else ""}
    except NoReverseMatch:
        return {"text": text, "url": ""}
