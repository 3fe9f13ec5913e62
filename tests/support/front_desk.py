"""What tests do to the front desk, and the agents' rows that they look at."""

from __future__ import annotations

from typing import Any

from django_ai.automation.agents.models import AgentRun, HandlerExecution
from tests.apps.front_desk.models import Booking, Message, Person
from tests.support.rows import change


def book(guest: Person | None = None, **fields: Any) -> Booking:
    return Booking.objects.create(guest=guest or Person.objects.create(name="Ada"), **fields)


def confirm(booking: Booking) -> None:
    change(booking, status="confirmed")


def write(sender: Person, text: str = "hello", **fields: Any) -> Message:
    return Message.objects.create(sender=sender, text=text, **fields)


def the_agent(**lookups: Any) -> AgentRun:
    return AgentRun.objects.get(**lookups)


def agents(*statuses: str) -> list[AgentRun]:
    rows = AgentRun.objects.order_by("pk")
    return list(rows.filter(status__in=statuses) if statuses else rows)


def the_answer(**lookups: Any) -> HandlerExecution:
    return HandlerExecution.objects.get(**lookups)


def answers(**lookups: Any) -> list[tuple[str, str]]:
    """The handlers of an agent and what became of each execution."""
    rows = HandlerExecution.objects.filter(**lookups).order_by("pk")
    return [(row.handler, str(row.status)) for row in rows]
