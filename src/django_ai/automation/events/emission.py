"""``emit``: record an event that belongs to no model, in the caller's transaction.

The row is written, planned and performed like the event of an entity: an immediate event occurs after the commit
(``commit_batch``), a later one at its date. Under a key it is recorded once: the key is the ``active_key`` of the row,
and an insert that conflicts with it inserts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from django.db import transaction
from django.utils import timezone
from pydantic import BaseModel, ValidationError

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..exceptions import AutomationError, DefinitionError, UnknownEventError
from ..queues.causation import cause_now
from ..state.contexts import reasons
from ..values.clock import aware
from ..values.json_text import encode, storable
from .declarations import sources_of
from .definitions import MAX_NAMESPACE, EventDefinition
from .entity_ids import MAX_ENTITY_ID
from .free_events import FreeEvent, all_free_events, free_event_named
from .models import Event, free_key
from .names import MAX_NAME, is_pattern
from .recording.event_row import set_timer
from .recording.follow_up import follow_up

__all__ = ["emit"]

MAX_KEY = MAX_ENTITY_ID
MAX_EMIT_ATTEMPTS = 20
"""Attempts to insert or read the row of a key that concurrent transactions change."""


def emit(
    event: str | FreeEvent,
    payload: Mapping[str, Any] | BaseModel | None = None,
    *,
    key: str | None = None,
    namespace: str | None = None,
    at: datetime | None = None,
) -> Event:
    """Record an event that belongs to no model: it occurs after the commit, or at a date.

    The row is inserted in the caller's transaction: in a view, step or handler it commits with everything else that
    they write, or not at all. The automation tables must be in the same database. Where no transaction is open (a step
    with ``atomic=False``), it is committed before ``emit`` returns; give a ``key``, because such a step may run again.

    Args:
        event: The event, as a ``FreeEvent`` or its name. The name of a family is given in full:
            ``"stripe:charge.failed"``.
        payload: What subscribers read in ``event.payload``, a dict of JSON values or an instance of a Pydantic model.
            Default: an empty dict.
        key: A string of 1 to 255 characters. The event is recorded once for each name, namespace and key, however often
            and by however many processes it is emitted. A key is remembered for as long as the row is kept
            (``RETENTION_EVENTS``), and is free again after ``cancel()``. Default: each call records an event.
        namespace: A string of 1 to 100 characters: subscribers that name a namespace get only the events in it.
            Default: no namespace.
        at: When it occurs, as a datetime with a time zone; one in the past is due at once. Default: after the commit.

    Returns:
        The ``Event``. If the key was used before, the one that was recorded then, unchanged.

    Raises:
        UnknownEventError: If no ``FreeEvent`` has this name.
        DefinitionError: If an argument is invalid.
        pydantic.ValidationError: If the payload does not fit the model that the ``FreeEvent`` names.
        NotStorableError: If the payload cannot be stored as JSON.
        NaiveDatetimeError: If ``at`` has no time zone.
        AutomationError: If the transaction does not see the row that has the key, because its isolation level is
            REPEATABLE READ or higher.

    Example:
        Book a payment once, however often the bank reports it::

            with transaction.atomic():
                transfer = Transfer.objects.create(reference=reference, cents=cents)
                emit(PAYMENT_RECEIVED, {"order_id": 7, "cents": cents}, key=reference)
    """
    definition, name = _declared(event)
    what = f"emit({name!r})"
    _check(what, key, namespace)
    values = _payload(definition, payload, what)
    now = timezone.now()
    caused_by, depth = cause_now()
    row = Event(
        entity_type=definition.label,
        entity_id=key or "",
        event_name=name,
        declared_as=definition.name,
        namespace=namespace or "",
        event_created_at=now,
        at=now if at is None else aware(at, f"{what}: at"),
        armed=True,
        payload=values,
        active_key=None if key is None else free_key(name, namespace or "", key),
        caused_by=caused_by,
        depth=depth,
    )
    set_timer(row, definition, now)
    with transaction.atomic(using=alias_of(Event), savepoint=False):
        return _insert_once(row, now, what)


def _insert_once(row: Event, now: datetime, what: str) -> Event:
    """Insert ``row`` and return it, or return the row that has its key."""
    for _ in range(MAX_EMIT_ATTEMPTS):
        if insert_ignoring(Event, [row], key="active_key"):
            row._state.adding, row._state.db = False, alias_of(Event)
            follow_up([row], now, fresh=True)
            return row
        found = Event.objects.filter(active_key=row.active_key).first()
        if found is not None:
            return found
        # Cancelled or pruned since the insert was refused: try again.
    raise AutomationError(
        f"{what}: an event with the key {row.key!r} was recorded by another transaction, and this one does not see it. "
        "Use the isolation level READ COMMITTED (Django's default), or emit it again in a new transaction."
    )


def _declared(event: Any) -> tuple[FreeEvent, str]:
    """Return the declaration of the event and its full name."""
    if isinstance(event, FreeEvent):
        if event.is_family:
            raise DefinitionError(
                f"emit({event.name!r}): this declares a family of events. Give the full name of one, as a string with "
                "something in the place of '*'."
            )
        return event, event.name
    if isinstance(event, EventDefinition):
        raise DefinitionError(f"emit({event.name!r}): this event occurs when its model is saved. Emit a FreeEvent.")
    if not isinstance(event, str) or not event.strip() or len(event) > MAX_NAME or is_pattern(event):
        raise DefinitionError(
            f"emit({event!r}): give a FreeEvent, or its name as a string of 1 to {MAX_NAME} characters without '*'."
        )
    found = free_event_named(event)
    if found is None or storable(event) != event:
        raise UnknownEventError(_unknown(event))
    return found, event


def _unknown(name: str) -> str:
    if owners := {source.owner._meta.label for source in sources_of(name)}:
        return f"emit({name!r}): this event occurs when {' or '.join(sorted(owners))} is saved. Emit a FreeEvent."
    near = get_close_matches(name, [each.name for each in all_free_events()], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Declare it, as in X = FreeEvent({name!r})."
    return f"emit({name!r}): no FreeEvent has this name.{hint}"


def _check(what: str, key: Any, namespace: Any) -> None:
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= MAX_KEY and storable(key) == key):
        raise DefinitionError(
            f"{what}: key={key!r:.80} must be a string of 1 to {MAX_KEY} characters without NUL or surrogates, or None."
        )
    is_string = isinstance(namespace, str) and 0 < len(namespace) <= MAX_NAMESPACE
    if namespace is not None and not (is_string and storable(namespace) == namespace):
        raise DefinitionError(
            f"{what}: namespace={namespace!r:.80} must be a string of 1 to {MAX_NAMESPACE} characters, or None."
        )


def _payload(definition: FreeEvent, payload: Any, what: str) -> dict[str, Any]:
    """Return the payload as JSON values, checked by the schema of the event if it has one."""
    values: Any = {} if payload is None else payload
    if not isinstance(values, Mapping | BaseModel):
        raise DefinitionError(f"{what}: payload={payload!r:.80} must be a dict, or an instance of a Pydantic model.")
    if definition.schema is not None and not isinstance(values, definition.schema):
        given = values.model_dump() if isinstance(values, BaseModel) else dict(values)
        try:
            values = definition.schema.model_validate(given)
        except ValidationError as error:
            error.add_note(f"{what}: the payload does not fit {definition.schema.__qualname__}: {reasons(error)}.")
            raise
    plain = values.model_dump(mode="json", by_alias=False) if isinstance(values, BaseModel) else dict(values)
    found: dict[str, Any] = json.loads(encode(plain, f"The payload of {what}"))
    return found
