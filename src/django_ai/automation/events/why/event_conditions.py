"""What the engine asks of an event itself before any subscriber acts: recorded, state, condition, date, grace, time,
name and namespace. The decisions are those of ``timing`` and of the definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.models import Model

from ...db.errors import is_database_failure
from ...db.savepoints import savepoint_on_query
from ...db.writer import alias_of, from_writer
from ...queues.causation import Owner
from ...queues.wakeable import at_text
from ...values.text import last_line
from ..capture import tables_of
from ..claim_lookup import claim_against
from ..definitions import EventDefinition, EventTrigger
from ..models import Event, EventStatus
from ..subscriptions import Subscription
from ..timing import grace_ends_at, is_past_grace
from ..transitions import fits
from ..triggers.installation import Installation, installation_of
from ..triggers.rows import Capture
from .answers import Condition, shown

UNRECORDED = "its row was not recorded"


def evaluated(evaluate: Callable[[], Any], alias: str) -> tuple[bool | None, str]:
    """Return what a predicate of the project returns, as a bool and in words. One that raises is unknown: its last line
    is shown. Database failures are raised."""
    try:
        with from_writer(), savepoint_on_query(alias):
            holds = bool(evaluate())
    except Exception as error:
        if is_database_failure(error, connections[alias]):
            raise
        return None, last_line(f"it raised {type(error).__name__}: {error}")
    return holds, "true" if holds else "false"


def unclaimed(event: Event, owner: Owner, now: datetime) -> Condition:
    """Return whether no other run than ``owner`` has claimed the event. A claim may end before the engine asks."""
    claim = claim_against(event, owner, now)
    found = "no claim" if claim is None else f"claimed by {claim.owner_kind} {claim.owner or f'#{claim.owner_id}'}"
    return Condition("claim", "no other run has claimed the event", found, claim is None, may_change=True)


class EventConditions:
    """The conditions of the events of one inquiry. What is asked of an event, or of the table of its entity, is asked
    once."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self._own: dict[int, tuple[Condition, ...]] = {}
        self._installed: dict[type[Model], Installation] = {}

    def of(self, event: Event, subscription: Subscription) -> list[Condition]:
        """Return what is asked before ``subscription`` acts on ``event``, in the order of the engine."""
        key = id(event)
        if key not in self._own:
            self._own[key] = tuple(self._of_event(event))
        return [*self._own[key], *self._of_time(event, subscription), *_of_subscription(event, subscription)]

    # -- the event -----------------------------------------------------------------------------------------------------

    def _of_event(self, event: Event) -> Iterator[Condition]:
        definition = event.definition
        if definition is None:
            expected = f"code that declares {event.declared_as!r}"
            yield Condition("declared", expected, "no declaration", False, may_change=True)
            return
        if event.pk is None:
            yield from self._of_unrecorded(event, definition)
            return
        yield _state_of(event)
        if event.status == EventStatus.PENDING and not event.is_free and event.trigger != EventTrigger.DELETE:
            yield from self._of_pending(event, definition)

    def _of_unrecorded(self, event: Event, definition: EventDefinition) -> Iterator[Condition]:
        if definition.triggers:
            kinds = ", ".join(sorted(each.value for each in definition.triggers))
            if definition.transition is not None:
                kinds = f"{kinds} from {_words(definition.transition.was)} to {_words(definition.transition.becomes)}"
            yield Condition("recorded", f"a write that counts ({kinds})", "no such write", False, may_change=True)
            yield from self._of_fields(event, definition)
        else:
            expected = "a save of the entity since the event is declared"
            yield Condition("recorded", expected, UNRECORDED, False, may_change=True)
        yield from self._capture(event, definition)
        if definition.transition is None:
            yield self._condition(event, definition)

    def _of_pending(self, event: Event, definition: EventDefinition) -> Iterator[Condition]:
        if event.snapshot_id is not None or event.entity is None:
            yield Condition("entity", "it exists", "it was deleted", False)
            return
        if event.attempt:
            yield Condition("evaluation", "it raises nothing", last_line(event.error), None, may_change=True)
        if definition.triggers and not event.armed:
            kinds = ", ".join(sorted(each.value for each in definition.triggers))
            yield Condition("recorded", f"a write that counts ({kinds})", "none yet", False, may_change=True)
            yield from self._of_fields(event, definition)
        else:
            condition = self._condition(event, definition)
            yield condition
            if condition.holds is not None and condition.holds != event.armed and not event.attempt:
                expected = f"a save that makes the condition {condition.found}"
                yield Condition("heard", expected, "a write that sends no signals", False, may_change=True)
                yield from self._capture(event, definition)
        if definition.date_field is not None:
            yield from self._of_date(event, definition)

    def _condition(self, event: Event, definition: EventDefinition) -> Condition:
        if definition.condition is None:
            return Condition("condition", "none, so always true", "true", True)
        holds, found = evaluated(lambda: definition.holds_for(event.entity), alias_of(Event))
        is_lost = event.pk is not None and not holds and is_past_grace(event, definition, self.now)
        return Condition("condition", "true", found, holds, may_change=not is_lost)

    def _of_fields(self, event: Event, definition: EventDefinition) -> Iterator[Condition]:
        """Yield what the fields of a transition are now. A write has to bring them there: what they were is past."""
        if definition.transition is None:
            return
        entity = event.entity
        for name, expected in definition.transition.becomes.items():
            holds, _ = evaluated(lambda n=name, e=expected: fits(entity, n, e), alias_of(Event))  # type: ignore[misc]
            yield Condition(f"becomes: {name}", _value(expected), shown(getattr(entity, name, None)), holds, True)

    def _of_date(self, event: Event, definition: EventDefinition) -> Iterator[Condition]:
        name = definition.date_field
        assert name is not None
        value = getattr(event.entity, name, None)
        expected = f"a value in {name!r}"
        if value is None or event.at is None:
            found = "NULL" if value is None else "a write that sends no signals has set it"
            yield Condition("date", expected, found, False, may_change=True)
            return
        yield Condition("date", expected, at_text(event.at), True)
        if not event.armed:
            ends = grace_ends_at(event, definition)
            is_open = ends is None or self.now < ends
            expected = f"its condition true before {at_text(ends)}" if ends else "its condition true"
            yield Condition("grace", expected, f"now {at_text(self.now)}", is_open, may_change=is_open)

    # -- writes that send no signals -----------------------------------------------------------------------------------

    def _capture(self, event: Event, definition: EventDefinition) -> Iterator[Condition]:
        """Yield whether a write that sends no signals would be heard."""
        expected = "triggers that hear writes without signals"
        if not definition.is_captured:
            found = "capture=False: bulk_create, update and SQL are heard only when dates are reconciled, or not at all"
            yield Condition("capture", expected, found, None)
            return
        state = self._installation(type(event.entity))
        yield Condition("capture", expected, str(state), state is Installation.CURRENT, may_change=True)

    def _installation(self, model: type[Model]) -> Installation:
        if model not in self._installed:
            connection = connections[alias_of(Event)]
            states = [installation_of(Capture.of(table), connection) for table in tables_of(model)]
            bad = [each for each in states if each is not Installation.CURRENT]
            self._installed[model] = bad[0] if bad else Installation.CURRENT
        return self._installed[model]

    # -- the moment ----------------------------------------------------------------------------------------------------

    def _of_time(self, event: Event, subscription: Subscription) -> Iterator[Condition]:
        if event.pk is None or subscription.fixed_milestone:
            return
        if event.status == EventStatus.PENDING and not subscription.offset:
            found = "not yet" if event.at is None else f"its date, {at_text(event.at)}"
            yield Condition("occurred", "the event has occurred", found, False, may_change=True)
            return
        if not subscription.offset or event.at is None:
            return
        moment = event.moment_of(subscription.offset)
        is_due = moment <= self.now
        yield Condition("offset", f"{at_text(moment)} has come", f"now {at_text(self.now)}", is_due, not is_due)
        milestone = subscription.milestone
        if subscription.uses_event_timer and milestone in event.fired and milestone not in event.milestone_positions:
            reason = last_line(event.error) or "it was past when the event occurred, or when the date was moved"
            yield Condition("fired", "the offset has fired", f"it was skipped: {reason}", False)
        elif subscription.recheck and event.status == EventStatus.PROCESSED and milestone not in event.fired:
            definition = event.definition
            if definition is not None and not event.is_free and event.entity is not None:
                holds, found = evaluated(lambda: definition.holds_for(event.entity), alias_of(Event))
                yield Condition("recheck", "the condition is still true", found, holds, may_change=True)


def _state_of(event: Event) -> Condition:
    is_open = event.status in (EventStatus.PENDING, EventStatus.PROCESSED)
    found = str(event.status) + (f": {last_line(event.error)}" if event.error and not is_open else "")
    may_change = event.status == EventStatus.PARKED
    return Condition("state", "pending or processed", found, is_open, may_change=may_change)


def _of_subscription(event: Event, subscription: Subscription) -> Iterator[Condition]:
    is_same, definition = subscription.matches_name(event), event.definition
    renamed = event.status == EventStatus.PENDING and definition is not None and definition.may_be_renamed
    yield Condition("event name", repr(subscription.event_name), repr(event.event_name), is_same, may_change=renamed)
    if subscription.namespace is not None:
        expected, found = repr(subscription.namespace), repr(event.namespace) if event.namespace else "no namespace"
        yield Condition("namespace", expected, found, subscription.matches_namespace(event), may_change=renamed)


def _words(expected: Any) -> str:
    return ", ".join(f"{name}={_value(each)}" for name, each in expected.items()) or "anything"


def _value(expected: Any) -> str:
    if callable(expected):
        return f"what {getattr(expected, '__name__', 'a function')} accepts"
    return shown(expected)
