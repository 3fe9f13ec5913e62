"""``FreeEvent``: the declaration of an event without a model, which code emits (``emission.emit``), and the register of
all such declarations.

A name must be declared before it is emitted or subscribed to, so a misspelt name is an error with a suggestion. A name
with ``*`` declares a family of events: ``FreeEvent("stripe:*")`` stands for whatever a payment provider sends.

Like ``definitions``, this module imports no models, because models modules import it.
"""

from __future__ import annotations

import sys
from typing import ClassVar

from pydantic import BaseModel

from ..exceptions import DefinitionError
from .definitions import EventDefinition
from .names import is_pattern, is_template, matches, may_match


class FreeEvent(EventDefinition):
    """Declare an event that belongs to no model: code emits it with ``emit()``.

    Declare it once, in a module that is imported at start, such as ``automations`` or a module that this imports.
    Wherever the name of an event is taken, the declaration is taken, too: ``on_event(PAYMENT_RECEIVED)``.

    Args:
        name: Name of the event, a string of 1 to 200 characters. ``*`` in it stands for any characters, and declares a
            family of events: ``"stripe:*"``.
        payload: A Pydantic model that every payload must fit. It gives the values that a match compares their types,
            and ``manage.py check`` refuses a match on other fields. Default: any dict of JSON values.

    Raises:
        DefinitionError: At import, if an argument is invalid, or if another module declares an event of this name.

    Example:
        A payment that a bank reports::

            class Payment(BaseModel):
                order_id: int
                cents: int

            PAYMENT_RECEIVED = FreeEvent("payment.received", payload=Payment)

            @on_event(PAYMENT_RECEIVED)
            def book(event):
                Booking.objects.create(order_id=event.payload["order_id"], cents=event.payload["cents"])
    """

    label: ClassVar[str] = ""
    """The ``entity_type`` of its rows."""

    def __init__(self, name: str, payload: type[BaseModel] | None = None) -> None:
        super().__init__(name)
        if payload is not None and not (isinstance(payload, type) and issubclass(payload, BaseModel)):
            raise DefinitionError(f"FreeEvent({name!r}): payload={payload!r} must be a Pydantic model, a class.")
        self.schema = payload
        self.module = str(sys._getframe(1).f_globals.get("__name__", ""))
        previous = find_free_event(name)
        if previous is not None and previous.module != self.module:
            raise DefinitionError(
                f"FreeEvent({name!r}): {previous.module} declares an event of this name already. Import it from there, "
                "or give one of them another name."
            )
        register(self)

    @staticmethod
    def _check_name(name: str, what: str) -> None:
        if is_template(name):
            raise DefinitionError(
                f"{what}: an event without a model has no instance to read a field of. Write '*' for the part of the "
                "name that varies."
            )
        if not name.replace("*", "").strip():
            raise DefinitionError(f"{what}: the name must have more than '*', as in FreeEvent(\"stripe:*\").")

    @property
    def is_scheduled(self) -> bool:
        """True: each of its rows has a date, that of ``emit(at=...)`` or the moment of the call."""
        return True

    @property
    def is_family(self) -> bool:
        return is_pattern(self.name)

    def __repr__(self) -> str:
        return f"<FreeEvent {self.name!r}>"


_registry: dict[str, FreeEvent] = {}
_matching: dict[str, list[FreeEvent]] = {}

MAX_CACHED_PATTERNS = 10_000


def register(event: FreeEvent) -> None:
    _registry[event.name] = event
    _matching.clear()


def unregister(event: FreeEvent) -> None:
    """Forget ``event``: for tests that declare their own."""
    _registry.pop(event.name, None)
    _matching.clear()


def all_free_events() -> list[FreeEvent]:
    return list(_registry.values())


def find_free_event(declared_as: str) -> FreeEvent | None:
    """Return the declaration that is stored as ``declared_as``, or None if it is gone."""
    return _registry.get(declared_as)


def free_event_named(name: str) -> FreeEvent | None:
    """Return the declaration of the event ``name``: its own or, of the families, the one with the longest name."""
    found = _registry.get(name)
    if found is not None:
        return found
    families = [each for each in _registry.values() if each.is_family and matches(each.name, name)]
    return max(families, key=lambda each: len(each.name), default=None)


def free_events_matching(pattern: str) -> list[FreeEvent]:
    """Return the declarations whose events a subscriber to ``pattern`` may get."""
    if not _registry:
        return []
    found = _matching.get(pattern)
    if found is None:
        if is_pattern(pattern):
            found = [each for each in _registry.values() if may_match(pattern, each.name)]
        else:
            named = free_event_named(pattern)
            found = [] if named is None else [named]
        if len(_matching) < MAX_CACHED_PATTERNS:  # a wait on a name with expressions has another name each time
            _matching[pattern] = found
    return found
