"""The story of an agent: what it has handled, what lies in its mailbox, and which events it has claimed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from django.utils.translation import gettext

from ..agents.definitions import agent_of
from ..agents.models import AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from ..agents.routing import own_labels
from ..agents.why import seen_by_agent
from ..events.models import EventClaim
from ..exceptions import AutomationError
from ..queues.admin_stories import Reader
from ..values.text import last_line
from .failures import failure_of
from .flow import agent_flow
from .reading import (
    MAX_ENTRIES,
    TONES,
    data_of,
    deeds_of,
    deeds_of_people,
    facts_of_run,
    links_of,
    now_of,
    page_of,
    seen_text,
    tone_of,
)
from .story import Fact, Moment, Story, Tone, moment_text
from .verb_pages import counted

AGENT = "agent"
MAX_ROUTES = 20
"""How many handlers the header lists."""


def agent_story(run: AgentRun, reader: Reader, now: datetime) -> Story:
    """Return the story of ``run``."""
    status = AgentStatus(run.status)
    story = Story(
        title=str(run),
        state=gettext("Running") if run.lease else str(status.label),
        tone=tone_of(run, status),
        now=now_of(run, now),
        facts=[
            Fact(gettext("Agent"), run.name),
            *facts_of_run(run, reader, now),
            *_mailbox(run),
            *_routes(run, reader),
            *_claims(run, reader),
        ],
        failure=failure_of(run.error) if status in (AgentStatus.FAILED, AgentStatus.PARKED) else None,
        details=[seen_text(each, reader) for each in seen_by_agent(run)],
        data_title=gettext("Context"),
        data=data_of(run.data, reader),
        deeds=deeds_of(run, reader),
        links=links_of(reader),
    )
    story.flow = agent_flow(run)
    mailbox = run.executions.select_related("event")
    ahead = [HandlerStatus.PENDING, HandlerStatus.WAITING]
    story.planned = [
        _planned(each, reader) for each in mailbox.filter(status__in=ahead).order_by("due_at")[:MAX_ENTRIES]
    ]
    newest = list(mailbox.exclude(status__in=ahead).order_by("-pk")[: MAX_ENTRIES + 1])
    story.is_cut = len(newest) > MAX_ENTRIES
    past = [_handled(each, reader) for each in newest[:MAX_ENTRIES]]
    past += [*deeds_of_people(run, reader), *_ends(run, reader)]
    story.past = sorted(past, key=lambda entry: entry.at or now, reverse=True)
    return story


def _planned(each: HandlerExecution, reader: Reader) -> Moment:
    title = gettext("%(handler)s handles %(event)s") % {"handler": each.handler, "event": each.event.event_name}
    text = str(HandlerStatus(each.status).label)
    if each.error:
        text = f"{text}: {last_line(each.error)}"
    return Moment(title, each.due_at, Tone.WAITING, text, page_of(each, reader))


def _handled(each: HandlerExecution, reader: Reader) -> Moment:
    title = gettext("%(handler)s handled %(event)s") % {"handler": each.handler, "event": each.event.event_name}
    if each.status != HandlerStatus.COMPLETED:
        title = gettext("%(handler)s did not handle %(event)s") % {
            "handler": each.handler,
            "event": each.event.event_name,
        }
    label, reason = str(HandlerStatus(each.status).label), last_line(each.error)
    failed = each.status in (HandlerStatus.FAILED, HandlerStatus.PARKED)
    worked = None if each.started_at is None or each.finished_at is None else each.finished_at - each.started_at
    return Moment(
        title,
        each.started_at or each.finished_at or each.parked_at or each.created_at,
        TONES.get(each.status, Tone.NEUTRAL),
        f"{label}: {reason}" if reason and not failed else label,
        page_of(each, reader),
        waited=None if each.started_at is None else each.started_at - each.due_at,
        worked=worked,
        failure=failure_of(each.error) if failed else None,
    )


def _claims(run: AgentRun, reader: Reader) -> Iterator[Fact]:
    if not run.holds_claims:
        return
    for claim in EventClaim.objects.filter(owner_kind=AGENT, owner_id=run.pk).order_by("pk")[:MAX_ENTRIES]:
        yield Fact(gettext("Has claimed"), _claimed(claim, reader), page_of(claim, reader))


def _claimed(claim: EventClaim, reader: Reader) -> str:
    """Return the event that a claim is on, with what it compares only for readers who may see data."""
    until = "" if claim.expires_at is None else gettext(", until %s") % moment_text(claim.expires_at)
    match = f" {_compared(claim.match)}" if claim.match and reader.may_see_data else ""
    return f"{claim.event_name}{match}{until}"


def _mailbox(run: AgentRun) -> Iterator[Fact]:
    """Yield how much lies in the mailbox, each count in an index and up to a limit."""
    states = (HandlerStatus.PENDING, HandlerStatus.WAITING, HandlerStatus.FAILED, HandlerStatus.PARKED)
    found = [(state, counted(run.executions.filter(status=state))) for state in states]
    words = [f"{state.label}: {count}" for state, count in found if count != "0"]
    yield Fact(gettext("Mailbox"), ", ".join(words) or gettext("empty"))


def _routes(run: AgentRun, reader: Reader) -> Iterator[Fact]:
    """Yield which events the agent receives: for each handler its event, and the match with the values of the
    Context; without the permission to see them, with its expressions."""
    if run.is_finished:
        return
    try:
        definition = agent_of(run)
        context = run.context if reader.may_see_data and not run.has_no_context else None
    except AutomationError:  # the code is gone, or cannot read the Context
        return
    for each in definition.handlers[:MAX_ROUTES]:
        match = definition.match_of(each)
        text = each.event_name if each.offset is None else f"{each.event_name} {each.milestone}"
        if match is not None:
            try:
                values = dict(match.lookups) if context is None else match.values_from(context)
            except AutomationError:
                values = dict(match.lookups)
            text = f"{text} {_compared(values)}"
        elif run.entity_type and own_labels(run.entity_type, each.event_name):
            text = gettext("%s of its entity") % text
        yield Fact(gettext("%s receives") % each.method, text)


def _compared(values: Mapping[str, Any]) -> str:
    """Return lookups and their values in words."""
    return gettext("with %s") % ", ".join(f"{name}={value!r:.80}" for name, value in values.items())


def _ends(run: AgentRun, reader: Reader) -> Iterator[Moment]:
    title = gettext("Created") if run.event is None else gettext("Created by %s") % run.event
    yield Moment(title, run.created_at, url=page_of(run.event, reader))
    if run.finished_at is not None:
        status = AgentStatus(run.status)
        yield Moment(str(status.label), run.finished_at, TONES.get(status, Tone.NEUTRAL), last_line(run.error))
