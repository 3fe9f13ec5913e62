"""The tables of events, one module for each: import the models from here."""

from .callback_execution import CallbackExecution, ExecutionStatus
from .claim import EventClaim
from .event import Event, EventQuerySet, EventStatus, active_key, rows_of_entity
from .routing_shape import RoutingShape, Shapes
from .snapshot import Snapshot

__all__ = [
    "CallbackExecution",
    "Event",
    "EventClaim",
    "EventQuerySet",
    "EventStatus",
    "ExecutionStatus",
    "RoutingShape",
    "Shapes",
    "Snapshot",
    "active_key",
    "rows_of_entity",
]
