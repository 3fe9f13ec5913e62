"""Which claim counts for an event, and whether a claim is still active.

Of several active claims that cover an event, the one of the highest priority counts, and of equals the oldest. The
engine asks when an execution starts, not when the event occurs. The layers above call ``claim_against``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.db import transaction

from ..db.writer import alias_of
from ..queues.causation import Owner
from .claim_owners import owner_kinds, unfinished_owners
from .matching.lookups import event_satisfies
from .matching.match import event_keys, namespaced_key
from .models import Event, EventClaim, RoutingShape, Shapes

CLAIMS = "claims"
"""The kind of routing shapes that claims use."""


def claim_against(event: Event, owner: Owner, now: datetime) -> EventClaim | None:
    """Return the claim that keeps ``event`` from ``owner``, or None."""
    claim = claim_covering(event, RoutingShape.of([event]), now)
    return None if claim is None or (claim.owner_kind, claim.owner_id) == (owner.kind, owner.pk) else claim


def claim_covering(event: Event, shapes: Shapes, now: datetime) -> EventClaim | None:
    """Return the claim that counts for ``event``, or None."""
    keys = _keys(event, shapes)
    if not keys:
        return None
    found = EventClaim.objects.filter(event_name=event.event_name, key__in=keys)
    ordered = found.order_by("-priority", "held_at", "pk")
    return next((claim for claim in ordered if is_active(claim, now, event) and _fits(claim, event)), None)


def is_active(claim: EventClaim, now: datetime, event: Event | None = None) -> bool:
    """Return whether ``claim`` has not ended: by time, with its run, or by number.

    ``event``: if it was counted as one of the number, the claim is still active for it.
    """
    if claim.expires_at is not None and claim.expires_at <= now:
        return False
    if claim.events_left == 0 and (event is None or event.pk not in claim.counted):
        return False
    if claim.owner_kind not in owner_kinds():
        return False
    return unfinished_owners(claim.owner_kind).filter(pk=claim.owner_id).exists()


def count_events(events: Sequence[Event], shapes: Shapes) -> None:
    """Count ``events`` for the claims that end after a number of them. Idempotent."""
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


def _keys(event: Event, shapes: Shapes) -> list[str]:
    mine = shapes.of(CLAIMS, event)
    keys = event_keys(event.event_name, event, mine) if mine else []
    return keys + [namespaced_key(event.namespace, key) for key in keys] if event.namespace else keys


def _fits(claim: EventClaim, event: Event) -> bool:
    return event_satisfies(event, claim.residual)
