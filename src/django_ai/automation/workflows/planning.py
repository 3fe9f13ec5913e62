"""Whether a run is planned for an event in its current state: each condition by its name, for the subscriber, which
plans runs, and for ``why``, which explains them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum

from ..events.models import Event, EventStatus
from ..values.clock import later
from .definitions import WorkflowDefinition


class PlanningCheck(StrEnum):
    """What is asked before a run is planned, in this order."""

    DECLARED = "declared"
    DATE = "date"
    SCHEDULED = "scheduled"
    CONDITION = "armed"
    STATE = "state"
    GRACE = "planning grace"


def needs_run(event: Event, definition: WorkflowDefinition, now: datetime) -> bool:
    """Return whether a run is planned for the event in its current state."""
    return all(holds for _, holds in planning_checks(event, definition, now))


def planning_checks(
    event: Event, definition: WorkflowDefinition, now: datetime
) -> Iterator[tuple[PlanningCheck, bool]]:
    """Yield what is asked and whether it holds. What comes after a check that does not hold may raise."""
    declaration = event.definition
    yield PlanningCheck.DECLARED, declaration is not None
    yield PlanningCheck.DATE, event.at is not None
    assert declaration is not None
    assert event.at is not None
    if event.status == EventStatus.PENDING:
        yield PlanningCheck.SCHEDULED, declaration.is_scheduled  # an immediate one is planned when it occurs
        yield PlanningCheck.CONDITION, event.armed
    yield PlanningCheck.STATE, event.status in (EventStatus.PENDING, EventStatus.PROCESSED)
    # Once the event has occurred, its condition withdraws no run; with ``recheck`` it is evaluated when the run starts.
    last = later(max(event.at, event.moment_of(definition.offset)), declaration.grace)
    yield PlanningCheck.GRACE, now <= last
