"""The stories of callback executions, handler executions and signals."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.utils.translation import gettext

from ..agents.definitions import find_agent
from ..agents.models import HandlerExecution, HandlerStatus
from ..events.callbacks import all_callbacks
from ..events.models import CallbackExecution, ExecutionStatus
from ..exceptions import AutomationError
from ..queues.admin_stories import Reader
from ..queues.lanes import shown_name
from ..values.text import last_line
from ..workflows.models import Signal
from ..workflows.signal_states import SignalState, state_of
from .failures import failure_of
from .reading import (
    TONES,
    data_of,
    deeds_of,
    deeds_of_people,
    links_of,
    now_of,
    page_of,
    page_of_cause,
    page_of_entity,
    tone_of,
)
from .story import Fact, Moment, Story, Tone, duration_text, moment_text

FAILED = ("failed", "parked")
SIGNAL_TONES = {
    SignalState.SENT: Tone.WAITING,
    SignalState.PARKED: Tone.BAD,
    SignalState.DELIVERED: Tone.GOOD,
    SignalState.READ: Tone.GOOD,
    SignalState.UNREAD: Tone.WAITING,
    SignalState.NEVER: Tone.STOPPED,
}
OVER = ("completed", "failed", "cancelled", "skipped")


def callback_story(row: CallbackExecution, reader: Reader, now: datetime) -> Story:
    """Return the story of an execution of a callback."""
    status = ExecutionStatus(row.status)
    story = _story(row, str(status.label), reader, now)
    callback = next((each for each in all_callbacks() if each.name == row.callback), None)
    story.facts = [
        *_about(None if callback is None else callback.function),
        Fact(gettext("Callback"), row.callback),
        *_event_facts(row, reader, now),
        Fact(gettext("Queue"), shown_name(row.queue)),
    ]
    if status == ExecutionStatus.PENDING and not row.lease:
        title = gettext("%s is called") % row.callback
        story.planned = [Moment(title, row.wake_at, Tone.WAITING, row.waiting_text(now))]
    return story


def handler_story(row: HandlerExecution, reader: Reader, now: datetime) -> Story:
    """Return the story of an event in the mailbox of an agent."""
    status = HandlerStatus(row.status)
    story = _story(row, str(status.label), reader, now)
    story.facts = [
        *_about(_method(row)),
        Fact(gettext("Agent"), str(row.run), page_of(row.run, reader)),
        Fact(gettext("Handler"), row.handler),
        *_event_facts(row, reader, now),
    ]
    if status in (HandlerStatus.PENDING, HandlerStatus.WAITING):
        title = gettext("%(handler)s handles %(event)s") % {"handler": row.handler, "event": row.event.event_name}
        story.planned = [Moment(title, row.due_at, Tone.WAITING, row.waiting_text(now))]
    return story


def signal_story(row: Signal, reader: Reader, now: datetime) -> Story:
    """Return the story of a signal: whether it was read, and by whom."""
    state = state_of(row)
    story = Story(
        title=str(row),
        state=str(state.label),
        tone=SIGNAL_TONES[state],
        now=_signal_text(row, state) or now_of(row, now),
        failure=failure_of(row.error) if row.parked_at is not None else None,
        data_title=gettext("Payload"),
        data=data_of(row.payload, reader) if row.payload is not None else "",
        deeds=deeds_of(row, reader),
        links=links_of(reader),
    )
    target = gettext("all runs that wait for it") if row.run is None else str(row.run)
    story.facts = [
        Fact(gettext("Signal"), row.name),
        Fact(gettext("For"), target, page_of(row.run, reader)),
        Fact(gettext("Sent"), moment_text(row.sent_at)),
    ]
    if row.caused_by:
        story.facts.append(Fact(gettext("Caused by"), row.caused_by, page_of_cause(row.caused_by, reader)))
    past = [*deeds_of_people(row, reader), Moment(gettext("Sent"), row.sent_at)]
    for title, at in ((gettext("Delivered"), row.delivered_at), (gettext("Read"), row.consumed_at)):
        if at is not None:
            past.append(Moment(title, at, Tone.GOOD, url=page_of(row.run, reader)))
    story.past = sorted(past, key=lambda entry: entry.at or now, reverse=True)
    return story


def _signal_text(row: Signal, state: SignalState) -> str:
    """Return the sentence about a signal that was delivered; empty for one that was not."""
    if state == SignalState.DELIVERED:
        return gettext("It was delivered to all runs that waited for it then.")
    said = {
        SignalState.READ: gettext("%s has read it."),
        SignalState.NEVER: gettext("%s has ended without reading it."),
        SignalState.UNREAD: gettext("It is kept until %s waits for it."),
    }.get(state, "")
    return said % row.run if said else ""


def _story(row: Any, label: str, reader: Reader, now: datetime) -> Story:
    failed, lease = row.status in FAILED, getattr(row, "lease", None)
    if row.status == "completed":
        said = gettext("It has completed.")
    elif row.status in OVER:
        said = last_line(row.error) or gettext("It has ended.")
    else:
        said = now_of(row, now)
    story = Story(
        title=str(row),
        state=gettext("Running") if lease else label,
        tone=tone_of(row, row.status) if hasattr(row, "lease") else TONES.get(row.status, Tone.NEUTRAL),
        now=said,
        details=[gettext("Failed attempts: %s.") % row.attempt] if row.attempt and row.status not in OVER else [],
        failure=failure_of(row.error) if failed or row.error.lstrip().startswith("Traceback") else None,
        deeds=deeds_of(row, reader),
        links=links_of(reader),
        data="",
    )
    story.past = sorted(
        [*_steps(row, label), *deeds_of_people(row, reader)], key=lambda entry: entry.at or now, reverse=True
    )
    return story


def _steps(row: Any, label: str) -> Iterator[Moment]:
    yield Moment(gettext("Created by %s") % row.event, row.created_at)
    if row.started_at is not None:
        due = getattr(row, "due_at", row.created_at)
        yield Moment(gettext("Last attempt"), row.started_at, Tone.NEUTRAL, waited=max(row.started_at - due, due - due))
    if row.finished_at is not None:
        worked = None if row.started_at is None else row.finished_at - row.started_at
        tone = TONES.get(row.status, Tone.NEUTRAL)
        yield Moment(label, row.finished_at, tone, last_line(row.error), worked=worked)


def _event_facts(row: Any, reader: Reader, now: datetime) -> Iterator[Fact]:
    event = row.event
    yield Fact(gettext("Event"), str(event), page_of(event, reader))
    if row.milestone:
        yield Fact(gettext("Milestone"), row.milestone)
    if event.entity_type:
        page = page_of_entity(event.entity_type, event.entity_id, reader)
        yield Fact(gettext("Entity"), f"{event.entity_type} {event.entity_id}", page)
    yield Fact(gettext("Created"), moment_text(row.created_at))
    label = gettext("Took") if row.finished_at else gettext("Age")
    yield Fact(label, duration_text((row.finished_at or now) - row.created_at))


def _about(code: Any) -> list[Fact]:
    text = (getattr(code, "__doc__", None) or "").strip()
    return [Fact(gettext("About"), text.splitlines()[0])] if text else []


def _method(row: HandlerExecution) -> Any:
    try:
        return getattr(find_agent(row.run.name).cls, row.handler, None)
    except AutomationError:  # the code is gone
        return None
