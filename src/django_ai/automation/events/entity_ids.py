"""Primary keys of entities as the strings that events store."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connections, models, router
from django.db.models import F, Value
from django.db.models.functions import Cast, Concat, Substr

from ..exceptions import DefinitionError

MAX_ENTITY_ID = 255


def entity_id_of(model: type[models.Model], pk: Any) -> str:
    """Return ``pk`` as the string that is stored: one for each row, also for a UUID in upper case or for a Decimal with
    fewer places. Raises ``DefinitionError`` for a string that is longer than the column."""
    field: Any = model._meta.pk
    while field.is_relation:
        field = field.target_field
    with contextlib.suppress(ValidationError, TypeError):  # an expression, whose value only the database knows
        pk = field.to_python(pk)
    if isinstance(pk, Decimal) and isinstance(field, models.DecimalField) and pk.is_finite():
        pk = f"{pk:.{field.decimal_places}f}"
    text = str(pk)
    if len(text) > MAX_ENTITY_ID:
        raise DefinitionError(
            f"{model._meta.label} declares events, and the primary key {text[:40]!r}... has {len(text)} characters. "
            f"A model with events needs primary keys of at most {MAX_ENTITY_ID} characters."
        )
    return text


def stored_entity_id(model: type[models.Model]) -> Any:
    """Return a database expression for what ``entity_id_of`` stores of the primary key; None: only Python knows it."""
    field: Any = model._meta.pk
    while field.is_relation:
        field = field.target_field
    features = connections[router.db_for_write(model)].features
    if isinstance(field, models.UUIDField) and not features.has_native_uuid_field:
        parts = [Substr("pk", start, length) for start, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))]
        dashed = [each for part in parts for each in (Value("-"), part)][1:]
        return Concat(*dashed, output_field=models.CharField())
    if isinstance(field, models.IntegerField | models.UUIDField):
        return Cast("pk", models.CharField(max_length=36))
    return F("pk") if isinstance(field, models.CharField | models.TextField) else None
