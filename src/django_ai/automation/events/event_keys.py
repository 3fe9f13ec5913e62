"""Keys that are read from an event: expressions on its entity (``instance``) and on its ``payload``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.db import models

from .expressions import EXPRESSION, check_expressions, path_of
from .matching.typed_values import canonical

if TYPE_CHECKING:
    from .models import Event

ENTITY, PAYLOAD = "instance", "payload"


def check_event_key(template: str | None, what: str) -> None:
    """Raise ``DefinitionError`` unless each expression in ``template`` reads the entity or the payload of an event."""
    if template is not None:
        check_expressions(template, f"{what}: key", ENTITY, PAYLOAD)


def payload_paths(template: str) -> list[str]:
    """Return the path of each expression that reads the payload."""
    return ["__".join(path) for each in EXPRESSION.findall(template) if (path := path_of(each, PAYLOAD)) is not None]


def entity_attributes(template: str) -> list[str]:
    """Return the first attribute of each expression that reads the entity."""
    return [path[0] for each in EXPRESSION.findall(template) if (path := path_of(each, ENTITY)) is not None]


def value_of(template: str | None, event: Event) -> str:
    """Return the value of a key for ``event``, typed and as a string; empty without a key.

    Raises what the attributes of its entity raise.
    """
    if template is None:
        return ""
    alone = EXPRESSION.fullmatch(template.strip())
    if alone:
        return canonical(_read(event, alone.group(1)))
    return EXPRESSION.sub(lambda found: str(_read(event, found.group(1))), template)


def _read(event: Event, expression: str) -> Any:
    path = path_of(expression, ENTITY)
    value: Any = event.entity if path is not None else event.payload
    for name in path or path_of(expression, PAYLOAD) or ():
        if value is None:
            return None  # deleted without a snapshot, or an event without a payload
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name)
    return value.pk if isinstance(value, models.Model) else value
