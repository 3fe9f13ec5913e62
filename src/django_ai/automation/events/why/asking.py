"""``why``: ask the explainers of all layers about the events of an entity, or about one event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from django.db import connections
from django.db.models import Model
from django.utils import timezone

from ...db.errors import is_database_failure
from ...db.savepoints import savepoint_on_query
from ...db.writer import alias_of
from ...exceptions import DefinitionError
from ..declarations import declared_on
from ..entities import load_entities, rows_about
from ..models import Event, Schedule
from ..names import may_match
from ..subscriptions import Subscription, subscriptions
from .answers import Answer, Condition, Standing, Why, reason_of
from .schedules import explain_schedule

MAX_EVENTS = 50


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What an explainer gets: the events with their entities, the moment, and the subscriber (empty: all). Those events
    without a primary key were not recorded. ``limit``: how many rows it may read of each kind."""

    events: list[Event]
    now: datetime
    subscriber: str
    limit: int

    @property
    def is_detailed(self) -> bool:
        """Whether conditions are asked that cost a query for each event."""
        return bool(self.subscriber)

    @property
    def recorded(self) -> dict[int, Event]:
        return {event.pk: event for event in self.events if event.pk is not None}

    def wants(self, subscription: Subscription, event: Event) -> bool:
        """Return whether the answer of ``subscription`` to ``event`` is wanted. One that subscribes to events of
        another name is of interest only if it was asked for, and its own events are declared together with this one."""
        if not self.subscriber:
            return subscription.matches(event) or subscription.matches_name(event)
        if self.subscriber not in names_of(subscription):
            return False
        return may_match(subscription.event_name, event.declared_as)


Explainer = Callable[[Inquiry], Iterable[Answer]]

_explainers: list[Explainer] = []


def register_explainer(explainer: Explainer) -> None:
    """Ask ``explainer`` too. Idempotent: ``ready()`` may run again."""
    if explainer not in _explainers:
        _explainers.append(explainer)


def names_of(subscription: Subscription) -> tuple[str, ...]:
    """Return the names by which a subscriber may be asked for. An agent's handlers answer to its name, too."""
    kind, name = subscription.subscriber
    return (name, name.rpartition(".")[0]) if kind == "handler" else (name,)


def subscriber_names() -> list[str]:
    """Return the names of all subscribers, sorted."""
    return sorted({each for subscription in subscriptions.everything() for each in names_of(subscription)})


def why(subject: Model, subscriber: str = "", *, limit: int = MAX_EVENTS) -> Why:
    """Return why a subscriber acted on the events of an entity or on one event, will act, or did not.

    For each event and subscriber it lists the conditions in the order in which the engine asks them, and whether each
    holds: with the functions by which the engine decides. No step, callback or handler is called, and nothing is
    written. Conditions, ``when=`` and functions for names are called as the engine does; one that raises makes its
    condition unknown.

    Args:
        subject: A saved model instance, an ``Event``, or a ``Schedule`` (why it fires when it fires; the event of its
            last time tells what became of its target).
        subscriber: The name of a callback, workflow or agent, or of a handler as ``"agent.method"``. Default: every
            subscriber to the events, without the conditions that cost a query for each event (claims, ``when=``, the
            agents of handlers).
        limit: The greatest number of events of an entity, the newest first, a positive whole number. Default 50.

    Returns:
        A ``Why``, whose ``answers`` are a list of ``Answer``.

    Raises:
        DefinitionError: If ``subject`` is not a saved model instance, if ``limit`` is invalid, or if no subscriber has
            this name; the message has the nearest one.

    Example:
        Why did this booking get no reminder?::

            for answer in why(booking, "shop.remind").answers:
                print(answer)
    """
    if not isinstance(limit, int) or limit < 1:
        raise DefinitionError(f"why(limit={limit!r}): give a positive whole number.")
    wanted, now = _subscriptions_of(subscriber) if subscriber else [], timezone.now()
    if isinstance(subject, Schedule):
        return Why(str(subject), subscriber, [explain_schedule(subject, now)])
    events = _events_of(subject, wanted, limit)
    inquiry = Inquiry(events, now, subscriber, limit)
    answers = [each for explainer in _explainers for each in explainer(inquiry)] if events else []
    if subscriber and not answers:
        answers = [_unrelated(subject, subscriber, wanted)]
    order: dict[int | None, int] = {event.pk: number for number, event in enumerate(events)}
    answers.sort(key=lambda each: order.get(each.event_pk, len(order)))
    return Why(str(subject), subscriber, answers)


def _subscriptions_of(name: str) -> list[Subscription]:
    """Return the subscriptions of a subscriber. Raises ``DefinitionError`` with the nearest name."""
    found = [each for each in subscriptions.everything() if name in names_of(each)]
    if not found:
        known = subscriber_names()
        near = get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(repr, known)) or 'none'}."
        raise DefinitionError(f"No subscriber to events is called {name!r}. {hint}")
    return found


def _events_of(subject: Model, wanted: list[Subscription], limit: int) -> list[Event]:
    """Return the event, or those of the entity, the newest first: recorded ones, and those that are only declared."""
    if isinstance(subject, Event):
        load_entities([subject])
        return [subject]
    rows = Event.objects.filter(rows_about(subject))
    declared = declared_on(type(subject))
    if wanted:
        names = {
            each.definition.name
            for each in declared
            if any(may_match(one.event_name, each.definition.name) for one in wanted)
        }
        rows = rows.filter(declared_as__in=names)
    events = list(rows.order_by("-pk")[:limit])
    for event in events:
        event.entity = subject
    recorded = {(event.entity_type, event.declared_as) for event in events}
    missing = [each for each in _unrecorded(subject) if (each.entity_type, each.declared_as) not in recorded]
    if wanted:
        missing = [each for each in missing if any(may_match(one.event_name, each.declared_as) for one in wanted)]
    if len(events) == limit and missing:  # their rows may be older than the newest
        older = Event.objects.filter(rows_about(subject), declared_as__in={each.declared_as for each in missing})
        known = set(older.values_list("entity_type", "declared_as").distinct())
        missing = [each for each in missing if (each.entity_type, each.declared_as) not in known]
    return events + missing


def _unrecorded(entity: Model) -> Iterator[Event]:
    """Yield an unsaved event for each definition of the entity, with its name and namespace now."""
    for declared in declared_on(type(entity)):
        definition = declared.definition
        name, namespace = definition.name, ""
        try:
            with savepoint_on_query(alias_of(Event)):
                name, namespace = definition.name_for(entity), definition.namespace_of(entity)
        except Exception as error:  # a function of the project: the definition then keeps its own name
            if is_database_failure(error, connections[alias_of(Event)]):
                raise
        event = Event(
            entity_type=declared.label,
            entity_id=declared.entity_id_of(entity),
            event_name=name,
            declared_as=definition.name,
            namespace=namespace,
        )
        event.entity = entity
        yield event


def _unrelated(subject: Model, subscriber: str, wanted: list[Subscription]) -> Answer:
    """Return the answer of a subscriber that subscribes to no event of the subject."""
    names = ", ".join(sorted({repr(each.event_name) for each in wanted}))
    if isinstance(subject, Event):
        event, pk, found = subject.event_name, subject.pk, repr(subject.event_name)
    else:
        own = sorted({repr(each.definition.name) for each in declared_on(type(subject))})
        event, pk, found = "", None, f"{subject._meta.label} declares {', '.join(own) or 'no events'}"
    condition = Condition("event name", names, found, False)
    kind, _ = wanted[0].subscriber
    return Answer(kind, subscriber, event, pk, "", Standing.DID_NOT, reason_of(condition), conditions=[condition])
