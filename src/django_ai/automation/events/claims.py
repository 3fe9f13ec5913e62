"""``claims``: one run keeps an event to itself for a while; agents and event workflows of other runs then skip it.

A claim is a row, unique for its event and match; of two concurrent ``hold`` calls one wins. Its owner is the run that
called ``hold``. A claim is active while that run is unfinished, until it expires by time or by number of events, or
until another run takes it over: with a higher priority, or with ``bump=True`` whatever the priority.

This module writes claims. ``claim_lookup`` finds the claim that counts for an event; the engine asks it when an
execution starts. Plain ``@on_event`` functions belong to no run: they ignore claims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db import models, transaction
from django.utils import timezone

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..exceptions import AutomationError, ClaimedError, DefinitionError
from ..queues.causation import CurrentRun, Owner, current_cause
from ..values.clock import check_duration
from ..values.digests import digest
from .claim_lookup import CLAIMS, claim_covering, is_active
from .claim_lookup import claim_against as claim_against
from .claim_owners import kind_of, unfinished_owners
from .declarations import sources_of
from .definitions import EventName, name_of
from .matching.lookups import problem_with
from .matching.match import Address, address, namespaced_key
from .matching.typed_values import json_value
from .models import Event, EventClaim, RoutingShape
from .names import ANY, check_namespace, is_pattern
from .sources import event_sources, owners_of, stored_names

__all__ = ["hold", "holder", "release"]

MAX_TAKE_ATTEMPTS = 20
MAX_COUNTED_EVENTS = 1000


def hold(
    event_name: EventName,
    match: Mapping[str, Any] | None = None,
    *,
    priority: int = 0,
    bump: bool = False,
    expires_in: timedelta | None = timedelta(hours=1),
    expires_after_events: int | None = None,
    owner: models.Model | None = None,
    namespace: str | None = None,
) -> EventClaim:
    """Claim the events of matching entities for one run; agents and event workflows of other runs then skip them.

    The claim is a row that is written in the caller's transaction: in a step or handler it commits together with its
    progress. It ends with its run, when it expires, by ``release``, or when another run takes it over. If its own run
    holds it already, it is renewed.

    Args:
        event_name: Name of one event, as a string without ``*``, or its ``EventDefinition``.
        match: Lookups on the entity (on the payload of a ``FreeEvent``) and the values they must have, as a dict:
            ``{"customer_id": 7}``. Default: any entity.
        priority: A whole number. A claim of a higher priority takes over one of a lower priority, and of several claims
            that cover an event the one of the highest priority counts. Default 0.
        bump: Take the claim over from its holder whatever the priorities. Default False.
        expires_in: Longest life of the claim, as a positive timedelta; None: as long as its run is unfinished. Default
            1 h.
        expires_after_events: End the claim after this number of covered events, a whole number from 1 to 1,000.
            Default: no limit.
        owner: The run that shall hold the claim, an ``AgentRun`` or a ``WorkflowRun``. Default: the run whose step or
            handler is calling.
        namespace: Only events in this namespace, as a string; ``"*"`` for any. Default: the namespace of the calling
            agent or event workflow, else any.

    Returns:
        The claim, an ``EventClaim``.

    Raises:
        ClaimedError: If another run holds the claim. The caller's transaction stays usable.
        DefinitionError: If an argument is invalid, or if there is no run to own the claim.

    Example:
        One agent answers all calls of a customer until the complaint is closed::

            @handler("complaint_opened")
            def take_over(self, ctx):
                claims.hold("call_received", match={"customer_id": ctx.customer_id}, expires_in=None)
    """
    event_name = name_of(event_name)
    what = f"claims.hold({event_name!r})"
    _check(what, priority, expires_in, expires_after_events)
    current = current_cause()
    mine = _owner(owner, current, what)
    if owner is not None and not unfinished_owners(mine.kind).filter(pk=mine.pk).exists():
        raise DefinitionError(f"{what}: owner={owner!r} has ended; only an unfinished run can hold a claim.")
    wanted = _claim(event_name, match, what, _namespace(namespace, mine, what))
    now = timezone.now()
    wanted.priority = priority
    wanted.held_at, wanted.expires_at = now, None if expires_in is None else now + expires_in
    wanted.events_left = expires_after_events
    wanted.owner_kind, wanted.owner_id = mine.kind, mine.pk
    with transaction.atomic(using=alias_of(EventClaim), savepoint=False):
        for name in stored_names(event_name):
            RoutingShape.ensure(CLAIMS, name, wanted.shape)
        claim, is_mine = _take(wanted, mine, bump, now)
    if not is_mine:
        # Raised outside the block above: a caller that catches it can continue in the same transaction.
        raise ClaimedError(_taken_message(claim))
    if owner is None and current is not None:
        current.holds_claims = True
    elif owner is not None:
        type(owner)._base_manager.using(alias_of(EventClaim)).filter(pk=owner.pk).update(holds_claims=True)
    return claim


def release(
    event_name: EventName,
    match: Mapping[str, Any] | None = None,
    *,
    owner: models.Model | None = None,
    namespace: str | None = None,
) -> bool:
    """End a claim before its time.

    The row is deleted in the caller's transaction. A claim that another run holds is not touched.

    Args:
        event_name: Name of the claimed event, as a string.
        match: The match that the claim was held with, as a dict. Default: the claim on any entity.
        owner: The run that holds the claim. Default: the run whose step or handler is calling.
        namespace: The namespace that the claim was held with, as a string. Default: as for ``hold``.

    Returns:
        True if the run held the claim.

    Raises:
        DefinitionError: If an argument is invalid, or if there is no run that could own the claim.

    Example:
        Let others answer the calls again::

            @handler("complaint_closed")
            def hand_back(self, ctx):
                claims.release("call_received", match={"customer_id": ctx.customer_id})
    """
    event_name = name_of(event_name)
    what = f"claims.release({event_name!r})"
    mine = _owner(owner, current_cause(), what)
    held, of = EventClaim.objects.filter(owner_kind=mine.kind, owner_id=mine.pk), _namespace(namespace, mine, what)
    gone, _ = held.filter(unique_key=_claim(event_name, match, what, of).unique_key).delete()
    return gone > 0


def holder(
    event_name: EventName,
    match: Mapping[str, Any] | models.Model | None = None,
    *,
    entity: models.Model | None = None,
    namespace: str | None = None,
) -> EventClaim | None:
    """Return the claim that is active on an event.

    With an entity: the claim that counts for this event of that entity, whatever it was matched by. With a match, or
    with neither: the claim on exactly this event, match and namespace. It only reads.

    Args:
        event_name: Name of one event, as a string without ``*``, or its ``EventDefinition``.
        match: The match that the claim was held with, as a dict; or the entity itself. Default: the claim on any
            entity.
        entity: A saved model instance, in place of ``match``. Default: none.
        namespace: The namespace to look in, as a string. Default: with an entity, that of its event; else as for
            ``hold``.

    Returns:
        The ``EventClaim``, whose ``owner`` is the run that holds it, or None.

    Raises:
        DefinitionError: If an argument is invalid, or if the entity's model does not declare the event.

    Example:
        Show in a view who answers a call::

            claim = claims.holder("call_received", entity=call)
            label = "free" if claim is None else f"taken by {claim.owner}"
    """
    event_name = name_of(event_name)
    what = f"claims.holder({event_name!r})"
    if isinstance(match, models.Model):
        if entity is not None:
            raise DefinitionError(f"{what}: give the entity once, as in claims.holder(name, entity).")
        match, entity = None, match
    if entity is not None:
        if match is not None:
            raise DefinitionError(f"{what}: give an entity or a match, not both.")
        event = _event_of(event_name, entity, namespace, what)
        return claim_covering(event, RoutingShape.of([event]), timezone.now())
    cause = current_cause()
    wanted = _claim(event_name, match, what, _namespace(namespace, cause.owner if cause else None, what))
    found = EventClaim.objects.filter(unique_key=wanted.unique_key).first()
    return found if found is not None and is_active(found, timezone.now()) else None


def release_all(kind: str, pk: int) -> None:
    """End every claim of a run that ends, in the caller's transaction."""
    EventClaim.objects.filter(owner_kind=kind, owner_id=pk).delete()


def _check(what: str, priority: Any, expires_in: Any, expires_after_events: Any) -> None:
    if type(priority) is not int:
        raise DefinitionError(f"{what}: priority={priority!r} must be a whole number.")
    if expires_in is not None:
        check_duration(expires_in, f"{what}: expires_in")
    wrong = type(expires_after_events) is not int or not 1 <= expires_after_events <= MAX_COUNTED_EVENTS
    if expires_after_events is not None and wrong:
        raise DefinitionError(
            f"{what}: expires_after_events={expires_after_events!r} must be a whole number from 1 to "
            f"{MAX_COUNTED_EVENTS}."
        )


def _owner(owner: models.Model | None, current: CurrentRun | None, what: str) -> Owner:
    if owner is not None:
        kind = kind_of(owner)
        if kind is not None:
            return Owner(kind, owner.pk)
        raise DefinitionError(f"{what}: owner={owner!r} must be the run of an agent or a workflow.")
    if current is None or current.owner is None:
        raise DefinitionError(f"{what} needs an owner: call it in a handler or a step, or give owner= (a run).")
    return current.owner


def _namespace(namespace: str | None, owner: Owner | None, what: str) -> str:
    """Return the namespace that a claim is for; empty: any."""
    wanted = check_namespace(namespace, what) or (owner.namespace if owner else None)
    return "" if wanted in (None, ANY) else str(wanted)


def _claim(event_name: str, match: Mapping[str, Any] | None, what: str, namespace: str = "") -> EventClaim:
    """Return the unsaved claim on an event and a match, with its keys and the lookups that no key holds."""
    if not isinstance(event_name, str) or not event_name or is_pattern(event_name):
        raise DefinitionError(f"{what}: name one event, as a string without '*'.")
    if match is not None and not isinstance(match, Mapping):
        raise DefinitionError(f"{what}: match={match!r} must be a dict of lookups and values.")
    values = {name.removesuffix("__exact"): value for name, value in (match or {}).items()}
    where = _address(event_name, values, what)
    (key,) = where.keys
    if namespace:
        key = namespaced_key(namespace, key)
    json_values = {name: json_value(value) for name, value in values.items()}
    # The order of a list of values means nothing: equal matches are one claim.
    residual = {
        name: sorted(json_value(value), key=str) if name.endswith("__in") else json_value(value)
        for name, value in where.residual.items()
    }
    unique = digest("claim", event_name, key, json.dumps(residual, sort_keys=True))
    claim = EventClaim(
        event_name=event_name, namespace=namespace, match=json_values, key=key, residual=residual, unique_key=unique
    )
    claim.shape = where.shape
    return claim


def _address(event_name: str, values: Mapping[str, Any], what: str) -> Address:
    sources = event_sources(event_name)
    for name, value in values.items():
        if isinstance(value, str) and "{{" in value:
            raise DefinitionError(f"{what}: {name!r} is compared with {value!r}; give the value itself (ctx.field).")
        problems = [problem_with(owner, name) for owner in owners_of(sources)]
        if problems and all(problems):
            raise DefinitionError(f"{what}: match compares {name!r}. {problems[0]}")
    return address(event_name, values, sources)


def _event_of(event_name: str, entity: models.Model, namespace: str | None, what: str) -> Event:
    """Return an unsaved event of ``entity``, to look up its claims with."""
    if not isinstance(event_name, str) or not event_name or is_pattern(event_name):
        raise DefinitionError(f"{what}: name one event, as a string without '*'.")
    declared = [each for each in sources_of(event_name) if isinstance(entity, each.owner)]
    if not declared and sources_of(event_name):
        owners = ", ".join(sorted({each.owner._meta.label for each in sources_of(event_name)}))
        raise DefinitionError(f"{what}: the model of {entity!r} does not declare this event; {owners} does.")
    definition = declared[0].definition if declared else None
    of = check_namespace(namespace, what)
    if of is None and definition is not None:
        of = definition.namespace_of(entity)
    event = Event(
        entity_type=declared[0].label if declared else entity._meta.label_lower,
        event_name=event_name,
        declared_as=definition.name if definition else event_name,
        namespace="" if of in (None, ANY) else str(of),
    )
    event.entity = entity
    return event


def _take(wanted: EventClaim, owner: Owner, bump: bool, now: datetime) -> tuple[EventClaim, bool]:
    """Insert the claim, renew it or take it over: each is one statement, which one caller wins.

    Return the claim that is stored now, and whether the caller holds it.
    """
    for _ in range(MAX_TAKE_ATTEMPTS):
        wanted.pk = None
        if insert_ignoring(EventClaim, [wanted], key="unique_key"):
            return wanted, True
        found = EventClaim.objects.filter(unique_key=wanted.unique_key).first()
        if found is None:
            continue  # it was released in between
        mine = (found.owner_kind, found.owner_id) == (owner.kind, owner.pk)
        if not mine and not bump and wanted.priority <= found.priority and is_active(found, now):
            return found, False
        values = {
            name: getattr(wanted, name)
            for name in ("owner_kind", "owner_id", "priority", "held_at", "expires_at", "events_left")
        }
        taken = EventClaim.objects.filter(pk=found.pk, seq=found.seq)
        if taken.update(**values, counted=[], seq=found.seq + 1):
            return EventClaim.objects.get(pk=found.pk), True
    raise AutomationError(
        f"claims.hold({wanted.event_name!r}): other runs changed it {MAX_TAKE_ATTEMPTS} times in a row; try again."
    )


def _taken_message(claim: EventClaim) -> str:
    until = f" until {claim.expires_at:%Y-%m-%d %H:%M:%S %Z}" if claim.expires_at else ""
    return (
        f"{claim}{until}, with priority {claim.priority}. Wait for its release, or hold it with a higher priority=, or "
        "with bump=True whatever the priority."
    )
