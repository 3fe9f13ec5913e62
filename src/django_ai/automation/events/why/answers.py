"""What ``why`` returns: an answer for each event and subscriber, with the conditions that the engine asks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.db.models import Model

from ...values.text import one_line

MAX_SHOWN_VALUE = 200


class Standing(StrEnum):
    """What a subscriber has made of an event.

    Attributes:
        RAN: It has acted, or is acting.
        FAILED: It has acted, and failed for good.
        WAITS: Its row exists and waits: for its turn, a time, a slot, the end of a pause or an operator.
        SKIPPED: Its row exists and has ended without acting; the reason is recorded.
        NOT_YET: It has no row yet, and may still get one.
        DID_NOT: It has no row, and this event will give it none.
    """

    RAN = "ran"
    FAILED = "failed"
    WAITS = "waits"
    SKIPPED = "skipped"
    NOT_YET = "not yet"
    DID_NOT = "did not"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that the engine asks before a subscriber acts.

    Attributes:
        name: What is asked, a string such as ``"condition"``, ``"namespace"`` or ``"match: guest_id"``.
        expected: What must be so, as a string for people.
        found: What is so, as a string for people.
        holds: Whether it holds; None: unknown, because a function of the project raised or the answer is not recorded.
        may_change: Whether it may still become true for this event.
        is_data: Whether ``expected`` and ``found`` have values of a Context or a payload.
    """

    name: str
    expected: str
    found: str
    holds: bool | None
    may_change: bool = False
    is_data: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict that JSON can hold."""
        return {
            "name": self.name,
            "expected": self.expected,
            "found": self.found,
            "holds": self.holds,
            "may_change": self.may_change,
        }

    def __str__(self) -> str:
        sign = "~" if self.holds is False and self.may_change else {True: "+", False: "-", None: "?"}[self.holds]
        return one_line(f"{sign} {self.name}: expected {self.expected}; found {self.found}")


@dataclass(slots=True)
class Answer:
    """Why one subscriber acted on one event, will act, or did not.

    Attributes:
        kind: ``"callback"``, ``"workflow"``, ``"agent"`` (it is spawned), ``"handler"`` or ``"schedule"``.
        subscriber: Its name; of a handler ``"agent.method"``.
        event: The name of the event.
        event_pk: The primary key of the event; None: no event was recorded.
        milestone: The offset from the date at which it acts; empty: at the event.
        standing: What it has made of the event, a ``Standing``.
        reason: Why, in one sentence.
        at: When it acted, or will; None: not known.
        row: The row of the subscriber, such as the run; None: it has none.
        conditions: What the engine asks, in its order. Where ``why`` was called without a subscriber, those that cost a
            query for each event are left out.
        agent: The agent that is compared with the event, as a string; empty: none.
    """

    kind: str
    subscriber: str
    event: str
    event_pk: int | None
    milestone: str
    standing: Standing
    reason: str
    at: datetime | None = None
    row: Model | None = None
    conditions: list[Condition] = field(default_factory=list)
    agent: str = ""

    @property
    def acted(self) -> bool:
        """Whether it has acted on the event, with or without success."""
        return self.standing in (Standing.RAN, Standing.FAILED)

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict that JSON can hold."""
        row = self.row
        return {
            "kind": self.kind,
            "subscriber": self.subscriber,
            "event": self.event,
            "event_pk": self.event_pk,
            "milestone": self.milestone,
            "standing": str(self.standing),
            "reason": self.reason,
            "at": None if self.at is None else self.at.isoformat(),
            "row": None if row is None else f"{row._meta.label_lower}:{row.pk}",
            "agent": self.agent,
            "conditions": [each.to_dict() for each in self.conditions],
        }

    def __str__(self) -> str:
        number = "" if self.event_pk is None else f" #{self.event_pk}"
        at = f" at {self.milestone}" if self.milestone else ""
        with_agent = f" ({self.agent})" if self.agent else ""
        head = f"{self.kind} {self.subscriber}{with_agent} on {self.event}{number}{at}: {self.standing}. {self.reason}"
        return "\n".join([one_line(head), *(f"  {each}" for each in self.conditions)])


@dataclass(frozen=True, slots=True)
class Why:
    """The answers of ``why``.

    Attributes:
        subject: What was asked about, as a string: an event or an entity.
        subscriber: The subscriber that was asked about; empty: all of them.
        answers: A list of ``Answer``, the newest event first.

    Example:
        List who did not act on the events of a booking::

            for answer in why(booking).did_not_act:
                print(answer.subscriber, answer.reason)
    """

    subject: str
    subscriber: str
    answers: list[Answer]

    @property
    def did_not_act(self) -> list[Answer]:
        """The answers of subscribers that have not acted and will not: skipped, or without a row."""
        return [each for each in self.answers if each.standing in (Standing.SKIPPED, Standing.DID_NOT)]

    def to_dict(self) -> dict[str, Any]:
        """Return the answers as a dict that JSON can hold.

        Returns:
            A dict of ``subject``, ``subscriber`` and ``answers``; each answer has its ``conditions``.

        Example:
            Answer a request of a support tool::

                return JsonResponse(why(booking, "shop.remind").to_dict())
        """
        return {
            "subject": self.subject,
            "subscriber": self.subscriber,
            "answers": [each.to_dict() for each in self.answers],
        }

    def __str__(self) -> str:
        return "\n".join([one_line(self.subject), *map(str, self.answers)])


def shown(value: object) -> str:
    """Return a value as it is shown in a condition: on one line, and not too long."""
    text = one_line(repr(value))
    return text if len(text) <= MAX_SHOWN_VALUE else f"{text[: MAX_SHOWN_VALUE - 1]}…"


def verdict(conditions: Sequence[Condition]) -> tuple[Standing, str]:
    """Return what a subscriber without a row makes of an event, and the reason."""
    failing = [each for each in conditions if each.holds is False]
    final = [each for each in failing if not each.may_change]
    decisive = (final or failing or _unknown(conditions))[:1]
    standing = Standing.DID_NOT if final else Standing.NOT_YET
    return standing, reason_of(decisive[0]) if decisive else "It is about to act."


def _unknown(conditions: Iterable[Condition]) -> list[Condition]:
    return [each for each in conditions if each.holds is None]


def reason_of(condition: Condition) -> str:
    """Return the sentence about the condition that decides. It has no values of a Context or a payload."""
    if condition.is_data:
        return f"{condition.name}: the values differ." if condition.holds is False else f"{condition.name}: unknown."
    return one_line(f"{condition.name}: expected {condition.expected}; found {condition.found}")
