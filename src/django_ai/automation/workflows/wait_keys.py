"""Channels, keys and visits: the name of what a run waits for, and the digest under which its wait is found, the same
from both sides; and which rows are waits of the whole run.
"""

from __future__ import annotations

from ..values.digests import digest

SUBFLOW = "subflow"
"""Prefix of the channel on which a child run reports its end to its parent."""

EVENT_CHANNEL = "event:"
"""Prefix of the channel of an event."""

WHOLE_RUN = 0
"""``Wait.visit`` of an event that cancels the run, whatever it does (``cancel_on=``). Visits begin with 1."""

WAITS = "waits"
"""``RoutingShape.used_by`` of the shapes that waits need."""


def subflow_channel(run_pk: int, visit: int, branch: str = "") -> str:
    """Return the channel of the child run that a run has started on this visit, in a branch if it is one of several."""
    return f"{SUBFLOW}:{run_pk}:{visit}" + (f":{branch}" if branch else "")


def branch_of(channel: str) -> str:
    """Return the branch in which a run has started the child that reports its end on ``channel``."""
    parts = channel.split(":", 3)
    return parts[3] if len(parts) == 4 else ""


def channel_key(channel: str) -> str:
    """Return the key of waits for any message on ``channel``."""
    return digest("channel", channel)


def own_key(event_name: str, label: str, entity_id: str) -> str:
    """Return the key of waits for an event of the run's own entity."""
    return digest("own", event_name, label, entity_id)
