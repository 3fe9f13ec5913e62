"""``Story``: what happened to one row, what it waits for, and what is planned, ready to be drawn.

Everything is text in the language of the reader; nothing here reads the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext

STORY_TEMPLATE = "automation_console/row.html"
"""Draws the page of a row with its story."""


class Tone(StrEnum):
    """How an entry or a state is coloured. The sign and the words say the same for those who see no colours."""

    GOOD = "good"
    BAD = "bad"
    WAITING = "waiting"
    WORKING = "working"
    STOPPED = "stopped"
    NEUTRAL = "neutral"


SIGNS = {
    Tone.GOOD: "✓",
    Tone.BAD: "✕",
    Tone.WAITING: "◔",
    Tone.WORKING: "▶",
    Tone.STOPPED: "■",
    Tone.NEUTRAL: "·",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a traceback: where, the line of code, and whether that is code of a library or of the engine."""

    where: str
    code: str
    is_library: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """An error: its last line, its frames, and the text as a whole."""

    summary: str
    frames: Sequence[Frame]
    text: str

    @property
    def project_frames(self) -> list[Frame]:
        return [frame for frame in self.frames if not frame.is_library]


@dataclass(slots=True)
class Moment:
    """One thing in a story.

    ``at``: when it happened, began, or is planned. ``ended_at``: when it ended, for what takes time. ``waited``: how
    long it was due, asleep or waiting before; ``worked``: how long code ran. ``tries``: the attempts that are folded
    into it. ``changes``: fields of the Context with their old and new values. ``url``: the page of what it is about.
    """

    title: str
    at: datetime | None
    tone: Tone = Tone.NEUTRAL
    text: str = ""
    url: str = ""
    ended_at: datetime | None = None
    waited: timedelta | None = None
    worked: timedelta | None = None
    failure: Failure | None = None
    tries: list[Moment] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]

    @property
    def waited_text(self) -> str:
        return "" if self.waited is None else duration_text(self.waited)

    @property
    def worked_text(self) -> str:
        return "" if self.worked is None else duration_text(self.worked)

    @property
    def time_text(self) -> str:
        return "" if self.at is None else moment_text(self.at)

    @property
    def tries_text(self) -> str:
        return gettext("attempts: %s") % len(self.tries) if len(self.tries) > 1 else ""


@dataclass(slots=True)
class Fact:
    """A line of the header: a label, a text, and the page that it links to."""

    label: str
    text: str
    url: str = ""


@dataclass(slots=True)
class Deed:
    """A button: an action of the admin that the user may execute on this row now, and what it will do."""

    name: str
    label: str
    effect: str = ""


@dataclass(slots=True)
class Story:
    """Everything that the page of a row shows.

    ``now``: the one sentence that says what it waits for, why it failed, or how it ended. ``details``: what belongs to
    that sentence, such as since when and until when. ``past`` has the newest entry first; ``is_cut`` says that older
    ones are not shown. ``links``: pages with a form. ``subscribers``: of an event
    (``answers.AnswerLine``). ``planned_title`` and ``past_title``: the titles of the two lists;
    empty: the usual ones. ``data``: the Context or the payload as JSON; None: the user may not see it.
    """

    title: str
    state: str
    tone: Tone
    now: str
    facts: list[Fact] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    failure: Failure | None = None
    planned: list[Moment] = field(default_factory=list)
    past: list[Moment] = field(default_factory=list)
    is_cut: bool = False
    progress: int | None = None
    """How much is done, in percent; None: unknown."""
    data_title: str = ""
    data: str | None = None
    deeds: list[Deed] = field(default_factory=list)
    links: list[Fact] = field(default_factory=list)
    subscribers: list[Any] = field(default_factory=list)
    planned_title: str = ""
    past_title: str = ""
    flow: Any = None
    """Its graph with the way that was taken (``RunFlow``)."""

    @property
    def is_open(self) -> bool:
        """Whether something will still happen, so that "nothing is planned" is worth saying."""
        return self.tone in (Tone.WAITING, Tone.WORKING)

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]

    @property
    def words(self) -> dict[str, str]:
        """The labels of the page."""
        return {
            "planned": self.planned_title or gettext("What comes next"),
            "past": self.past_title or gettext("What happened"),
            "all_frames": gettext("Whole traceback"),
            "waited": gettext("waited"),
            "worked": gettext("worked"),
            "reason": gettext("Reason"),
            "cut": gettext("Older entries are not shown."),
            "columns": gettext("All columns"),
            "hidden": gettext("You may not see the data of this row."),
            "nothing": gettext("Nothing is planned."),
            **answer_words(),
        }


def answer_words() -> dict[str, str]:
    """Return the labels of the tables."""
    return {
        "subscribers": gettext("Subscribers"),
        "not_acted": gettext("Who has not acted"),
        "everything": gettext("Show everything"),
        "subscriber": gettext("Subscriber"),
        "standing": gettext("State"),
        "event": gettext("Event"),
        "reason": gettext("Reason"),
        "at": gettext("When"),
        "why": gettext("Why?"),
        "why_of": gettext("Why did it act, or why not?"),
        "ask": gettext("Explain"),
        "condition": gettext("Condition"),
        "expected": gettext("Expected"),
        "found": gettext("Found"),
        "holds": gettext("Holds"),
        "agent": gettext("Agent"),
    }


def moment_text(moment: datetime) -> str:
    """Return a moment to the second in the current time zone."""
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return f"{local:%Y-%m-%d %H:%M:%S %Z}".strip()


def duration_text(length: timedelta) -> str:
    """Return a duration with two units at most, such as ``1 d 3 h``, ``2 min 5 s`` or ``38 ms``."""
    seconds = max(length.total_seconds(), 0)
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    rest = int(seconds)
    found: list[tuple[int, str]] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or found:
            found.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in found[:2] if count)
