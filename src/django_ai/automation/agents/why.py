"""The explainer of agents: which events spawn them, and which of their handlers get an event.

An execution in a mailbox answers for its handler. Where there is none, agents are compared with the event: those that
its routing keys find, those of its entity, and if neither exists the newest that live.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy

from ..db.writer import alias_of, from_writer
from ..events.entities import awaited_about, load_entities
from ..events.matching.comparing import UNREADABLE, compare_fields
from ..events.models import Event
from ..events.names import is_pattern
from ..events.sources import event_sources
from ..events.subscriptions import subscriptions
from ..events.why.answers import Answer, Condition, Standing, shown, verdict
from ..events.why.asking import Inquiry
from ..events.why.callbacks import STANDINGS, answer, registered_since
from ..events.why.event_conditions import EventConditions, evaluated, unclaimed
from ..events.why.seen import SeenEvent
from ..exceptions import AutomationError
from ..queues.causation import Owner
from ..state.versions import restore
from ..values.text import last_line
from .catch_up import spawning_executions
from .definitions import AgentDefinition, HandlerDefinition, SpawnOn, find_agent, registered_agent
from .ending import KIND
from .mailbox import handled_elsewhere
from .models import AgentRoute, AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from .routing import keys_for, own_labels

MAX_COMPARED_AGENTS = 5
"""How many agents without an execution are compared with an event, for each handler."""

MAX_SEEN_HANDLERS = 3
MAX_SEEN_EVENTS = 3

Key = tuple[int, str, str]
"""The event, ``agent.method`` and the milestone of an execution."""


def explain_agents(inquiry: Inquiry) -> Iterator[Answer]:
    """Yield an answer for each event and agent that it may spawn, and for each handler and agent that may get it."""
    conditions = EventConditions(inquiry.now)
    yield from _spawning(inquiry, conditions)
    yield from _handling(inquiry, conditions)


# -- spawning ----------------------------------------------------------------------------------------------------------


def _spawning(inquiry: Inquiry, conditions: EventConditions) -> Iterator[Answer]:
    wanted = [
        (event, spawn_on)
        for event in inquiry.events
        for spawn_on in subscriptions.all(SpawnOn)
        if inquiry.wants(spawn_on, event)
    ]
    if not wanted:
        return
    found = AgentRun.objects.filter(event__in=inquiry.recorded).with_failed_handlers().order_by("-pk")
    rows = list(found[: inquiry.limit * 4])
    AgentRun.load_reasons([run for run in rows if not run.is_finished])
    runs = {(run.event_id, run.name): run for run in rows}
    for event, spawn_on in wanted:
        run, asked = runs.get((event.pk, spawn_on.agent.name)), conditions.of(event, spawn_on)
        if run is None and spawn_on.agent.singleton and event.occurred_at is not None:
            asked.append(_singleton(event, spawn_on.agent))
        yield answer(event, spawn_on, run, asked, inquiry)


def _singleton(event: Event, definition: AgentDefinition) -> Condition:
    """Return whether another agent of the same match got the event instead of a new one."""
    others = HandlerExecution.objects.filter(event=event, run__name=definition.name).select_related("run")
    other = others.order_by("pk").first()
    found = "it has no event of this match" if other is None else f"{other.run} got the event instead"
    return Condition("singleton", "no other agent lives for the same match", found, None if other is None else False)


# -- handlers ----------------------------------------------------------------------------------------------------------


def _handling(inquiry: Inquiry, conditions: EventConditions) -> Iterator[Answer]:
    wanted = [
        (event, handler)
        for event in inquiry.events
        for handler in subscriptions.all(HandlerDefinition)
        if inquiry.wants(handler, event)
    ]
    executions = _executions(inquiry, wanted)
    candidates = _Candidates(inquiry, wanted, executions)
    seen: set[Key] = set()
    for event, handler in wanted:
        key = (event.pk or 0, f"{handler.agent}.{handler.method}", handler.milestone)
        if key in seen:
            continue
        seen.add(key)
        asked = conditions.of(event, handler)
        for execution in executions.get(key, ()):
            yield _of_execution(event, handler, execution, asked, inquiry)
        compared = candidates.of(event, handler)
        for run in compared:
            yield _of_agent(event, handler, run, asked, inquiry)
        if not compared and key not in executions:
            yield _without_agent(event, handler, asked)
    for key, rows in executions.items():
        for row in rows if key not in seen else ():
            gone = Condition("declared", "code that has the handler", "none, or it no longer subscribes", None)
            yield _of_row(inquiry.recorded[row.event_id], key[1], row, [gone], inquiry)


def _executions(
    inquiry: Inquiry, wanted: Sequence[tuple[Event, HandlerDefinition]]
) -> dict[Key, list[HandlerExecution]]:
    found: dict[Key, list[HandlerExecution]] = {}
    if not inquiry.recorded:
        return found
    rows = HandlerExecution.objects.filter(event__in=inquiry.recorded).select_related("run").order_by("-pk")
    if inquiry.subscriber:
        agents = {handler.agent for _, handler in wanted} | {inquiry.subscriber}
        rows = rows.filter(run__name__in=agents)
    listed = list(rows[: inquiry.limit * 4])
    HandlerExecution.load_reasons(listed)
    AgentRun.load_reasons(list({row.run_id: row.run for row in listed}.values()))
    for row in listed:
        name = f"{row.run.name}.{row.handler}"
        if inquiry.subscriber in ("", row.run.name, name):
            found.setdefault((row.event_id, name, row.milestone), []).append(row)
    return found


def _of_execution(
    event: Event, handler: HandlerDefinition, row: HandlerExecution, asked: Sequence[Condition], inquiry: Inquiry
) -> Answer:
    found = list(asked)
    if inquiry.is_detailed:
        found += _of_match(event, handler, row.run)
        if row.status in (HandlerStatus.PENDING, HandlerStatus.WAITING):
            found += _of_call(event, handler, row.run, inquiry)
    return _of_row(event, f"{handler.agent}.{handler.method}", row, found, inquiry)


def _of_row(event: Event, name: str, row: HandlerExecution, asked: list[Condition], inquiry: Inquiry) -> Answer:
    standing = STANDINGS.get(row.status, Standing.WAITS)
    if standing is Standing.WAITS:
        waits_for = row.waits_for(inquiry.now)
        reason, at = f"it waits for {waits_for}" if waits_for else str(row.status), row.due_at
    else:
        reason = last_line(row.error) or str(row.status)
        at = row.started_at or row.finished_at or row.created_at
    return Answer(
        "handler", name, event.event_name, event.pk, row.milestone, standing, reason, at, row, asked, str(row.run)
    )


def _of_agent(
    event: Event, handler: HandlerDefinition, run: AgentRun, asked: Sequence[Condition], inquiry: Inquiry
) -> Answer:
    """Return the answer of a handler of one agent that has no execution for the event."""
    found = [*asked, _alive(event, run), *_of_match(event, handler, run), *_since(event, handler, run)]
    if inquiry.is_detailed:
        found += _of_call(event, handler, run, inquiry)
    if event.pk is not None and all(each.holds is not False for each in found):
        found.append(registered_since(event, handler, inquiry.now))
    name = f"{handler.agent}.{handler.method}"
    standing, reason = verdict(found)
    made = Answer("handler", name, event.event_name, event.pk, handler.milestone, standing, reason, agent=str(run))
    made.conditions = found
    if standing is Standing.NOT_YET and event.at is not None:
        made.at = event.moment_of(handler.offset) if handler.offset else event.at
    return made


def _without_agent(event: Event, handler: HandlerDefinition, asked: Sequence[Condition]) -> Answer:
    missing = Condition("agent", f"an agent {handler.agent!r} whose match finds the event", "none", False, True)
    found = [*asked, missing]
    if event.occurred_at is not None and not handler.offset:
        found[-1] = Condition(missing.name, missing.expected, "none lived when it occurred", False)
    standing, reason = verdict(found)
    name = f"{handler.agent}.{handler.method}"
    return Answer("handler", name, event.event_name, event.pk, handler.milestone, standing, reason, conditions=found)


def seen_by_agent(run: AgentRun) -> list[SeenEvent]:
    """Return events that have arrived since an agent lives, and that the match of a handler has left out, the newest
    first. A few queries for each of its first handlers."""
    definition = registered_agent(run.name)
    if definition is None or run.status != AgentStatus.ACTIVE:
        return []
    handlers = {each.event_name: each for each in definition.handlers if not is_pattern(each.event_name)}
    found: list[SeenEvent] = []
    for name, handler in list(handlers.items())[:MAX_SEEN_HANDLERS]:
        events = Event.objects.filter(event_name=name, position__gt=run.position).order_by("-position")
        newest = list(events[:MAX_SEEN_EVENTS])
        load_entities(newest)
        for event in newest:
            conditions = list(_of_match(event, handler, run))
            if any(each.holds is False for each in conditions):
                found.append(SeenEvent(event, f"{handler.agent}.{handler.method}", conditions))
    return found


def _alive(event: Event, run: AgentRun) -> Condition:
    found = str(run.status)
    if run.finished_at is not None and event.occurred_at is not None and run.finished_at > event.occurred_at:
        return Condition("agent", "it lived when the event occurred", f"it ended later ({found})", True)
    is_alive = run.status in (AgentStatus.ACTIVE, AgentStatus.PENDING, AgentStatus.PARKED)
    return Condition("agent", "it lives", found, is_alive)


def _of_match(event: Event, handler: HandlerDefinition, run: AgentRun) -> Iterator[Condition]:
    """Yield the match of an agent compared with the event, field by field."""
    definition = find_agent(handler.agent)
    match = definition.match_of(handler)
    if match is None:
        labels = own_labels(run.entity_type, handler.event_name)
        if labels:
            own = f"an event of {run.entity_type} {run.entity_id}, which spawned the agent"
            is_own = event.entity_type in labels and event.entity_id == run.entity_id
            found = f"{event.entity_type} {event.entity_id}"
            yield Condition("match", own, found, is_own)
        return
    if (
        event.pk == run.event_id
        and handler.match is None
        and spawning_executions(run.pk, definition, event, event.event_created_at)
    ):
        yield Condition("match", "any: the event has spawned the agent", "the spawning event", True)
        return
    try:
        context = restore(definition, run.data, run.version, str(run)).context
        values = match.values_from(context)
        compared = list(compare_fields(values, event, event_sources(handler.event_name)))
    except (AutomationError, AttributeError, LookupError) as error:
        yield Condition("match", "a match that can be evaluated", last_line(str(error)), None, is_data=True)
        return
    for each in compared:
        actual = "not readable" if each.actual is UNREADABLE else shown(each.actual)
        yield Condition(f"match: {each.name}", shown(each.expected), actual, each.holds, is_data=True)


def _since(event: Event, handler: HandlerDefinition, run: AgentRun) -> Iterator[Condition]:
    """Yield whether the event arrived after the agent, in the one order of arrivals, and whether another agent of the
    same singleton has handled it."""
    position = event.position_of(handler.milestone)
    if position:
        is_own = event.pk == run.event_id
        found = f"position {position}" + (", it has spawned the agent" if is_own else "")
        expected = f"it arrived after the agent was spawned (position {run.position})"
        yield Condition("registered since", expected, found, is_own or position > run.position)
    if run.singleton and event.pk is not None and handled_elsewhere(run.singleton, [event.pk], run):
        yield Condition("singleton", "no other agent of this match has handled it", "another one has", False)


@from_writer()
def _of_call(event: Event, handler: HandlerDefinition, run: AgentRun, inquiry: Inquiry) -> list[Condition]:
    """Return what a worker asks before it calls the handler: the claim, and the condition of the handler."""
    definition, found = find_agent(handler.agent), []
    if not handler.ignores_claims and event.pk is not None:
        found.append(unclaimed(event, Owner(KIND, run.pk, definition.namespace), inquiry.now))
    if handler.condition is not None and event.pk is not None:
        condition = handler.condition

        def call() -> object:
            context = restore(definition, run.data, run.version, str(run)).context
            given = {"ctx": context, "context": context, "event": event, "events": [event], "run": copy(run)}
            return awaited_about(event, condition(**given))

        holds, text = evaluated(call, alias_of(AgentRun))
        found.append(Condition("handler condition", "true", text, holds, may_change=True))
    return found


class _Candidates:
    """The agents without an execution that are compared with events: those that the keys of the events find, and if it
    was asked for one subscriber, those of the same entity, else the newest that live."""

    def __init__(
        self,
        inquiry: Inquiry,
        wanted: Sequence[tuple[Event, HandlerDefinition]],
        executions: dict[Key, list[HandlerExecution]],
    ) -> None:
        self._inquiry = inquiry
        self._done = {(key, row.run_id) for key, rows in executions.items() for row in rows}
        self._by_route: dict[tuple[int, int], list[AgentRun]] = defaultdict(list)
        self._newest: dict[str, list[AgentRun]] = {}
        self._of_entity: dict[tuple[str, str, str], list[AgentRun]] = {}
        self._read_routes(wanted)

    def _read_routes(self, wanted: Sequence[tuple[Event, HandlerDefinition]]) -> None:
        calls: dict[str, list[tuple[Event, HandlerDefinition]]] = {}
        for event, handler in wanted:
            if event.pk is None:
                continue
            for key in keys_for(find_agent(handler.agent), handler, event):
                calls.setdefault(key, []).append((event, handler))
        if not calls:
            return
        routes = AgentRoute.objects.filter(key__in=list(calls)).select_related("run").order_by("-run", "-pk")
        for route in routes[: self._inquiry.limit * 2]:
            for event, handler in calls[route.key]:
                runs = self._by_route[id(event), id(handler)]
                if route.run not in runs:
                    runs.append(route.run)

    def of(self, event: Event, handler: HandlerDefinition) -> list[AgentRun]:
        """Return the agents that are compared with the event for a handler, and have no execution of it."""
        key = (event.pk or 0, f"{handler.agent}.{handler.method}", handler.milestone)
        found = list(self._by_route.get((id(event), id(handler)), ()))
        if self._inquiry.is_detailed and not any(known == key for known, _ in self._done):
            found = found or self._related(event, handler) or self._living(handler.agent)
        rest = [run for run in found if (key, run.pk) not in self._done]
        return rest[:MAX_COMPARED_AGENTS]

    def _related(self, event: Event, handler: HandlerDefinition) -> list[AgentRun]:
        if event.is_free:
            return []
        key = (handler.agent, event.entity_type, event.entity_id)
        if key not in self._of_entity:
            rows = AgentRun.objects.filter(name=key[0], entity_type=key[1], entity_id=key[2])
            self._of_entity[key] = list(rows.order_by("-pk")[:MAX_COMPARED_AGENTS])
        return self._of_entity[key]

    def _living(self, name: str) -> list[AgentRun]:
        if name not in self._newest:
            rows = AgentRun.objects.filter(name=name, status=AgentStatus.ACTIVE)
            self._newest[name] = list(rows.order_by("-pk")[:MAX_COMPARED_AGENTS])
        return self._newest[name]
