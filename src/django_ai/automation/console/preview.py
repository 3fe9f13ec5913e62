"""What saving a form would set off: timers that move, that are planned or cancelled, and events that fire.

Computed from the declarations and the unsaved values: no callback, step or handler is called, and nothing is written.
The rows of inlines count, too: each as its own save, after that of the entity, as the admin does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Model
from django.utils.translation import gettext

from ..agents.definitions import HandlerDefinition, find_agent
from ..agents.models import AgentRoute
from ..agents.routing import keys_for
from ..events.models import Event, EventStatus
from ..events.recording.preview import PreviewedEvent, preview_save
from ..events.subscriptions import Subscription, subscriptions
from ..events.upcoming import planned_moment
from ..values.text import last_line
from ..workflows.definitions import Start
from ..workflows.models import WorkflowRun
from ..workflows.starting import origin_key_of
from .story import Tone, moment_text

Timer = tuple[str, str, str]
"""The kind and name of who acts, and the milestone."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that saving would do."""

    text: str
    tone: Tone = Tone.NEUTRAL


@dataclass(slots=True)
class Preview:
    """What saving would do: one sentence, and a line for each thing."""

    moved: int = 0
    planned: int = 0
    cancelled: int = 0
    fired: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.moved or self.planned or self.cancelled or self.fired or self.lines)

    @property
    def sentence(self) -> str:
        """Everything in one sentence, such as "Saving will move 2 timers, cancel 1 timer, fire `confirmed`."."""
        moved, planned, cancelled = self.moved, self.planned, self.cancelled
        parts = []
        if moved:
            parts.append(gettext("move 1 timer") if moved == 1 else gettext("move %s timers") % moved)
        if planned:
            parts.append(gettext("set 1 timer") if planned == 1 else gettext("set %s timers") % planned)
        if cancelled:
            parts.append(gettext("cancel 1 timer") if cancelled == 1 else gettext("cancel %s timers") % cancelled)
        for name, count in Counter(self.fired).items():
            text = gettext("fire “%(event)s”") if count == 1 else gettext("fire “%(event)s” %(count)s times")
            parts.append(text % {"event": name, "count": count})
        if not parts:
            return gettext("Saving moves no timer and fires nothing.")
        return gettext("Saving will %(effects)s.") % {"effects": ", ".join(parts)}

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict that JSON can hold."""
        return {
            "sentence": self.sentence,
            "moved": self.moved,
            "planned": self.planned,
            "cancelled": self.cancelled,
            "fired": self.fired,
            "lines": [each.text for each in self.lines],
        }


def preview(entity: Model, now: datetime, inlines: Sequence[Model] = (), deleted: Sequence[Model] = ()) -> Preview:
    """Return what saving ``entity`` would do: a stored row with changed values, or a new one.

    ``inlines``: further rows that are saved with it. ``deleted``: those that are deleted with it, which are only named.
    """
    of_entity = preview_save(entity, now)
    of_inlines = [(_named(row), preview_save(row, now)) for row in inlines]
    events = [*of_entity, *(each for _, found in of_inlines for each in found)]
    begun, reached = _begun_runs(events), _agents_reached(events)
    found = Preview()
    for subject, saved in [("", of_entity), *of_inlines]:
        first = len(found.lines)
        for each in saved:
            _add(found, each, begun, reached)
        if subject:
            found.lines[first:] = [Line(f"{subject}: {line.text}", line.tone) for line in found.lines[first:]]
    for row in deleted:
        text = gettext("%(row)s is deleted: what follows from that is not shown")
        found.lines.append(Line(text % {"row": _named(row)}, Tone.STOPPED))
    return found


def _named(row: Model) -> str:
    name = str(row._meta.verbose_name)
    return gettext("%s (new)") % name if row._state.adding else f"{name} {row.pk}"


def _add(found: Preview, each: PreviewedEvent, begun: set[str], reached: set[str]) -> None:
    """Add what one event of a save would do."""
    if each.error:
        text = gettext("“%(event)s” cannot be evaluated: %(error)s")
        summary = last_line(each.error)
        found.lines.append(Line(text % {"event": each.definition.name, "error": summary}, Tone.BAD))
        return
    if each.fires:
        found.fired.append(each.after.event_name)
        found.lines.append(Line(_fired_text(each, reached), Tone.GOOD))
    old = {} if each.before is None else dict(_timers(each.before, begun, reached))
    new = dict(_timers(each.after, begun, reached))
    _compare(found, each, old, new)


def _compare(found: Preview, each: PreviewedEvent, old: dict[Timer, datetime], new: dict[Timer, datetime]) -> None:
    """Count the timers that differ, with a line for each. The event that fires is no timer any more."""
    for timer in dict.fromkeys([*old, *new]):
        before, after = old.get(timer), new.get(timer)
        name = _timer_text(timer)
        if before == after or (each.fires and timer[0] == "event"):
            continue
        if after is None:
            found.cancelled += 1
            assert before is not None
            text = gettext("%(timer)s: cancelled, was %(before)s") % {"timer": name, "before": moment_text(before)}
            found.lines.append(Line(text, Tone.STOPPED))
        elif before is None:
            found.planned += 1
            text = gettext("%(timer)s: %(after)s") % {"timer": name, "after": moment_text(after)}
            found.lines.append(Line(text, Tone.WAITING))
        else:
            found.moved += 1
            values = {"timer": name, "before": moment_text(before), "after": moment_text(after)}
            found.lines.append(Line(gettext("%(timer)s: %(before)s → %(after)s") % values, Tone.WAITING))


def _timers(event: Event, begun: set[str], reached: set[str]) -> Iterator[tuple[Timer, datetime]]:
    """Yield the moments at which something is to happen because of the event: its date, and the offsets from it."""
    if event.at is None or event.status not in (EventStatus.PENDING, EventStatus.PROCESSED):
        return
    definition = event.definition
    if event.status == EventStatus.PENDING and not event.armed:
        return
    if event.status == EventStatus.PENDING and definition is not None and definition.is_scheduled:
        yield ("event", event.event_name, ""), event.at
    for subscription in _subscribed(event):
        if not subscription.offset or not _is_reached(event, subscription, reached):
            continue
        if isinstance(subscription, Start) and origin_key_of(event.pk, subscription.workflow.name) in begun:
            continue
        if (planned := planned_moment(event, subscription)) is not None:
            kind, name = subscription.subscriber
            yield (kind, name, subscription.milestone), planned[0]


def _fired_text(each: PreviewedEvent, reached: set[str]) -> str:
    immediate = [one for one in _subscribed(each.after) if not one.offset and not one.fixed_milestone]
    names = [one.subscriber[1] for one in immediate if _is_reached(each.after, one, reached)]
    values = {"event": each.after.event_name, "names": ", ".join(dict.fromkeys(names))}
    if not names:
        return gettext("“%(event)s” occurs; nothing subscribes to it") % values
    return gettext("“%(event)s” occurs: %(names)s") % values


def _timer_text(timer: Timer) -> str:
    kind, name, milestone = timer
    words = {
        "event": gettext("event"),
        "callback": gettext("callback"),
        "workflow": gettext("workflow"),
        "agent": gettext("agent"),
        "handler": gettext("handler"),
    }
    return f"{words[kind]} {name} {milestone.removesuffix('?')}".strip()


def _subscribed(event: Event) -> Sequence[Subscription]:
    return subscriptions.subscribed(event.event_name, event.namespace)


def _states(events: Sequence[PreviewedEvent]) -> Iterator[Event]:
    for each in events:
        if each.before is not None:
            yield each.before
        yield each.after


def _begun_runs(events: Sequence[PreviewedEvent]) -> set[str]:
    """Return the keys of planned runs that have begun or ended: their date no longer moves them."""
    keys = {
        origin_key_of(event.pk, subscription.workflow.name)
        for event in _states(events)
        for subscription in _subscribed(event)
        if isinstance(subscription, Start) and subscription.offset and event.pk is not None
    }
    if not keys:
        return set()
    runs = WorkflowRun.objects.filter(origin_key__in=keys).exclude(status="withdrawn")
    begun = runs.exclude(started_at=None, finished_at=None)
    return {str(key) for key in begun.values_list("origin_key", flat=True)}


def _agents_reached(events: Sequence[PreviewedEvent]) -> set[str]:
    """Return the routing keys of the events under which an agent lives."""
    keys = {
        key
        for event in _states(events)
        for subscription in _subscribed(event)
        if isinstance(subscription, HandlerDefinition)
        for key in keys_for(find_agent(subscription.agent), subscription, event)
    }
    return set(AgentRoute.objects.filter(key__in=keys).values_list("key", flat=True).distinct()) if keys else set()


def _is_reached(event: Event, subscription: Subscription, reached: set[str]) -> bool:
    """Return whether somebody is there who subscribes: of a handler, an agent whose match finds the event."""
    if not isinstance(subscription, HandlerDefinition):
        return True
    return not reached.isdisjoint(keys_for(find_agent(subscription.agent), subscription, event))
