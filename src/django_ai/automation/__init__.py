"""Durable, event-driven automations inside a Django project.

The public names are imported at their first use, so that a models module may import them too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents.core import Agent, AgentManager, agent, handler
    from .app_names import AUTOMATION_APPS
    from .events import claims
    from .events.callbacks import on_event, on_event_cancelled, on_event_created
    from .events.definitions import EventDefinition, EventTrigger
    from .events.emission import emit
    from .events.free_events import FreeEvent
    from .events.registration import register_events
    from .events.schedules.definitions import schedule
    from .events.upcoming import Upcoming, upcoming
    from .events.why import Why, why
    from .queues.acting import acting_as
    from .queues.causation import idempotency_key
    from .values.limits import Concurrency, RateLimit, Singleton, Throttle
    from .values.retry import GiveUp, Retry, RetryAfter
    from .values.windows import Batch, Debounce
    from .workflows.core import (
        On,
        Outcome,
        Workflow,
        complete,
        engine,
        event_workflow,
        fail,
        get_context,
        get_run,
        get_wake,
        goto,
        on_cancel,
        on_fail,
        run_subflow,
        sleep,
        step,
        wait,
        wait_all,
        wait_any,
        wait_for_event,
        workflow,
    )

__version__ = "0.1.0"

__all__ = [
    "AUTOMATION_APPS",
    "Agent",
    "AgentManager",
    "Batch",
    "Concurrency",
    "Debounce",
    "EventDefinition",
    "EventTrigger",
    "FreeEvent",
    "GiveUp",
    "On",
    "Outcome",
    "RateLimit",
    "Retry",
    "RetryAfter",
    "Singleton",
    "Throttle",
    "Upcoming",
    "Why",
    "Workflow",
    "acting_as",
    "agent",
    "claims",
    "complete",
    "emit",
    "engine",
    "event_workflow",
    "fail",
    "get_context",
    "get_run",
    "get_wake",
    "goto",
    "handler",
    "idempotency_key",
    "on_cancel",
    "on_event",
    "on_event_cancelled",
    "on_event_created",
    "on_fail",
    "register_events",
    "run_subflow",
    "schedule",
    "sleep",
    "step",
    "upcoming",
    "wait",
    "wait_all",
    "wait_any",
    "wait_for_event",
    "why",
    "workflow",
]

_HOMES = {
    "AUTOMATION_APPS": "app_names",
    "Agent": "agents.core",
    "AgentManager": "agents.core",
    "Concurrency": "values.limits",
    "EventDefinition": "events.definitions",
    "EventTrigger": "events.definitions",
    "FreeEvent": "events.free_events",
    "GiveUp": "values.retry",
    "RateLimit": "values.limits",
    "Retry": "values.retry",
    "RetryAfter": "values.retry",
    "Batch": "values.windows",
    "Debounce": "values.windows",
    "Upcoming": "events.upcoming",
    "Singleton": "values.limits",
    "Throttle": "values.limits",
    "Why": "events.why",
    "acting_as": "queues.acting",
    "agent": "agents.core",
    "emit": "events.emission",
    "handler": "agents.core",
    "idempotency_key": "queues.causation",
    "schedule": "events.schedules.definitions",
    "on_event": "events.callbacks",
    "on_event_cancelled": "events.callbacks",
    "on_event_created": "events.callbacks",
    "register_events": "events.registration",
    "upcoming": "events.upcoming",
    "why": "events.why",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "claims":
        return import_module(".events.claims", __name__)
    return getattr(import_module(f".{_HOMES.get(name, 'workflows.core')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
