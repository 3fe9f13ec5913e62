"""Which columns of the automation tables hold names that a project may change, and where a name is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db import models

HOLDS = {
    "workflow": {
        "automation_workflows.WorkflowRun.name",
        "automation_events.CollectedEvent.name",
        "automation_events.Schedule.name",
        "automation_events.Schedule.target",
        "automation_events.Event.event_name",  # of a schedule
        "automation_events.Event.entity_id",  # the key of the event of a schedule
        "automation_events.Event.payload",
        "automation_queues.Limiter.name",
        "automation_queues.MutedProblem.name",
        "automation_queues.Pause.target",
        "automation_queues.HeldRow.target",
        "automation_queues.Action.key",
        "automation_queues.Action.what",
        "automation_queues.Maintenance.position",  # what was renamed
    },
    "step": {
        "automation_workflows.WorkflowRun.current_step",
        "automation_workflows.WorkflowRun.wake_step",
        "automation_workflows.WorkflowRun.ending",
        "automation_workflows.StepExecution.step",
        "automation_workflows.StepExecution.before",
        "automation_workflows.Wait.then",
        "automation_workflows.Wait.on_timeout",
    },
    "event": {
        "automation_events.Event.event_name",
        "automation_events.Event.declared_as",
        "automation_events.Event.payload",
        "automation_events.EventClaim.event_name",
        "automation_events.RoutingShape.event_name",
        "automation_workflows.Wait.channel",
        "automation_workflows.Signal.name",
        "automation_workflows.WorkflowRun.branches",
        "automation_workflows.WorkflowRun.ending",
        "automation_workflows.StepExecution.before",
        "automation_queues.Limiter.name",  # of functions and handlers
        "automation_queues.Action.what",
        "automation_queues.MutedProblem.name",
        "automation_queues.Maintenance.position",
    },
    "agent": {
        "automation_agents.AgentRun.name",
        "automation_queues.Limiter.name",  # of its handlers
        "automation_queues.MutedProblem.name",
        "automation_queues.Pause.target",
        "automation_queues.HeldRow.target",
        "automation_queues.Action.key",
        "automation_queues.Action.what",
        "automation_queues.Maintenance.position",
    },
    "handler": {
        "automation_agents.HandlerExecution.handler",
        "automation_queues.Limiter.name",
        "automation_queues.MutedProblem.name",
    },
}
"""The columns that an operation renames in, by what they hold."""

DIGESTS = {
    "automation_events.CallbackExecution.unique_key",
    "automation_events.CollectedEvent.unique_key",
    "automation_events.CollectedEvent.window",
    "automation_events.Event.active_key",
    "automation_events.Event.planned_for",
    "automation_events.Event.watched",
    "automation_events.EventClaim.key",
    "automation_events.EventClaim.unique_key",
    "automation_events.RoutingShape.unique_key",
    "automation_queues.Limiter.key",
    "automation_queues.MutedProblem.key",
    "automation_queues.Slot.unique_key",
    "automation_workflows.Wait.key",
    "automation_workflows.WorkflowRun.origin_key",
    "automation_agents.AgentRoute.key",
    "automation_agents.AgentRoute.unique_key",
    "automation_agents.AgentRun.origin_key",
    "automation_agents.AgentRun.routing",
    "automation_agents.AgentRun.singleton",
    "automation_agents.HandlerExecution.unique_key",
}
"""Digests: those that a name of a workflow, agent, handler or event is part of are computed again, or the engine does
so itself."""

FREE_TEXT = {
    "automation_events.CallbackExecution.error",
    "automation_events.CapturedWrite.error",
    "automation_events.Event.error",
    "automation_events.Schedule.error",
    "automation_queues.Action.reason",
    "automation_queues.BulkAction.error",
    "automation_queues.BulkAction.examples",
    "automation_queues.BulkAction.filter",  # none that is unfinished has the name: the operation refuses
    "automation_queues.BulkAction.reason",
    "automation_queues.MutedProblem.error",
    "automation_queues.MutedProblem.reason",
    "automation_queues.Maintenance.error",
    "automation_queues.Pause.reason",
    "automation_workflows.Signal.error",
    "automation_workflows.StepExecution.error",
    "automation_workflows.WorkflowRun.error",
    "automation_agents.AgentRun.error",
    "automation_agents.HandlerExecution.error",
}
"""What was said at the time: it stays as it was."""


def text_columns() -> Iterator[tuple[type[models.Model], str]]:
    """Yield the columns of the automation tables that may hold a name."""
    for model in apps.get_models():
        if model.__module__.startswith("django_ai.automation.") and not model._meta.proxy:
            for field in model._meta.concrete_fields:
                if isinstance(field, models.CharField | models.TextField | models.JSONField):
                    yield model, field.attname


def label(model: type[models.Model], column: str) -> str:
    return f"{model._meta.label}.{column}"


def places(name: str) -> set[str]:
    """Return the columns, without those for free text, in which ``name`` is stored, also as a part of the value."""
    found = set()
    for model, column in text_columns():
        where = label(model, column)
        values: list[Any] = list(
            model._base_manager.filter(**{f"{column}__isnull": False}).values_list(column, flat=True)
        )
        if where not in FREE_TEXT and any(name in (v if isinstance(v, str) else json.dumps(v)) for v in values):
            found.add(where)
    return found
