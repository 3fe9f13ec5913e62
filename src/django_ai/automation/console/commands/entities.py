"""The entity that a command is given, as ``shop.Order:12``."""

from __future__ import annotations

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q

from ...agents.models import AgentRun
from ...db.writer import alias_of
from ...events.declarations import declaring_models
from ...events.entity_ids import entity_id_of
from ...events.models import Event
from ...workflows.models import WorkflowRun
from ..entities import Entity
from .names import hint
from .output import Usage


def find_entity(given: str) -> Entity:
    """Return the entity that ``given`` names. Raises ``Usage``, with the nearest model."""
    label, separator, key = given.partition(":")
    if not separator or not key or label.count(".") != 1:
        raise Usage(f"{given!r}: name an entity by its model and primary key, as in shop.Order:12.")
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        found = Q(entity_type=label.lower(), entity_id=key)
        if any(each._base_manager.filter(found).exists() for each in (Event, WorkflowRun, AgentRun)):
            return Entity(label.lower(), key)
        known = [each._meta.label for each in declaring_models()] or [each._meta.label for each in apps.get_models()]
        raise Usage(f"There is no model {label!r}. {hint(label, known)}") from None
    model = model._meta.concrete_model or model
    try:
        pk = model._meta.pk.to_python(key)
    except ValidationError:
        raise Usage(f"{given!r}: {key!r} is no primary key of {model._meta.label}.") from None
    # Managers of the model may filter, so none is used.
    row = models.QuerySet(model, using=alias_of(model)).filter(pk=pk).first()
    return Entity(model._meta.label_lower, entity_id_of(model, pk), model, row)
