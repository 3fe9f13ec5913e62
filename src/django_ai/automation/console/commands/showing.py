"""``show``: the story of one row, as its page in the admin tells it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.db import models
from django.utils import timezone

from ...agents.models import AgentRun, HandlerExecution
from ...events.models import CallbackExecution, Event, EventClaim, Schedule
from ...queues.admin_stories import Reader
from ...queues.models import Limiter, Worker
from ...workflows.models import Signal, WorkflowRun
from ..agents import agent_story
from ..events import event_story
from ..executions import callback_story, handler_story, signal_story
from ..failures import failure_of
from ..holders import claim_story, limiter_story, worker_story
from ..reading import TONES, data_of, deeds_of_people
from ..runs import run_story
from ..schedules import schedule_story
from ..story import Fact, Failure, Moment, Story, Tone, moment_text
from .kinds import KINDS, Kind, find_kind, is_open
from .output import Output
from .verb import Options, Verb

PRIVATE = ("data", "payload", "match", "residual", "old", "changed_values", "branches", "ending", "arguments")
"""Columns with values of the project, which are shown only with ``--data``."""
TOLD: dict[type[models.Model], Any] = {
    WorkflowRun: run_story,
    AgentRun: agent_story,
    Event: event_story,
    CallbackExecution: callback_story,
    HandlerExecution: handler_story,
    Signal: signal_story,
    Schedule: schedule_story,
    EventClaim: claim_story,
    Limiter: limiter_story,
    Worker: worker_story,
}


class Show(Verb):
    """``automation show KIND PK``."""

    name = "show"
    help = "Show the story of one row: its state, what it waits for, what comes next, and what happened."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(KINDS)}")
        parser.add_argument("pk", type=int, metavar="PK", help="its primary key")
        parser.add_argument("--data", action="store_true", help="also show the Context or payload, and its changes")
        parser.add_argument("--frames", action="store_true", help="show the whole traceback of an error")

    def perform(self, options: Options, output: Output) -> Any:
        kind = find_kind(options["kind"])
        row, reader, now = kind.find(options["pk"]), Reader(may_see_data=options["data"]), timezone.now()
        tell = TOLD.get(kind.model)
        story: Story = _plain_story(kind, row, reader, now) if tell is None else tell(row, reader, now)
        if not output.as_json:
            _write(story, output, whole=options["frames"])
        return {"kind": kind.name, "pk": row.pk, **as_document(story, whole=options["frames"])}


def _plain_story(kind: Kind, row: Any, reader: Reader, now: datetime) -> Story:
    """Return the story of a row that has no page of its own kind: its state, its columns, and what people did."""
    status = str(getattr(row, "status", ""))
    says = row.waits_for(now) if is_open(row) and hasattr(row, "waits_for") else ""
    error = str(getattr(row, "error", ""))
    private = {name: getattr(row, name) for name in PRIVATE if hasattr(row, name)}
    return Story(
        title=kind.what(row),
        state=status,
        tone=TONES.get(status, Tone.NEUTRAL),
        now=f"It waits for {says}." if says else getattr(row, "error_summary", ""),
        facts=list(_columns(row)),
        failure=failure_of(error) if error and status in ("failed", "parked", "") else None,
        past=deeds_of_people(row, reader),
        data_title="Data" if private else "",
        data=data_of(private, reader) if private else None,
    )


def _columns(row: Any) -> Iterator[Fact]:
    for field in row._meta.concrete_fields:
        value = getattr(row, field.attname)
        if field.name in (*PRIVATE, "id", "error", "status") or value in (None, ""):
            continue
        yield Fact(str(field.verbose_name), moment_text(value) if isinstance(value, datetime) else str(value))


# -- as a document -----------------------------------------------------------------------------------------------------


def as_document(story: Story, *, whole: bool = True) -> dict[str, Any]:
    """Return the story as a JSON document, without what only a page needs."""
    document = {
        "title": story.title,
        "state": story.state,
        "tone": story.tone.value,
        "now": story.now,
        "details": list(story.details),
        "facts": [{"label": each.label, "text": each.text} for each in story.facts],
        "failure": _failure(story.failure, whole=whole),
        "planned": [_moment(each, whole=whole) for each in story.planned],
        "past": [_moment(each, whole=whole) for each in story.past],
        "is_cut": story.is_cut,
    }
    if story.data is not None:
        document["data"] = json.loads(story.data) if story.data else None
    return document


def _failure(failure: Failure | None, *, whole: bool) -> dict[str, Any] | None:
    if failure is None:
        return None
    frames = failure.frames if whole else failure.project_frames
    found: dict[str, Any] = {
        "summary": failure.summary,
        "frames": [{"where": each.where, "code": each.code} for each in frames],
    }
    return {**found, "text": failure.text} if whole else found


def _moment(entry: Moment, *, whole: bool) -> dict[str, Any]:
    found = {
        "title": entry.title,
        "at": entry.at,
        "tone": entry.tone.value,
        "text": entry.text,
        "ended_at": entry.ended_at,
        "waited": entry.waited,
        "worked": entry.worked,
        "failure": _failure(entry.failure, whole=whole),
        "changes": list(entry.changes),
        "tries": [_moment(each, whole=whole) for each in entry.tries],
    }
    return {name: value for name, value in found.items() if value not in (None, "", [])}


# -- for people --------------------------------------------------------------------------------------------------------


def _write(story: Story, output: Output, *, whole: bool) -> None:
    words = story.words
    output.line(f"{story.sign} {story.title}: {story.state}" if story.state else story.title)
    output.line(story.now, indent=2)
    for detail in story.details:
        output.line(detail, indent=2)
    _write_failure(story.failure, output, indent=2, whole=whole)
    width = max((len(each.label) for each in story.facts), default=0)
    for each in story.facts:
        output.line(f"{each.label.ljust(width)}  {each.text}", indent=2)
    if story.planned or story.is_open:
        output.line()
        output.line(words["planned"])
        if not story.planned:
            output.line(words["nothing"], indent=2)
    for entry in story.planned:
        _write_moment(entry, output, whole=whole)
    if story.past:
        output.line()
        output.line(words["past"])
    for entry in story.past:
        _write_moment(entry, output, whole=whole)
    if story.is_cut:
        output.line(words["cut"], indent=2)
    if story.data_title:
        output.line()
        output.line(story.data_title)
        output.text("--data shows it." if story.data is None else story.data, indent=2)


def _write_moment(entry: Moment, output: Output, *, whole: bool) -> None:
    times = [f"{words} {each}" for words, each in _durations(entry) if each]
    what = ", ".join([entry.title, *([entry.tries_text] if entry.tries_text else []), *times])
    output.line(f"{entry.time_text or '-':23}  {entry.sign} {what}", indent=2)
    if entry.text:
        output.line(entry.text, indent=29)
    for change in entry.changes:
        output.line(change, indent=29)
    _write_failure(entry.failure, output, indent=29, whole=whole)


def _durations(entry: Moment) -> list[tuple[str, str]]:
    return [("waited", entry.waited_text), ("worked", entry.worked_text)]


def _write_failure(failure: Failure | None, output: Output, *, indent: int, whole: bool) -> None:
    if failure is None:
        return
    if whole:
        output.text(failure.text, indent=indent)
        return
    output.line(failure.summary, indent=indent)
    for frame in failure.project_frames:
        output.line(f"{frame.where}: {frame.code.strip()}", indent=indent + 2)
