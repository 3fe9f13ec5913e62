"""The payload of an event: what waits and handlers receive."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from typing import Any

from ..db.writer import from_writer
from ..exceptions import DefinitionError, NotStorableError
from ..values.json_text import encode
from .changes import json_changes
from .definitions import EventDefinition, EventTrigger
from .models import Event


def payload_json(event: Event, definition: EventDefinition) -> str:
    """Return the payload for waits and handlers, as JSON."""
    payload: dict[str, Any] = {
        "event_id": event.pk,
        "event_name": event.event_name,
        "entity_id": event.entity_id,
        "event_at": event.at.isoformat() if event.at else None,
    }
    if event.trigger == EventTrigger.DELETE:
        payload |= event.payload or {}  # computed at the deletion
    else:
        payload |= extra_payload(event, definition)
    what = f"The payload of {definition!r}"
    if event.changed_values is not None:
        changes = json_changes(event.entity_type, event.changed_values)
        with suppress(NotStorableError):  # too large together: the event itself has the changes
            return encode({"changes": changes, **payload}, what)
    return encode(payload, what)


@from_writer()
def extra_payload(event: Event, definition: EventDefinition) -> dict[str, Any]:
    """Return what the payload function of the definition adds to the payload.

    Raises what that function raises, ``DefinitionError`` unless it returns a dict, and ``NotStorableError``.
    """
    if definition.payload is None:
        return {}
    takes_event = "event" in inspect.signature(definition.payload).parameters
    extra = definition.payload(event if takes_event else event.entity)
    if not isinstance(extra, dict):
        raise DefinitionError(
            f"The payload function of {definition!r} returned {extra!r}; it must return a dict of values."
        )
    found: dict[str, Any] = json.loads(encode(extra, f"The payload of {definition!r}"))
    return found
