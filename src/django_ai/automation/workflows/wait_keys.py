"""The keys under which waits are found, the same from both sides."""

from __future__ import annotations

from ..values.digests import digest

WAITS = "waits"
"""Whose the routing shapes are that waits ask for."""


def channel_key(channel: str) -> str:
    """Return the key under which those wait who take any message on ``channel``."""
    return digest("channel", channel)


def own_key(event_name: str, label: str, entity_id: str) -> str:
    """Return the key under which a run waits for an event of its own entity."""
    return digest("own", event_name, label, entity_id)
