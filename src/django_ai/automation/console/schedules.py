"""The story of a schedule: its times in words, the next ones, and what the last ones have started."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice

from django.utils.translation import gettext

from ..events.models import CallbackExecution, Event, Schedule
from ..events.schedules.definitions import event_name_of
from ..exceptions import DefinitionError
from ..queues.admin_stories import Reader
from ..values.text import last_line
from ..workflows.models import WorkflowRun
from .failures import failure_of
from .reading import MAX_ENTRIES, TONES, deeds_of, deeds_of_people, links_of, now_of, page_of
from .story import Fact, Moment, Story, Tone, duration_text, moment_text

SHOWN_TIMES = 5


def schedule_story(row: Schedule, reader: Reader, now: datetime) -> Story:
    """Return the story of ``row``."""
    paused, parked = row.paused_at is not None, row.parked_at is not None
    story = Story(
        title=str(row),
        state=gettext("Paused") if paused else gettext("Parked") if parked else gettext("Active"),
        tone=Tone.STOPPED if paused else Tone.BAD if parked else Tone.WAITING,
        now=now_of(row, now),
        facts=list(_facts(row)),
        failure=failure_of(row.error) if parked else None,
        deeds=deeds_of(row, reader),
        links=links_of(reader),
        data="",
        planned_title=gettext("Its next times"),
    )
    if not paused and not parked:
        story.planned = [
            Moment(gettext("starts %s") % row.target, at, Tone.WAITING, gettext("in %s") % duration_text(at - now))
            for at in next_times(row, now)
        ]
    story.past = sorted(
        [*_fired(row, reader), *deeds_of_people(row, reader), Moment(gettext("Created"), row.created_at)],
        key=lambda entry: entry.at or now,
        reverse=True,
    )
    return story


def next_times(row: Schedule, now: datetime, count: int = SHOWN_TIMES) -> list[datetime]:
    """Return the next times of a schedule; none if its timetable is invalid, or if it is paused."""
    return list(islice(_times(row, now), count))


def _times(row: Schedule, now: datetime) -> Iterator[datetime]:
    if row.wake_at is None or row.paused_at is not None:
        return
    try:
        times = row.timetable
        at = times.after(now, row.anchor) if row.wake_at <= now else row.wake_at
        while at is not None:
            yield at
            at = times.after(at, row.anchor)
    except DefinitionError:
        return


def _facts(row: Schedule) -> Iterator[Fact]:
    yield Fact(gettext("Starts"), row.target)
    yield Fact(gettext("Times"), row.in_words)
    if row.cron:
        zone = row.timezone or gettext("time zone of the project")
        yield Fact(gettext("Cron expression"), f"{row.cron} ({zone})")
    yield Fact(gettext("If the last one still works"), str(row.get_overlap_display()))
    yield Fact(gettext("Declared"), gettext("in code") if row.is_declared else gettext("by staff"))
    yield Fact(gettext("Fired"), str(row.fired))
    yield Fact(gettext("Left out"), str(row.skipped))
    if row.fired_at is not None:
        yield Fact(gettext("Last time"), moment_text(row.fired_at))


def _fired(row: Schedule, reader: Reader) -> Iterator[Moment]:
    """Yield the last times, each with the state of what it has started. Schedules of one target share its event."""
    newest = Event.objects.filter(event_name=event_name_of(row.target), position__isnull=False).order_by("-position")
    events = [each for each in newest[: 4 * MAX_ENTRIES] if each.key.startswith(f"{row.name}@")][:MAX_ENTRIES]
    started: dict[int, list[str]] = {}
    states: dict[int, list[tuple[str, str]]] = {}
    pks = [each.pk for each in events]
    runs = WorkflowRun.objects.filter(event__in=pks).values_list("event", "name", "pk", "status", "error")
    calls = CallbackExecution.objects.filter(event__in=pks).values_list("event", "callback", "pk", "status", "error")
    for event, name, pk, status, error in [*runs, *calls]:
        started.setdefault(event, []).append(f"{name} #{pk}: {status}" + (f", {last_line(error)}" if error else ""))
        states.setdefault(event, []).append((status, name))
    for each in events:
        statuses = [status for status, _ in states.get(each.pk, [])]
        worst = next((status for status in ("failed", "parked") if status in statuses), statuses[0] if statuses else "")
        yield Moment(
            gettext("Fired"),
            each.occurred_at or each.at,
            TONES.get(worst, Tone.NEUTRAL),
            "; ".join(started.get(each.pk, [])),
            page_of(each, reader),
        )
