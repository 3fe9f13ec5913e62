"""``EventDefinition``, which a model lists in its ``events``. It is immutable, and invalid arguments raise at import.

This module imports no models, because models modules import it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeAlias

from django.db import models

from ..conf import conf
from ..exceptions import DefinitionError
from ..queues.async_code import awaited
from ..values.callables import check_runnable, check_synchronous
from .names import MAX_NAME, check_template, is_template, render
from .transitions import Transition
from .zones import TimeZone, checked_zone, zone_name

Condition = Callable[[Any], bool | Awaitable[bool]]
Payload = Callable[[Any], dict[str, Any]]
Namespace = str | Callable[[Any], str | None]


class EventTrigger(StrEnum):
    """A kind of write that makes an event occur, each time that such a write is committed.

    Attributes:
        CREATE: The entity is inserted.
        UPDATE: The entity is updated. With ``watch_fields``: only if one of these fields has changed.
        DELETE: The entity is deleted. ``event.entity`` is then a snapshot.

    Example:
        Record each change of a price::

            EventDefinition("price_changed", trigger=EventTrigger.UPDATE, watch_fields=["price"])
    """

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class EventDefinition:
    """Declare an event of a model, in the model's ``events`` list.

    Without ``date_field`` the event is *immediate*: it occurs after the commit of the save that makes its condition
    true. With ``date_field`` it is *scheduled*: it occurs at that date. The event's row is written in the transaction
    that saves the entity: both are committed, or neither.

    An event occurs once for each entity. ``trigger``, ``watch_fields``, ``was``, ``becomes`` and ``rearm`` ask for
    more; each further occurrence is a row of its own.

    Args:
        name: Name of the event, a string of 1 to 200 characters. It may be a template of the entity's fields:
            ``"parcel_lost:{{ instance.pk }}"``.
        condition: A function that takes the entity and returns a bool; the event occurs only while that is true. It may
            be ``async def``. Default: always.
        date_field: Name of a date or datetime field of the model, as a string. Default: the event is immediate.
        timezone: The time zone of the entity, for a scheduled event: a path of fields to its name (``"hotel__tz"``), a
            fixed zone (a ``ZoneInfo``, or its name with a slash: ``"Europe/Berlin"``), or a function that takes the
            entity and returns one. A ``relativedelta`` offset counts on the wall clock of that zone, and a date without
            a time is its midnight. A name that is empty or None means ``TIME_ZONE``. Default: ``TIME_ZONE``.
        payload: A function that returns a dict for the runs that wait for the event. It takes the entity, or the event
            if its parameter is called ``event``. Default: nothing.
        grace: How long after its date a scheduled event may still occur when its condition turns true, as a timedelta
            of zero or more. Default ``AUTOMATION["GRACE"]`` (24 h).
        trigger: One ``EventTrigger`` or several; an immediate event then occurs at each such write for which its
            condition is true. All saves of one transaction are one write. Default: the event occurs once.
        watch_fields: Names of fields, as a list of strings; the event then occurs at each update that changes one of
            them, and ``event.changes`` has the old and new values. Default: none.
        was: What fields were before the transaction, as a dict of names and values: a value, a list of values, or a
            function of the value that returns a bool. The event then occurs each time a committed write changes the
            entity from that to what ``becomes`` says; without ``becomes``, to anything else. ``event.changes`` has the
            old and new values. Default: anything that is not what ``becomes`` says.
        becomes: What fields are at the end of the transaction, as a dict like ``was``. Without ``was``, a creation
            counts, too. Default: anything that is not what ``was`` says.
        rearm: Let the event occur again after its condition has turned false and true again, or, if it is scheduled,
            when its date moves after it has occurred. Default False.
        namespace: A string of 1 to 100 characters, or a function that takes the entity and returns one (or None).
            Subscribers that name a namespace get only the events in it. Default: no namespace.
        existing: What to do about rows that are older than this definition. ``"baseline"`` (the default): what was
            already true before the first save that the definition sees is recorded and does not occur. ``"fire"``: it
            occurs at that save.
        snapshot_fields: Names of the fields that are kept when the entity is deleted, as a list of strings; ``[]``
            keeps the primary key alone. Default: every column. The events of one entity share one snapshot.
        capture: Also hear writes that send no signals, at once: ``bulk_create``, ``QuerySet.update`` and ``delete``,
            raw SQL, other programs. Database triggers write the primary keys to an outbox, which workers perform. The
            triggers are installed by a migration: ``manage.py automation_capture`` writes it. Default:
            ``AUTOMATION["CAPTURE"]`` (False).

    Raises:
        DefinitionError: At import, if an argument is invalid or two arguments contradict each other.

    Example:
        An invoice has an event when it is paid, and one at its due date while it is not::

            class Invoice(models.Model):
                due_on = models.DateTimeField()
                paid = models.BooleanField(default=False)

                events = [
                    EventDefinition("invoice_paid", lambda invoice: invoice.paid),
                    EventDefinition("invoice_overdue", lambda invoice: not invoice.paid, date_field="due_on"),
                ]
    """

    def __init__(
        self,
        name: str,
        condition: Condition | None = None,
        *,
        date_field: str | None = None,
        timezone: TimeZone | None = None,
        payload: Payload | None = None,
        grace: timedelta | None = None,
        trigger: EventTrigger | str | Iterable[EventTrigger | str] | None = None,
        watch_fields: Iterable[str] | None = None,
        was: Mapping[str, Any] | None = None,
        becomes: Mapping[str, Any] | None = None,
        rearm: bool = False,
        namespace: Namespace | None = None,
        existing: str = "baseline",
        snapshot_fields: Iterable[str] | None = None,
        capture: bool | None = None,
    ) -> None:
        what = f"{type(self).__name__}({name!r})"
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise DefinitionError(f"{what}: the name must be a string of 1 to {MAX_NAME} characters.")
        self._check_name(name, what)
        for title, function in (("condition", condition), ("payload", payload)):
            if function is not None and not callable(function):
                raise DefinitionError(f"{what}: {title}={function!r} must be a function of the entity.")
        for title, given in (("condition", condition), ("payload", payload), ("namespace", namespace)):
            if callable(given):
                check = check_runnable if title == "condition" else check_synchronous
                check(given, f"{what}: {title}")
        if date_field is not None and (not isinstance(date_field, str) or not date_field):
            raise DefinitionError(f"{what}: date_field={date_field!r} must be the name of a date field, as a string.")
        if timezone is not None and date_field is None:
            raise DefinitionError(f"{what}: timezone= is for scheduled events. Add date_field=, or remove timezone=.")
        if grace is not None and (not isinstance(grace, timedelta) or grace < timedelta(0)):
            raise DefinitionError(f"{what}: grace={grace!r} must be a timedelta of zero or more.")
        if grace is not None and date_field is None:
            raise DefinitionError(f"{what}: grace= is for scheduled events. Add date_field=, or remove grace=.")
        is_string = isinstance(namespace, str) and 0 < len(namespace) <= MAX_NAMESPACE
        if namespace is not None and not callable(namespace) and not is_string:
            raise DefinitionError(
                f"{what}: namespace={namespace!r} must be a string of 1 to {MAX_NAMESPACE} characters, "
                "or a function of the entity that returns one."
            )
        if not isinstance(rearm, bool):
            raise DefinitionError(f"{what}: rearm={rearm!r} must be True or False.")
        if capture is not None and not isinstance(capture, bool):
            raise DefinitionError(f"{what}: capture={capture!r} must be True or False.")
        if existing not in ("baseline", "fire"):
            raise DefinitionError(f'{what}: existing={existing!r} must be "baseline" or "fire".')
        self.existing = existing
        self.watch_fields = _field_names(watch_fields, f"{what}: watch_fields") if watch_fields is not None else ()
        is_given = snapshot_fields is not None and snapshot_fields not in ([], (), set())
        self.snapshot_fields = _field_names(snapshot_fields, f"{what}: snapshot_fields") if is_given else ()
        self.keeps_all = snapshot_fields is None
        self.transition = Transition.of(was, becomes, what)
        if self.transition is not None and self.watch_fields:
            raise DefinitionError(
                f"{what}: was= and becomes= say which changes count, so watch_fields= has no effect. Remove it."
            )
        if self.transition is not None:
            if rearm:
                raise DefinitionError(f"{what}: was= and becomes= occur at each such change; remove rearm=True.")
            self.triggers = _transition_triggers(trigger, self.transition, what)
        else:
            self.triggers = _triggers(trigger, bool(self.watch_fields), what)
        if self.triggers and date_field is not None:
            raise DefinitionError(
                f"{what}: trigger=, watch_fields=, was= and becomes= are for immediate events; a scheduled one follows "
                "its date_field. Use rearm=True for a date that may come again."
            )
        self.rearm = rearm
        self.namespace = namespace
        self.name = name
        self.condition = condition
        self.date_field = date_field
        self.timezone = None if timezone is None else checked_zone(timezone, f"{what}: timezone")
        self.payload = payload
        self._capture = capture
        self._grace = grace
        _note_class_body()

    @staticmethod
    def _check_name(name: str, what: str) -> None:
        check_template(name, what)

    @property
    def is_scheduled(self) -> bool:
        return self.date_field is not None

    @property
    def grace(self) -> timedelta:
        return conf().GRACE if self._grace is None else self._grace

    @property
    def is_captured(self) -> bool:
        """Whether writes that send no signals are heard at once, through database triggers."""
        return conf().CAPTURE if self._capture is None else self._capture

    def holds_for(self, entity: models.Model) -> bool:
        """Return whether the condition is true for ``entity``. Raises whatever the condition raises."""
        return self.condition is None or bool(awaited(self.condition(entity)))

    @property
    def compared_fields(self) -> tuple[str, ...]:
        """The names of the fields whose values before and after a write are compared."""
        return self.watch_fields if self.transition is None else self.transition.fields

    @property
    def may_be_renamed(self) -> bool:
        """Whether the name or namespace of an entity's event may change later."""
        return is_template(self.name) or callable(self.namespace)

    def name_for(self, entity: models.Model) -> str:
        """Return the name of the event of ``entity``. Raises whatever reading a field of the template raises."""
        return render(self.name, entity)

    def namespace_of(self, entity: models.Model) -> str:
        """Return the namespace of the event of ``entity``, or ``""``. Raises whatever the project's function raises."""
        found = self.namespace(entity) if callable(self.namespace) else self.namespace
        if found is not None and (not isinstance(found, str) or len(found) > MAX_NAMESPACE):
            raise DefinitionError(
                f"{self!r}: its namespace function returned {found!r}; it must return a string of at most "
                f"{MAX_NAMESPACE} characters, or None."
            )
        return found or ""

    def timezone_of(self, entity: models.Model) -> str:
        """Return the name of the time zone of ``entity``, or ``""`` for ``TIME_ZONE``.

        Raises ``UnknownTimeZoneError``, and whatever the project's function raises.
        """
        return "" if self.timezone is None else zone_name(self.timezone, entity, self.name)

    def __repr__(self) -> str:
        kind = f"date_field={self.date_field!r}" if self.is_scheduled else "immediate"
        return f"<EventDefinition {self.name!r} {kind}>"

    def __str__(self) -> str:
        return self.name


EventName: TypeAlias = str | EventDefinition
"""An event, where one is named: its name as a string, or its definition, which an editor can follow."""


def name_of(event: EventName) -> str:
    """Return the name of an event. What is neither a name nor a definition is returned, for the caller to refuse."""
    return event.name if isinstance(event, EventDefinition) else event


MAX_NAMESPACE = 100

class_bodies: set[tuple[str, str]] = set()
"""Module and name of the classes in whose bodies definitions were made: a check looks at their ``events``."""


def _note_class_body() -> None:
    frame = sys._getframe(2)
    if "__qualname__" in frame.f_locals and "__module__" in frame.f_locals:
        class_bodies.add((frame.f_locals["__module__"], frame.f_locals["__qualname__"]))


def _field_names(names: Any, what: str) -> tuple[str, ...]:
    found = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else ()
    if not found or not all(isinstance(each, str) and each for each in found):
        raise DefinitionError(f'{what}={names!r} must be a list of field names, as in ["status"].')
    return found


def _transition_triggers(trigger: Any, transition: Transition, what: str) -> frozenset[EventTrigger]:
    """Return the kinds of write that may be a transition: what is created was nothing, what is deleted is nothing."""
    possible = {EventTrigger.UPDATE}
    if not transition.was:
        possible.add(EventTrigger.CREATE)
    if trigger is None:
        return frozenset(possible)
    if not transition.becomes:
        possible.add(EventTrigger.DELETE)
    found = _triggers(trigger, False, what)
    if EventTrigger.CREATE in found - possible:
        raise DefinitionError(f"{what}: trigger=CREATE and was= contradict: what is created was nothing. Remove one.")
    if EventTrigger.DELETE in found - possible:
        raise DefinitionError(
            f"{what}: trigger=DELETE and becomes= contradict: what is deleted becomes nothing. Remove one."
        )
    return found


def _triggers(trigger: Any, watches: bool, what: str) -> frozenset[EventTrigger]:
    if trigger is None:
        return frozenset({EventTrigger.UPDATE}) if watches else frozenset()
    asked = [trigger] if isinstance(trigger, str) else trigger
    try:
        found = frozenset(EventTrigger(each) for each in asked)
    except (TypeError, ValueError):
        found = frozenset()
    if not found:
        raise DefinitionError(
            f"{what}: trigger={trigger!r} must be EventTrigger.CREATE, UPDATE or DELETE, or a list of them."
        )
    if watches and EventTrigger.UPDATE not in found:
        raise DefinitionError(f"{what}: watch_fields= needs updates; add EventTrigger.UPDATE to trigger=.")
    return found
