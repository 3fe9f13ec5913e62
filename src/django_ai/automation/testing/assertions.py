"""Assertions on what happened: which events occurred, and which runs there are.

They only read the database, so they work without a time machine too. A failure lists the events that there are. An
unknown name always fails, even in ``assert_not_occurred``: a misspelt event never occurs.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from django.apps import apps
from django.db.models import Model, Q

from ..events.declarations import declared_on
from ..events.definitions import EventName, name_of
from ..events.entities import rows_about
from ..events.models import Event, EventQuerySet, EventStatus
from ..events.names import is_pattern, matches, may_match, pattern_of
from ..events.sources import declared_names
from ..exceptions import DefinitionError, UnknownAgentError, UnknownWorkflowError
from ..workflows.definitions import find_workflow
from ..workflows.models import WorkflowRun

MAX_SHOWN_EVENTS = 20


def assert_occurred(event_name: EventName, entity: Model | None = None, *, times: int | None = None) -> None:
    """Fail unless an event has occurred. It only reads the database.

    Args:
        event_name: Name of the event, as a string, or its ``EventDefinition``; ``*`` in a name stands for any
            characters.
        entity: Only events of this model instance. Default: events of all entities.
        times: The exact number of occurrences. Default: one or more.

    Raises:
        AssertionError: If it has not occurred so often, with a list of the events that there are; or if no code
            declares the event.
        DefinitionError: If ``entity`` is not a saved model instance.

    Example:
        A reminder was sent twice::

            assert_occurred("reminder_sent", invoice, times=2)
    """
    __tracebackhide__ = True
    event_name = name_of(event_name)
    found = _events(event_name, entity).filter(occurred_at__isnull=False).count()
    if found == times or (times is None and found):
        return
    wanted = "" if times is None else f" {_times(times)}"
    but = f"but {_times(found)}" if found else "but it did not"
    raise AssertionError(f"{event_name!r}{_of(entity)} should have occurred{wanted}, {but}.{_story(entity)}")


def assert_not_occurred(event_name: EventName, entity: Model | None = None) -> None:
    """Fail if an event has occurred. It only reads the database.

    Args:
        event_name: Name of the event, as a string, or its ``EventDefinition``; ``*`` in a name stands for any
            characters.
        entity: Only events of this model instance. Default: events of all entities.

    Raises:
        AssertionError: If it has occurred, with a list of the events that there are; or if no code declares the event.
        DefinitionError: If ``entity`` is not a saved model instance.

    Example:
        A paid invoice is never overdue::

            assert_not_occurred("invoice_overdue", invoice)
    """
    __tracebackhide__ = True
    event_name = name_of(event_name)
    found = _events(event_name, entity).filter(occurred_at__isnull=False).count()
    if found:
        raise AssertionError(
            f"{event_name!r}{_of(entity)} should not have occurred, but it did, {_times(found)}.{_story(entity)}"
        )


def runs_of(flow: str | type, entity: Model | None = None) -> list[Any]:
    """Return the runs of a workflow or an agent, the oldest first. It only reads the database.

    Args:
        flow: The workflow or agent, as its name or its class.
        entity: Only runs that an event of this model instance has started, and their child runs. Default: all runs.

    Returns:
        A list of ``WorkflowRun`` or of ``AgentRun``.

    Raises:
        UnknownWorkflowError: If neither a workflow nor an agent has this name.
        DefinitionError: If the class is neither a workflow nor an agent, or if ``entity`` is not a saved model
            instance.

    Example:
        The invoice has started one run, which has ended::

            (run,) = runs_of(RemindToPay, invoice)
            assert run.status == "completed"
    """
    model, name = _flow(flow)
    where = Q() if entity is None else rows_about(entity)
    return list(model._default_manager.filter(where, name=name).order_by("pk"))


def _events(event_name: str, entity: Model | None) -> EventQuerySet:
    """Return the rows of this name. Raises ``AssertionError`` for an event that no code declares."""
    __tracebackhide__ = True
    events = Event.objects.all() if entity is None else Event.objects.filter(rows_about(entity))
    pattern = pattern_of(event_name)
    if is_pattern(pattern):
        names = events.values_list("event_name", flat=True).distinct()
        named = events.filter(event_name__in=[name for name in names if matches(pattern, name)])
    else:
        named = events.filter(event_name=event_name)
    known = declared_names() if entity is None else {each.definition.name for each in declared_on(type(entity))}
    if any(may_match(pattern, each) for each in known) or named.exists():
        return named
    owner = "No code" if entity is None else f"{entity._meta.label} does not"
    near = get_close_matches(event_name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Declared: {', '.join(map(repr, sorted(known))) or 'none'}."
    raise AssertionError(f"{owner} declare{'s' if entity is None else ''} the event {event_name!r}. {hint}")


def _flow(flow: str | type) -> tuple[type[Model], str]:
    """Return the model of the runs of ``flow``, and the name that they are stored under."""
    agents = _agent_runs()
    if isinstance(flow, type):
        if "__workflow__" in flow.__dict__:
            return WorkflowRun, flow.__dict__["__workflow__"].name
        if "__agent__" in flow.__dict__ and agents is not None:
            return agents, flow.__dict__["__agent__"].name
        raise DefinitionError(f"runs_of({flow!r}): the class is neither a workflow nor an agent; decorate it.")
    try:
        return WorkflowRun, find_workflow(flow).name
    except UnknownWorkflowError as unknown:
        if agents is None:
            raise
        from ..agents.definitions import find_agent

        try:
            return agents, find_agent(flow).name
        except UnknownAgentError as neither:
            raise unknown from neither


def _agent_runs() -> type[Model] | None:
    """Return the model of agents' runs, or None if agents are not installed."""
    if not apps.is_installed("django_ai.automation.agents"):
        return None
    from ..agents.models import AgentRun

    return AgentRun


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _of(entity: Model | None) -> str:
    return "" if entity is None else f" of {entity._meta.label} {entity.pk}"


def _story(entity: Model | None) -> str:
    """Return a list of the events that there are, as text."""
    rows = Event.objects.all() if entity is None else Event.objects.filter(rows_about(entity))
    found = list(rows.order_by("pk")[: MAX_SHOWN_EVENTS + 1])
    if not found:
        return " No event was recorded: was it saved through Django?" if entity else " No event was recorded at all."
    lines = [_line(row, entity) for row in found[:MAX_SHOWN_EVENTS]]
    if len(found) > MAX_SHOWN_EVENTS:
        lines.append(f"... and {rows.count() - MAX_SHOWN_EVENTS} more")
    return "\nThere is:" + "".join(f"\n  {line}" for line in lines)


def _subject(row: Event) -> str:
    if row.is_free:
        return f" with the key {row.key!r}" if row.key else ""
    return f" of {row.entity_type} {row.entity_id}"


def _line(row: Event, entity: Model | None) -> str:
    parts = [f"{row.event_name!r}{_subject(row) if entity is None else ''}: {row.status}"]
    if row.occurred_at is not None:
        parts.append(f"occurred {row.occurred_at.isoformat()}")
    elif row.at is not None:
        parts.append(f"at {row.at.isoformat()}")
    if row.status == EventStatus.PENDING:
        if not row.armed:
            parts.append("its condition is false")
        elif row.definition is not None and not row.definition.is_scheduled and not row.attempt:
            parts.append("it waits for the commit, or for process()")
        elif row.wake_at is not None:
            parts.append(f"due {row.wake_at.isoformat()}")
    if row.error:
        parts.append(row.error.strip().splitlines()[-1])
    return ", ".join(parts)
