"""The story of an event: why it is due when it is due, and what each of its subscribers did, does or will do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.utils.translation import gettext

from ..agents.definitions import agents_spawned_by
from ..agents.models import AgentStatus, HandlerStatus
from ..events.callbacks import callbacks_of
from ..events.models import Event, EventStatus, ExecutionStatus
from ..events.timing import not_fired
from ..events.why import why
from ..queues.admin_stories import Reader
from ..values.text import last_line
from ..workflows.definitions import workflows_on
from ..workflows.statuses import WorkflowStatus
from .answers import MODELS, lines_of
from .failures import failure_of
from .reading import (
    MAX_ENTRIES,
    TONES,
    data_of,
    deeds_of,
    deeds_of_people,
    links_of,
    now_of,
    page_of,
    page_of_cause,
    page_of_entity,
    row_page,
    tone_of,
)
from .story import Fact, Moment, Story, Tone, moment_text


def event_story(event: Event, reader: Reader, now: datetime) -> Story:
    """Return the story of ``event``."""
    status = EventStatus(event.status)
    story = Story(
        title=str(event),
        state=str(status.label),
        tone=tone_of(event, status),
        now=_now(event, now),
        facts=list(_facts(event, reader)),
        failure=failure_of(event.error) if status == EventStatus.PARKED else None,
        data_title=gettext("Payload"),
        data=data_of(event.payload, reader) if event.payload is not None else "",
        deeds=deeds_of(event, reader),
        links=links_of(reader),
    )
    subscribers = list(_subscribers(event, reader))
    happened = {Tone.GOOD, Tone.BAD, Tone.STOPPED}
    story.planned = [entry for entry in subscribers if entry.tone not in happened]
    past = [entry for entry in subscribers if entry.tone in happened]
    past += [*deeds_of_people(event, reader), *_ends(event)]
    story.past = sorted(past, key=lambda entry: entry.at or now, reverse=True)
    explained = row_page(event, "why", reader)
    story.subscribers = lines_of(
        why(event).answers[:MAX_ENTRIES], reader, MODELS, base=explained, may_see_data=False, detailed=False
    )
    return story


def _now(event: Event, now: datetime) -> str:
    if event.status == EventStatus.PROCESSED and event.wake_at is None:
        return gettext("It has occurred.")
    return now_of(event, now, is_over=event.status in (EventStatus.CANCELLED, EventStatus.EXPIRED))


def _facts(event: Event, reader: Reader) -> Iterator[Fact]:
    yield Fact(gettext("Event"), event.event_name)
    if event.declared_as != event.event_name:
        yield Fact(gettext("Declared as"), event.declared_as)
    if event.namespace:
        yield Fact(gettext("Namespace"), event.namespace)
    if event.is_free:
        yield Fact(gettext("Key"), event.key)
    else:
        page = page_of_entity(event.entity_type, event.entity_id, reader)
        yield Fact(gettext("Entity"), f"{event.entity_type} {event.entity_id}", page)
    if event.at is not None:
        yield Fact(gettext("Its date"), moment_text(event.at))
        if event.timezone:
            yield Fact(gettext("Time zone"), event.timezone)
    if event.occurred_at is not None:
        yield Fact(gettext("Occurred"), moment_text(event.occurred_at))
    if event.caused_by:
        yield Fact(gettext("Caused by"), event.caused_by, page_of_cause(event.caused_by, reader))


def _subscribers(event: Event, reader: Reader) -> Iterator[Moment]:
    """Yield what each subscriber has done, is doing, or will do."""
    ahead, seen = not_fired(event), set[tuple[str, str]]()
    for call in event.executions.order_by("-pk")[:MAX_ENTRIES]:
        seen.add((call.callback, call.milestone))
        title = gettext("Callback %s") % call.callback
        yield _row(title, call, str(ExecutionStatus(call.status).label), call.finished_at or call.created_at, reader)
    for callback in callbacks_of(event.event_name, event.namespace):
        if (callback.name, callback.milestone) not in seen and callback.milestone in ahead:
            title, text = gettext("Callback %s") % callback.name, gettext("will be called")
            yield Moment(title, ahead[callback.milestone], Tone.WAITING, text)
    started = set[str]()
    for run in event.workflow_runs.order_by("-pk")[:MAX_ENTRIES]:
        started.add(run.name)
        title = gettext("Workflow %s") % run
        yield _row(title, run, str(WorkflowStatus(run.status).label), run.started_at or run.created_at, reader)
    for definition in workflows_on(event):
        if definition.name not in started and definition.offset is None and "" in ahead:
            title, text = gettext("Workflow %s") % definition.name, gettext("will start")
            yield Moment(title, ahead[""], Tone.WAITING, text)
    spawned = set[str]()
    for agent in event.agent_runs.order_by("-pk")[:MAX_ENTRIES]:
        spawned.add(agent.name)
        title = gettext("Agent %s") % agent
        yield _row(title, agent, str(AgentStatus(agent.status).label), agent.started_at or agent.created_at, reader)
    for found in agents_spawned_by(event):
        if found.name not in spawned and "" in ahead:
            yield Moment(gettext("Agent %s") % found.name, ahead[""], Tone.WAITING, gettext("will be spawned"))
    for each in event.handler_executions.select_related("run").order_by("-pk")[:MAX_ENTRIES]:
        title = gettext("%(agent)s, handler %(handler)s") % {"agent": each.run, "handler": each.handler}
        yield _row(title, each, str(HandlerStatus(each.status).label), each.finished_at or each.due_at, reader)


def _row(title: str, row: Any, label: str, at: datetime, reader: Reader) -> Moment:
    reason = last_line(row.error)
    text = f"{label}: {reason}" if reason else label
    return Moment(title, at, TONES.get(row.status, Tone.NEUTRAL), text, page_of(row, reader))


def _ends(event: Event) -> Iterator[Moment]:
    yield Moment(gettext("Recorded"), event.event_created_at)
    if event.occurred_at is not None:
        yield Moment(gettext("Occurred"), event.occurred_at, Tone.GOOD)
