"""Claims: one run keeps an event to itself for a while, so that the agents and event workflows of others pass it by.

A claim is a row, unique for its event and match; two concurrent ``hold`` calls have one winner. Its owner is the run
that was at work when it was held. It stands while that run lives, until it expires by time or by number of events, or
until another run takes it over: with a higher priority, or with ``bump=True`` whatever the priority. It is judged when
an execution starts. Of several claims that cover an event the one of the highest priority counts, and of equals the
eldest. Plain ``@on_event`` automations are nobody's flow, and always run.

The floors above say what can own a claim (``register_owner``), and ask ``claim_against`` before they start something.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from ..conf import conf
from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..exceptions import AutomationError, ClaimedError, DefinitionError
from ..queues.causation import CurrentRun, Owner, current_cause
from ..queues.maintenance import SliceResult, TimeSlice
from ..queues.pruning import prune_in_batches
from ..values.clock import check_duration
from ..values.digests import digest
from .claim_owners import _owners
from .definitions import sources_of
from .matching.lookups import problem_with, satisfies
from .matching.match import Address, address, entity_keys, within
from .matching.typed_values import plain
from .models import Event, EventClaim, RoutingShape, Shapes
from .names import ANY, check_namespace, is_pattern, pattern_of

__all__ = ["hold", "holder", "release"]

CLAIMS = "claims"
TRIES = 20
MOST_EVENTS = 1000


def hold(
    event_name: str,
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
        event_name: Name of one event, as a string without ``*``.
        match: Lookups on the entity and the values they must have, as a dict: ``{"customer_id": 7}``. Default: any
            entity.
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
    what = f"claims.hold({event_name!r})"
    _check(what, priority, expires_in, expires_after_events)
    current = current_cause()
    mine = _owner(owner, current, what)
    if owner is not None and not _owners[mine.kind]().filter(pk=mine.pk).exists():
        raise DefinitionError(f"{what}: owner={owner!r} has ended; a claim stands while its run lives.")
    wanted = _claim(event_name, match, what, _namespace(namespace, mine, what))
    now = timezone.now()
    wanted.priority = priority
    wanted.held_at, wanted.expires_at = now, None if expires_in is None else now + expires_in
    wanted.events_left = expires_after_events
    wanted.owner_kind, wanted.owner_id = mine.kind, mine.pk
    with transaction.atomic(using=alias_of(EventClaim), savepoint=False):
        for name in {pattern_of(source.definition.name) for source in sources_of(event_name)} or {event_name}:
            RoutingShape.ensure(CLAIMS, name, wanted.shape)
        claim, is_mine = _take(wanted, mine, bump, now)
    if not is_mine:
        # Raised out here: who catches it can go on in the same transaction.
        raise ClaimedError(_said(claim))
    if owner is None and current is not None:
        current.holds_claims = True
    elif owner is not None:
        type(owner)._base_manager.using(alias_of(EventClaim)).filter(pk=owner.pk).update(holds_claims=True)
    return claim


def release(
    event_name: str,
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
    what = f"claims.release({event_name!r})"
    mine = _owner(owner, current_cause(), what)
    held, of = EventClaim.objects.filter(owner_kind=mine.kind, owner_id=mine.pk), _namespace(namespace, mine, what)
    gone, _ = held.filter(unique_key=_claim(event_name, match, what, of).unique_key).delete()
    return gone > 0


def holder(
    event_name: str,
    match: Mapping[str, Any] | models.Model | None = None,
    *,
    entity: models.Model | None = None,
    namespace: str | None = None,
) -> EventClaim | None:
    """Return the claim that is active on an event.

    With an entity: the claim that counts for this event of that entity, whatever it was matched by. With a match, or
    with neither: the claim on exactly this event, match and namespace. It only reads.

    Args:
        event_name: Name of one event, as a string without ``*``.
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
    what = f"claims.holder({event_name!r})"
    if isinstance(match, models.Model):
        if entity is not None:
            raise DefinitionError(f"{what}: give the entity once, as in claims.holder(name, entity).")
        match, entity = None, match
    if entity is not None:
        if match is not None:
            raise DefinitionError(f"{what}: give an entity or a match, not both.")
        event = _event_of(event_name, entity, namespace, what)
        return _covering(event, RoutingShape.of([event]), timezone.now())
    cause = current_cause()
    wanted = _claim(event_name, match, what, _namespace(namespace, cause.owner if cause else None, what))
    found = EventClaim.objects.filter(unique_key=wanted.unique_key).first()
    return found if found is not None and is_active(found, timezone.now()) else None


# -- for the engine ----------------------------------------------------------------------------------------------------


def claim_against(event: Event, owner: Owner, now: datetime) -> EventClaim | None:
    """Return the claim that keeps ``event`` from ``owner``, or None."""
    claim = _covering(event, RoutingShape.of([event]), now)
    return None if claim is None or (claim.owner_kind, claim.owner_id) == (owner.kind, owner.pk) else claim


def count(events: Sequence[Event], shapes: Shapes) -> None:
    """Let ``events`` count for the claims that end after a number of them. Idempotent."""
    for event in events:
        keys = _keys(event, shapes)
        if not keys:
            continue
        with transaction.atomic(using=alias_of(EventClaim)):
            limited = EventClaim.objects.filter(event_name=event.event_name, key__in=keys, events_left__gt=0)
            for claim in limited.select_for_update().order_by("pk"):
                if event.pk not in claim.counted and _fits(claim, event):
                    claim.counted, claim.events_left = [*claim.counted, event.pk], (claim.events_left or 0) - 1
                    claim.save(update_fields=["counted", "events_left"])


def release_all(kind: str, pk: int) -> None:
    """Give up every claim of a run that ends, in the caller's transaction."""
    EventClaim.objects.filter(owner_kind=kind, owner_id=pk).delete()


def is_active(claim: EventClaim, now: datetime, event: Event | None = None) -> bool:
    """Say whether ``claim`` has not ended: by time, by its run's end, or by number (for ``event``: it was counted)."""
    if claim.expires_at is not None and claim.expires_at <= now:
        return False
    if claim.events_left == 0 and (event is None or event.pk not in claim.counted):
        return False
    living = _owners.get(claim.owner_kind)
    return living is not None and living().filter(pk=claim.owner_id).exists()


def prune_claims(turn: TimeSlice) -> SliceResult:
    """Remove claims that ended longer ago than ``RETENTION``, or were held before and whose run has ended."""
    before = turn.now - conf().RETENTION
    over = Q(expires_at__lt=before)
    for kind, living in _owners.items():
        over |= Q(owner_kind=kind, held_at__lt=before) & (~Q(owner_id__in=living().values("pk")) | Q(events_left=0))
    return prune_in_batches(EventClaim.objects.filter(over), "held_at", before, turn)


def _check(what: str, priority: Any, expires_in: Any, expires_after_events: Any) -> None:
    if type(priority) is not int:
        raise DefinitionError(f"{what}: priority={priority!r} must be a whole number.")
    if expires_in is not None:
        check_duration(expires_in, f"{what}: expires_in")
    wrong = type(expires_after_events) is not int or not 1 <= expires_after_events <= MOST_EVENTS
    if expires_after_events is not None and wrong:
        raise DefinitionError(
            f"{what}: expires_after_events={expires_after_events!r} must be a whole number from 1 to {MOST_EVENTS}."
        )


def _owner(owner: models.Model | None, current: CurrentRun | None, what: str) -> Owner:
    if owner is not None:
        for kind, living in _owners.items():
            if isinstance(owner, living().model):
                return Owner(kind, owner.pk)
        raise DefinitionError(f"{what}: owner={owner!r} must be the run of an agent or a workflow.")
    if current is None or current.owner is None:
        raise DefinitionError(f"{what} needs an owner: call it in a handler or a step, or give owner= (a run).")
    return current.owner


def _namespace(namespace: str | None, owner: Owner | None, what: str) -> str:
    """Return which namespace a claim is for; empty: any."""
    wanted = check_namespace(namespace, what) or (owner.namespace if owner else None)
    return "" if wanted in (None, ANY) else str(wanted)


def _claim(event_name: str, match: Mapping[str, Any] | None, what: str, namespace: str = "") -> EventClaim:
    """Return the unsaved claim on an event and a match: its keys, and what it is compared with."""
    if not isinstance(event_name, str) or not event_name or is_pattern(event_name):
        raise DefinitionError(f"{what}: name one event, as a text without '*'.")
    if match is not None and not isinstance(match, Mapping):
        raise DefinitionError(f"{what}: match={match!r} must be a dict of lookups and values.")
    values = {name.removesuffix("__exact"): value for name, value in (match or {}).items()}
    where = _address(event_name, values, what)
    (key,) = where.keys
    if namespace:
        key = within(namespace, key)
    plainly = {name: plain(value) for name, value in values.items()}
    # The order of a list of values means nothing: equal matches are one claim.
    residual = {
        name: sorted(plain(value), key=str) if name.endswith("__in") else plain(value)
        for name, value in where.residual.items()
    }
    unique = digest("claim", event_name, key, json.dumps(residual, sort_keys=True))
    claim = EventClaim(
        event_name=event_name, namespace=namespace, match=plainly, key=key, residual=residual, unique_key=unique
    )
    claim.shape = where.shape
    return claim


def _address(event_name: str, values: Mapping[str, Any], what: str) -> Address:
    sources = sources_of(event_name)
    for name, value in values.items():
        if isinstance(value, str) and "{{" in value:
            raise DefinitionError(f"{what}: {name!r} is compared with {value!r}; give the value itself (ctx.field).")
        troubles = [problem_with(source.owner, name) for source in sources]
        if troubles and all(troubles):
            raise DefinitionError(f"{what}: match compares {name!r}. {troubles[0]}")
    return address(event_name, values, sources)


def _event_of(event_name: str, entity: models.Model, namespace: str | None, what: str) -> Event:
    """Return an unsaved event of ``entity``: what its claims are looked up with."""
    if not isinstance(event_name, str) or not event_name or is_pattern(event_name):
        raise DefinitionError(f"{what}: name one event, as a text without '*'.")
    declared = [each for each in sources_of(event_name) if isinstance(entity, each.owner)]
    if not declared and sources_of(event_name):
        owners = ", ".join(sorted({each.owner._meta.label for each in sources_of(event_name)}))
        raise DefinitionError(f"{what}: {entity!r} has no such event; it is declared by {owners}.")
    definition = declared[0].definition if declared else None
    of = check_namespace(namespace, what)
    if of is None and definition is not None:
        of = definition.namespace_of(entity)
    event = Event(
        event_name=event_name,
        declared_as=definition.name if definition else event_name,
        namespace="" if of in (None, ANY) else str(of),
    )
    event.entity = entity
    return event


def _covering(event: Event, shapes: Shapes, now: datetime) -> EventClaim | None:
    """Return the claim that counts for ``event``: of those that stand the highest, and of equals the eldest."""
    keys = _keys(event, shapes)
    if not keys:
        return None
    found = EventClaim.objects.filter(event_name=event.event_name, key__in=keys)
    ordered = found.order_by("-priority", "held_at", "pk")
    return next((claim for claim in ordered if is_active(claim, now, event) and _fits(claim, event)), None)


def _take(wanted: EventClaim, owner: Owner, bump: bool, now: datetime) -> tuple[EventClaim, bool]:
    """Insert the claim, renew it, or take over one that has ended: each is one statement that one caller wins. Return
    the claim that stands now, and whether it is the wanted one."""
    for _ in range(TRIES):
        wanted.pk = None
        if insert_ignoring(EventClaim, [wanted], key="unique_key"):
            return wanted, True
        found = EventClaim.objects.filter(unique_key=wanted.unique_key).first()
        if found is None:
            continue  # released this instant
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
    raise AutomationError(f"The claim on {wanted.event_name!r} changes hands too fast; try again.")


def _said(claim: EventClaim) -> str:
    until = f" until {claim.expires_at:%Y-%m-%d %H:%M:%S %Z}" if claim.expires_at else ""
    return (
        f"{claim}{until}, with priority {claim.priority}. Wait for its release, or hold it with a higher priority=, or "
        "with bump=True whatever the priority."
    )


def _keys(event: Event, shapes: Shapes) -> list[str]:
    mine = shapes.of(CLAIMS, event)
    keys = entity_keys(event.event_name, event.entity, mine) if mine else []
    return keys + [within(event.namespace, key) for key in keys] if event.namespace else keys


def _fits(claim: EventClaim, event: Event) -> bool:
    return not claim.residual or (event.entity is not None and satisfies(event.entity, claim.residual))
