"""What the desk does: it signals that the day is closed, calls the night audit off, and waives documents."""

from __future__ import annotations

from django_ai.automation import engine
from django_ai.automation.events.models import Schedule
from django_ai.automation.workflows.models import WorkflowRun

from .models import Reservation

DAY_CLOSED = "desk:day_closed"
DOCUMENTS_WAIVED = "desk:documents_waived"


def close_day(takings: int, **notes: str) -> None:
    """Wake every night audit that waits. It stores ``takings`` in its Context, which has no fields for ``notes``."""
    engine.signal(DAY_CLOSED, {"takings": takings, **notes})


def call_off_the_audit() -> None:
    """Pause the schedule of the night audit, as staff can do in the admin."""
    Schedule.objects.get(name="hotel.night_audit").pause()


def waive_documents(reservation: Reservation) -> None:
    """Let the arrival of a known guest continue without documents."""
    runs = WorkflowRun.objects.unfinished().filter(name="hotel.arrival", entity_id=str(reservation.pk))
    for run in runs:
        engine.signal(DOCUMENTS_WAIVED, {"documents": "waived"}, run=run)
