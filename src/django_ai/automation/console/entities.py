"""``Entity``: what rows are about, also if it was deleted or its model was removed."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models
from django.db.models import Q

from ..events.declarations import concrete_ancestors
from ..events.models import rows_of_entity


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity. ``label`` and ``key``: as rows store them. ``row``: the entity, if it exists."""

    label: str
    key: str
    model: type[models.Model] | None = None
    row: models.Model | None = None

    def __str__(self) -> str:
        return f"{self.label} {self.key}"

    def condition(self, path: str = "") -> Q:
        """Return the condition for rows about it. ``path``: the lookup of the row with the entity's columns."""
        if self.row is not None:
            return rows_of_entity(self.row, path)
        labels = {self.label}
        if self.model is not None:
            labels |= {parent._meta.label_lower for parent in concrete_ancestors(self.model)}
        return Q(**{f"{path}entity_type__in": sorted(labels), f"{path}entity_id": self.key})
