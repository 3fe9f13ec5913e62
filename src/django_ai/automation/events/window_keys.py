"""The windows that collect an event, and their keys, which are read from its entity and payload.

The keys are evaluated with the event's condition, while no transaction is open. What an attribute of the entity raises
is handled like an error of the payload: the event is retried, and then parked.
"""

from __future__ import annotations

from ..db.writer import from_writer
from .event_keys import value_of
from .models import Event
from .subscriptions import subscriptions
from .windows import window_key


@from_writer()
def windows_for(event: Event) -> list[tuple[str, str, str]]:
    """Return kind, name and key of each window that collects ``event``."""
    found = []
    for each in subscriptions.with_windows(event.event_name, event.namespace):
        assert each.window is not None
        kind, name = each.window_target
        found.append((kind, name, window_key(kind, name, event.namespace, value_of(each.window.key, event))))
    return list(dict.fromkeys(found))
