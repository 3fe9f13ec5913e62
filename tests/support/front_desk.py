"""Actions at the front desk, and queries for the rows of its agents."""

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
    """Return the handler and the status of each execution, the oldest first."""
    rows = HandlerExecution.objects.filter(**lookups).order_by("pk")
    return [(row.handler, str(row.status)) for row in rows]
