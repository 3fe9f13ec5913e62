"""What a waiting run has seen that did not match: the newest events of the names that it waits for, compared field by
field with its waits. The comparison is that of ``why``; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator

from ..events.entities import load_entities
from ..events.matching.comparing import UNREADABLE, compare_fields
from ..events.models import Event
from ..events.sources import event_sources
from ..events.why.answers import Condition, shown
from ..events.why.seen import SeenEvent
from .models import Wait, WorkflowRun
from .wait_keys import EVENT_CHANNEL

MAX_WAITS = 3
MAX_EVENTS = 3


def seen_by_run(run: WorkflowRun) -> list[SeenEvent]:
    """Return events that have occurred since the run waits, and that none of its waits has matched, the newest first. A
    few queries for each of its first waits."""
    waits = [wait for wait in run.waits.all() if wait.visit == run.visit and wait.channel.startswith(EVENT_CHANNEL)]
    found: list[SeenEvent] = []
    for wait in sorted(waits, key=lambda each: each.pk)[:MAX_WAITS]:
        name = wait.channel.removeprefix(EVENT_CHANNEL)
        # The order of the index on name and position, from its end.
        events = Event.objects.filter(event_name=name, position__gt=run.position).order_by("-position")
        newest = [event for event in events[:MAX_EVENTS] if event.pk != run.event_id]
        load_entities(newest)
        for event in newest:
            conditions = list(_compared(wait, event, name))
            if any(each.holds is False for each in conditions):
                found.append(SeenEvent(event, wait.description, conditions))
    return found


def _compared(wait: Wait, event: Event, name: str) -> Iterator[Condition]:
    if wait.namespace:
        is_in = wait.namespace == event.namespace
        found = repr(event.namespace) if event.namespace else "no namespace"
        yield Condition("namespace", repr(wait.namespace), found, is_in)
    for each in compare_fields(wait.match or {}, event, event_sources(name)):
        actual = "not readable" if each.actual is UNREADABLE else shown(each.actual)
        yield Condition(f"match: {each.name}", shown(each.expected), actual, each.holds, is_data=True)
