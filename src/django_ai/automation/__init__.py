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
    from .queues.causation import idempotency_key
    from .values.retry import Retry
    from .workflows.core import (
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
        on_fail,
        run_subflow,
        sleep,
        step,
        wait,
        wait_for_event,
        workflow,
    )

__version__ = "0.1.0"

__all__ = [
    "AUTOMATION_APPS",
    "Agent",
    "AgentManager",
    "EventDefinition",
    "EventTrigger",
    "Outcome",
    "Retry",
    "Workflow",
    "agent",
    "claims",
    "complete",
    "engine",
    "event_workflow",
    "fail",
    "get_context",
    "get_run",
    "get_wake",
    "goto",
    "handler",
    "idempotency_key",
    "on_event",
    "on_event_cancelled",
    "on_event_created",
    "on_fail",
    "run_subflow",
    "sleep",
    "step",
    "wait",
    "wait_for_event",
    "workflow",
]

_HOMES = {
    "AUTOMATION_APPS": "app_names",
    "Agent": "agents.core",
    "AgentManager": "agents.core",
    "EventDefinition": "events.definitions",
    "EventTrigger": "events.definitions",
    "Retry": "values.retry",
    "agent": "agents.core",
    "handler": "agents.core",
    "idempotency_key": "queues.causation",
    "on_event": "events.callbacks",
    "on_event_cancelled": "events.callbacks",
    "on_event_created": "events.callbacks",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "claims":
        return import_module(".events.claims", __name__)
    return getattr(import_module(f".{_HOMES.get(name, 'workflows.core')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
