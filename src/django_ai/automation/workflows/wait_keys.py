"""Channels and keys: the name of what a run waits for, and the digest under which its wait is found, the same from
both sides.
"""

from __future__ import annotations

from ..values.digests import digest

SUBFLOW = "subflow"
"""Prefix of the channel on which a child run reports its end to its parent."""

EVENT_CHANNEL = "event:"
"""Prefix of the channel of an event."""

WAITS = "waits"
"""``RoutingShape.used_by`` of the shapes that waits need."""


def subflow_channel(run_pk: int, visit: int) -> str:
    """Return the channel of the child run that a run has started on this visit."""
    return f"{SUBFLOW}:{run_pk}:{visit}"


def channel_key(channel: str) -> str:
    """Return the key of waits for any message on ``channel``."""
    return digest("channel", channel)


def own_key(event_name: str, label: str, entity_id: str) -> str:
    """Return the key of waits for an event of the run's own entity."""
    return digest("own", event_name, label, entity_id)
