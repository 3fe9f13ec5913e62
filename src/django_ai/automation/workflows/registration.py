"""Registration: what a step returned becomes the rows of what its run waits for, one for each branch of a choice; so do
the events that cancel a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.apps import apps

from ..events.declarations import Declared, declared_on
from ..events.matching.context_expressions import evaluate
from ..events.matching.lookups import problem_with
from ..events.matching.match import Address, address, namespaced_key
from ..events.matching.typed_values import json_value
from ..events.models import RoutingShape
from ..events.names import ANY, MAX_NAME
from ..events.sources import event_sources, owners_of, stored_names
from ..exceptions import DefinitionError
from .cancel_on import On
from .models import WHOLE_RUN, Wait, WorkflowRun
from .outcomes import Choice, Sleep, Subflow
from .outcomes import Wait as WaitOutcome
from .wait_keys import EVENT_CHANNEL, WAITS, channel_key, own_key, subflow_channel


def own_declaration(run: WorkflowRun, event_name: str) -> Declared | None:
    """Return the declaration of ``event_name`` by the model of the run's own entity, if there is one."""
    if not run.entity_type:
        return None
    try:
        model = apps.get_model(run.entity_type)
    except (LookupError, ValueError):
        return None
    return next((each for each in declared_on(model) if each.definition.name == event_name), None)


def registrations(
    run: WorkflowRun, step: str, waiting: WaitOutcome | Choice, context: Any, now: datetime
) -> tuple[Wait, ...]:
    """Return the unsaved rows of what the run waits for. A choice has one for each branch, and one for the timeout of
    the whole, if it has one. ``step``: the next step, unless the outcome names one."""
    if isinstance(waiting, WaitOutcome):
        return (_registration(run, step, waiting, context, now),)
    return _of_choice(run, step, waiting, context, now)


def _of_choice(run: WorkflowRun, step: str, choice: Choice, context: Any, now: datetime) -> tuple[Wait, ...]:
    then, rows = choice.then or step, []
    for name, branch in choice.branches.items():
        match branch:
            case WaitOutcome():
                row = _registration(run, then, branch, context, now)
            case Subflow(then=own):
                channel = subflow_channel(run.pk, run.visit, name)
                row = _registration(run, then, WaitOutcome(channel, then=own), context, now)
            case Sleep(duration, until, own):
                row = _timer(run, own or then, until or now + (duration or timedelta(0)))
        row.branch = name
        rows.append(row)
    if choice.timeout is not None:
        rows.append(_timer(run, choice.on_timeout or step, now + choice.timeout))
    return tuple(rows)


def _timer(run: WorkflowRun, step: str, at: datetime) -> Wait:
    """Return a wait that nothing but time ends."""
    return Wait(run_id=run.pk, visit=run.visit + 1, channel="", key="", deadline=at, then=step, on_timeout=step)


def cancelling(run: WorkflowRun, on: On, namespace: str | None, context: Any, since: int) -> Wait:
    """Return the unsaved row of an event that cancels the run: one with a position after ``since``. ``namespace``: that
    of its workflow."""
    wait = on.wait if on.namespace is not None else replace(on.wait, namespace=namespace)
    row = _registration(run, "", wait, context, run.created_at, what="On")
    row.visit, row.since = WHOLE_RUN, since
    return row


def forget_cancel_on(run: WorkflowRun) -> None:
    """Delete the events that cancel a run: it has ended, or registers them again when it is to start."""
    run.waits.filter(visit=WHOLE_RUN).delete()


def _registration(
    run: WorkflowRun, step: str, wait: WaitOutcome, context: Any, now: datetime, what: str = "wait_for_event"
) -> Wait:
    channel, match, residual, namespace = wait.signal, None, False, ""
    key = channel_key(channel)
    if wait.event is not None:
        name = _name(wait.event, context, what)
        channel = f"{EVENT_CHANNEL}{name}"
        key = channel_key(channel)
        # A name that is made of the Context's fields already selects the entity.
        own = own_declaration(run, name) if name == wait.event else None
        if wait.match is not None and wait.match.lookups:
            values = wait.match.values_from(context)
            where = _address(name, values, what)
            (key,) = where.keys
            match, residual = {each: json_value(value) for each, value in values.items()}, bool(where.residual)
        elif wait.match is None and own is not None:
            key, match = own_key(name, own.label, run.entity_id), {"pk": run.entity_id}
        if wait.namespace not in (None, ANY):
            namespace = str(wait.namespace)
            key = namespaced_key(namespace, key)
    return Wait(
        run_id=run.pk,
        visit=run.visit + 1,
        channel=channel,
        key=key,
        match=match,
        residual=residual,
        namespace=namespace,
        deadline=None if wait.timeout is None else now + wait.timeout,
        then=wait.then or step,
        on_timeout=wait.on_timeout or step,
    )


def _name(template: str, context: Any, what: str) -> str:
    name = str(evaluate(template, context))
    if not 0 < len(name) <= MAX_NAME:
        raise DefinitionError(f"{what}({template!r}): the name becomes {name[:60]!r}..., of {len(name)} characters.")
    return name


def _address(event_name: str, values: dict[str, Any], what: str) -> Address:
    """Return the address of a wait with these values, and declare its shape, so that occurrences look there."""
    sources = event_sources(event_name)
    for name in values:
        problems = [problem_with(owner, name) for owner in owners_of(sources)]
        if problems and all(problems):
            raise DefinitionError(f"{what}({event_name!r}): match compares {name!r}. {problems[0]}")
    where = address(event_name, values, sources)
    for pattern in stored_names(event_name):
        RoutingShape.ensure(WAITS, pattern, where.shape)
    return where
