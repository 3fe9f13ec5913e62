"""The tables of events, one module for each: import the models from here."""

from .callback_execution import CallbackExecution, ExecutionStatus
from .captured_write import CapturedWrite, CapturedWriteStatus, WriteOperation
from .claim import EventClaim
from .collected_event import CollectedEvent
from .event import Event, EventQuerySet, EventStatus, active_key, free_key, has_final_date, rows_of_entity
from .routing_shape import RoutingShape, Shapes
from .schedule import Schedule, ScheduleOverlap
from .snapshot import Snapshot

__all__ = [
    "CallbackExecution",
    "CapturedWrite",
    "CapturedWriteStatus",
    "CollectedEvent",
    "Event",
    "EventClaim",
    "EventQuerySet",
    "EventStatus",
    "ExecutionStatus",
    "RoutingShape",
    "Schedule",
    "ScheduleOverlap",
    "Shapes",
    "Snapshot",
    "WriteOperation",
    "active_key",
    "free_key",
    "has_final_date",
    "rows_of_entity",
]
