"""The page "automations of an entity": what has happened, what waits and what is planned, of all its events, runs,
agents and callbacks in one line of time, and every subscriber that did not act, with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Model, Q
from django.utils.text import capfirst
from django.utils.translation import gettext

from ..agents.models import AgentRun, AgentStatus
from ..events.declarations import declared_on
from ..events.entities import rows_about
from ..events.models import Event, EventStatus
from ..events.names import may_match
from ..events.subscriptions import subscriptions
from ..events.upcoming import Upcoming, upcoming
from ..events.why import Answer, Standing, why
from ..events.why.asking import names_of
from ..queues.admin_stories import Reader
from ..queues.history import told
from ..queues.models import Action
from ..values.text import last_line
from ..workflows.models import WorkflowRun
from ..workflows.statuses import WorkflowStatus
from .answers import AnswerLine, kind_text, lines_of
from .reading import MAX_ENTRIES, TONES, page_of, page_of_cause
from .story import Moment, Story, Tone

MAX_EVENTS = 30
"""How many events of an entity the page asks about: the newest."""


@dataclass(slots=True)
class EntityPage:
    """What the page shows: the line of time, a table of all subscribers that have not acted, and the answer to the one
    that was asked about."""

    story: Story
    others: list[AnswerLine]
    subscribers: list[str]
    asked: list[AnswerLine] = field(default_factory=list)
    subscriber: str = ""
    error: str = ""
    has_line: bool = True


def entity_story(entity: Model, reader: Reader, kinds: Collection[str], now: datetime, *, base: str) -> EntityPage:
    """Return the page of ``entity`` for a user who may view rows of ``kinds``."""
    answers = [each for each in why(entity, limit=MAX_EVENTS).answers if each.kind in kinds]
    planned = [each for each in upcoming(entity, limit=MAX_ENTRIES) if each.kind in kinds or each.kind == "event"]
    past = [*_acts(answers, reader), *_events(entity, reader), *_other_runs(entity, answers, kinds, reader)]
    past += _deeds(entity, answers, reader)
    past.sort(key=lambda each: each.at or now, reverse=True)
    story = Story(
        title=str(entity),
        state=gettext("%s planned or waiting") % len(planned),
        tone=_tone(answers, planned),
        now=_sentence(answers, planned),
        planned=[_planned(each, reader) for each in planned],
        past=past[:MAX_ENTRIES],
        is_cut=len(past) > MAX_ENTRIES,
    )
    others = [each for each in answers if each.standing not in (Standing.RAN, Standing.FAILED)]
    return EntityPage(
        story,
        lines_of(others[:MAX_ENTRIES], reader, kinds, base=base, may_see_data=reader.may_see_data, detailed=False),
        subscribers_of(type(entity), kinds),
    )


def question_about(entity: Model, kinds: Collection[str], subscriber: str) -> EntityPage:
    """Return the page with nothing but the question why ``subscriber`` acted on events of ``entity``, or did not."""
    story = Story(title=str(entity), state=gettext("Why?"), tone=Tone.NEUTRAL, now=subscriber)
    return EntityPage(story, [], subscribers_of(type(entity), kinds), subscriber=subscriber, has_line=False)


def subscribers_of(model: type[Model], kinds: Collection[str]) -> list[str]:
    """Return the names of the subscribers to events of ``model``, sorted."""
    names = [each.definition.name for each in declared_on(model)]
    return sorted(
        {
            name
            for subscription in subscriptions.everything()
            if subscription.subscriber[0] in kinds and any(may_match(subscription.event_name, each) for each in names)
            for name in names_of(subscription)
        }
    )


def _acts(answers: list[Answer], reader: Reader) -> Iterator[Moment]:
    """Yield what the subscribers to events of the entity have done."""
    for each in answers:
        if each.row is None or each.standing in (Standing.WAITS, Standing.NOT_YET):
            continue
        title = f"{kind_text(each.kind)} {each.subscriber}"
        tone = Tone.BAD if each.standing is Standing.FAILED else TONES.get(getattr(each.row, "status", ""), Tone.GOOD)
        text = gettext("on %(event)s. %(reason)s") % {"event": each.event, "reason": each.reason}
        yield Moment(title, each.at, tone, text, page_of(each.row, reader))


def _events(entity: Model, reader: Reader) -> Iterator[Moment]:
    rows = Event.objects.filter(rows_about(entity), ~Q(status=EventStatus.PENDING)).order_by("-pk")
    for event in rows[:MAX_EVENTS]:
        status = EventStatus(event.status)
        title = gettext("Event %s") % event.event_name
        label = gettext("occurred") if status == EventStatus.PROCESSED else str(status.label)
        text = f"{label}: {last_line(event.error)}" if event.error else label
        at = event.occurred_at or event.parked_at or event.event_created_at
        yield Moment(title, at, TONES.get(status, Tone.NEUTRAL), text, page_of(event, reader))


def _other_runs(entity: Model, answers: list[Answer], kinds: Collection[str], reader: Reader) -> Iterator[Moment]:
    """Yield runs and agents of the entity that no event of it has started: by code, or as children of a run."""
    known = {(type(each.row), each.row.pk) for each in answers if each.row is not None}
    rows = rows_about(entity)
    if "workflow" in kinds:
        for run in WorkflowRun.objects.filter(rows).defer("data", "branches", "ending").order_by("-pk")[:MAX_ENTRIES]:
            if (WorkflowRun, run.pk) not in known and run.started_at is not None:
                label = str(WorkflowStatus(run.status).label)
                yield _run(gettext("Workflow %s") % run, run, label, reader)
    if "agent" in kinds:
        for agent in AgentRun.objects.filter(rows).defer("data").order_by("-pk")[:MAX_ENTRIES]:
            if (AgentRun, agent.pk) not in known:
                yield _run(gettext("Agent %s") % agent, agent, str(AgentStatus(agent.status).label), reader)


def _run(title: str, run: WorkflowRun | AgentRun, label: str, reader: Reader) -> Moment:
    reason = last_line(run.error)
    tone = TONES.get(run.status, Tone.NEUTRAL)
    text = f"{label}: {reason}" if reason else label
    return Moment(title, run.started_at or run.created_at, tone, text, page_of(run, reader))


def _deeds(entity: Model, answers: list[Answer], reader: Reader) -> Iterator[Moment]:
    """Yield what people have done to the rows of the subscribers."""
    rows: dict[str, set[str]] = {}
    for each in answers:
        if each.row is not None:
            rows.setdefault(each.row._meta.label_lower, set()).add(str(each.row.pk))
    if not rows:
        return
    query = Q(pk__in=[])
    for label, keys in rows.items():
        query |= Q(model=label, key__in=keys)
    for action in Action.objects.filter(query).order_by("-pk")[:MAX_ENTRIES]:
        title = f"{action.actor_name}: {told(action)}"
        yield Moment(title, action.done_at, Tone.NEUTRAL, action.what, page_of_cause(action.actor, reader))


def _planned(each: Upcoming, reader: Reader) -> Moment:
    return Moment(f"{kind_text(each.kind)} {each.name}", each.at, Tone.WAITING, each.reason, page_of(each.row, reader))


def _tone(answers: list[Answer], planned: list[Upcoming]) -> Tone:
    if any(each.standing is Standing.FAILED for each in answers):
        return Tone.BAD
    return Tone.WAITING if planned else Tone.GOOD


def _sentence(answers: list[Answer], planned: list[Upcoming]) -> str:
    failed = sum(each.standing is Standing.FAILED for each in answers)
    found = []
    if failed:
        found.append(gettext("1 has failed") if failed == 1 else gettext("%s have failed") % failed)
    dated = next((each for each in planned if each.at is not None), None)
    if dated is not None:
        found.append(gettext("next: %(name)s, %(reason)s") % {"name": dated.name, "reason": dated.reason})
    elif planned:
        found.append(gettext("it waits: %(reason)s") % {"reason": planned[0].reason})
    return capfirst("; ".join(found)) or gettext("Nothing is planned.")
