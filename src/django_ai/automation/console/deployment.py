"""What a deployment changes for the rows that exist: which of them would park, and what would fire at once.

It is called with the new code and the database of the old one, and reads only. Rows are grouped by the names that they
refer to, so the number of queries depends on the names; one row of each group is looked at as a worker would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Count, F, Min, Q, QuerySet

from ..agents.definitions import agent_of
from ..agents.models import AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from ..events.callbacks import find_callback
from ..events.declarations import declared_on, declaring_models
from ..events.definitions import EventDefinition
from ..events.free_events import all_free_events
from ..events.models import CallbackExecution, CapturedWrite, Event, EventStatus, ExecutionStatus, Schedule
from ..events.recording.captured.performing import is_known
from ..events.recording.reconcile import bounds_of_offsets
from ..events.schedules.definitions import find_schedule, targets
from ..events.timing import not_fired, plan_of, possible_offsets_of
from ..exceptions import AutomationError, CodeError, NoContextError
from ..queues.run import Run
from ..values.clock import later
from ..workflows.definitions import WorkflowDefinition, registered_workflow, workflow_of, workflows_on
from ..workflows.models import Wait, WorkflowRun
from ..workflows.run_session import next_entry
from ..workflows.starting import origin_key
from ..workflows.statuses import WorkflowStatus
from .agenda import notified

LIVE_EVENTS = (EventStatus.PENDING, EventStatus.PROCESSED)
BATCH_ROWS = 500
MAX_EVENTS = 20_000
"""How many events of one definition are looked at for offsets that fire at once."""
CONTEXTS_OF_EACH = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """Rows of one kind that a deployment affects alike. ``example``: the primary key of one. ``why``: what becomes of
    them, and the fix."""

    kind: str
    name: str
    count: int
    example: int
    why: str


@dataclass(slots=True)
class Deployment:
    """What the new code changes.

    ``parks``: rows that it cannot perform. ``versions``: runs whose version is gone, which continue with the newest.
    ``fires``: offsets of new subscribers whose time has just passed, which fire at once. ``vanishes``: schedules that
    the code no longer declares, which park at their next time.
    """

    parks: list[Finding] = field(default_factory=list)
    versions: list[Finding] = field(default_factory=list)
    fires: list[Finding] = field(default_factory=list)
    vanishes: list[Finding] = field(default_factory=list)

    @property
    def is_safe(self) -> bool:
        """Whether nothing would park."""
        return not self.parks and not self.vanishes


def check_deployment(now: datetime, contexts: int = CONTEXTS_OF_EACH) -> Deployment:
    """Compare the unfinished rows with this code. Reads only.

    ``contexts``: how many Contexts of each workflow and agent are loaded, the newest first, as a worker would load them
    (``migrate_context`` is called); 0: none.
    """
    found = Deployment()
    _check_runs(found)
    found.parks += _waits()
    found.parks += _agents()
    found.parks += _handlers()
    found.parks += _callbacks()
    found.parks += _events()
    found.parks += _writes()
    _check_schedules(found)
    if contexts:
        broken = {(each.kind, each.name) for each in found.parks}
        found.parks += _contexts(WorkflowRun, "workflow", _live_runs(), contexts, broken)
        found.parks += _contexts(AgentRun, "agent", _live_agents(), contexts, broken)
    found.fires += _fires(now)
    return found


def _live_runs() -> QuerySet[WorkflowRun, WorkflowRun]:
    return WorkflowRun.objects.unfinished().exclude(status=WorkflowStatus.PARKED)


def _live_agents() -> QuerySet[AgentRun, AgentRun]:
    return AgentRun.objects.unfinished().exclude(status=AgentStatus.PARKED)


def _groups(rows: QuerySet[Any, Any], *names: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yield the values of the columns ``names``, how many rows have them, and the first of these rows."""
    grouped = rows.order_by().values(*names).annotate(number=Count("pk"), first=Min("pk"))
    for each in grouped.order_by(*names):
        yield {name: each[name] for name in names}, each["number"], each["first"]


def _reason(error: AutomationError) -> str:
    return str(error).partition("\n")[0]


# -- runs --------------------------------------------------------------------------------------------------------------


def _check_runs(found: Deployment) -> None:
    for suspended in (False, True):
        rows = _live_runs()
        rows = rows.filter(status="suspended") if suspended else rows.exclude(status="suspended")
        for on_path in (False, True):
            for is_new in (True, False):
                new = Q(event__isnull=False, started_at=None)
                mine = rows.filter(new if is_new else ~new, ending__isnull=not on_path)
                _check_group(found, mine, steps=not suspended)  # of a suspended one, what follows its wait counts


def _check_group(found: Deployment, rows: QuerySet[WorkflowRun, WorkflowRun], *, steps: bool) -> None:
    names = ["name", "version", "current_step"] if steps else ["name", "version"]
    for values, number, first in _groups(rows, *names):
        run = WorkflowRun.objects.get(pk=first)
        try:
            definition = workflow_of(run)
            if steps:
                next_entry(run, definition)
        except CodeError as error:
            found.parks.append(Finding("workflow", values["name"], number, first, _without(str(run), _reason(error))))
            continue
        if registered_workflow(run.name, run.version) is None:
            why = f"version {run.version!r} is gone; they continue with version {definition.version!r}"
            found.versions.append(Finding("workflow", values["name"], number, first, why))


def _waits() -> Iterator[Finding]:
    """Yield the steps that follow a wait and do not exist."""
    open_waits = Wait.objects.filter(run__in=_live_runs(), run__status=WorkflowStatus.SUSPENDED, visit=F("run__visit"))
    for values, number, first in _groups(open_waits, "run__name", "run__version", "then", "on_timeout"):
        wait = Wait.objects.select_related("run").get(pk=first)
        try:
            definition = workflow_of(wait.run)
        except CodeError:
            continue  # reported with the run
        for step in dict.fromkeys([values["then"], values["on_timeout"]]):
            if step and not _has_step(definition, step):
                why = f"they wait, and then enter the step {step!r}, which does not exist"
                yield Finding("workflow", values["run__name"], number, wait.run_id, why)


def _has_step(definition: WorkflowDefinition, step: str) -> bool:
    return step in definition.steps or any(hook.name == step for hook in definition.hooks)


def _contexts(
    model: type[Run], kind: str, live: QuerySet[Any, Any], limit: int, broken: set[tuple[str, str]]
) -> Iterator[Finding]:
    """Yield the Contexts that the code cannot load, of those that are looked at."""
    for values, _, _ in _groups(live, "name"):
        name = values["name"]
        if (kind, name) in broken:
            continue
        problems: Counter[str] = Counter()
        examples: dict[str, int] = {}
        for row in live.filter(name=name).order_by("-pk")[:limit]:
            try:
                row.context  # noqa: B018
            except NoContextError:
                continue
            except CodeError as error:
                why = f"their Context does not fit: {_without(str(row), _reason(error))}"
                problems[why] += 1
                examples.setdefault(why, row.pk)
        for why, number in problems.items():
            yield Finding(kind, name, number, examples[why], f"of the newest {limit}, {why}")


def _without(row: str, text: str) -> str:
    """Return the text without the row that it begins with, so that equal problems are one."""
    return text.removeprefix(f"The Context of {row}").removeprefix(row).lstrip(": ").replace(row, "it")


# -- agents ------------------------------------------------------------------------------------------------------------


def _agents() -> Iterator[Finding]:
    for values, number, first in _groups(_live_agents(), "name", "version"):
        try:
            agent_of(AgentRun.objects.get(pk=first))
        except CodeError as error:
            yield Finding("agent", values["name"], number, first, _reason(error))


def _handlers() -> Iterator[Finding]:
    pending = HandlerExecution.objects.filter(
        status__in=[HandlerStatus.PENDING, HandlerStatus.WAITING], run__in=_live_agents()
    )
    for values, number, first in _groups(pending, "run__name", "handler", "milestone", "event__event_name"):
        row = HandlerExecution.objects.select_related("run", "event").get(pk=first)
        try:
            definition = agent_of(row.run)
        except CodeError:
            continue  # reported with the agent
        if definition.find_handler(row.handler, row.event, row.milestone) is None:
            why = f"the agent has no handler {row.handler!r} for {row.event.event_name!r}{_at(row.milestone)}"
            yield Finding("handler", f"{values['run__name']}.{values['handler']}", number, first, why)


def _at(milestone: str) -> str:
    return f" at {milestone!r}" if milestone else ""


# -- events ------------------------------------------------------------------------------------------------------------


def _callbacks() -> Iterator[Finding]:
    pending = CallbackExecution.objects.filter(status=ExecutionStatus.PENDING)
    for values, number, first in _groups(pending, "callback", "event__event_name", "milestone"):
        name, milestone = values["event__event_name"], values["milestone"]
        if find_callback(name, values["callback"], milestone) is None:
            why = f"no callback has this name for {name!r}{_at(milestone)}"
            yield Finding("callback", values["callback"], number, first, why)


def _events() -> Iterator[Finding]:
    due = Event.objects.filter(status__in=LIVE_EVENTS, wake_at__isnull=False)
    for values, number, first in _groups(due, "entity_type", "declared_as"):
        try:
            Event.objects.get(pk=first).check_known(declared=True)
        except CodeError as error:
            yield Finding("event", values["declared_as"], number, first, _reason(error))


def _writes() -> Iterator[Finding]:
    for values, number, first in _groups(CapturedWrite.objects.filter(status="pending"), "entity_type", "model"):
        if not is_known(CapturedWrite.objects.get(pk=first)):
            yield Finding("write", values["model"], number, first, "no model of this code captures writes of its table")


def _check_schedules(found: Deployment) -> None:
    known = set(targets())
    for row in Schedule.objects.filter(paused_at=None, parked_at=None).order_by("name"):
        if row.is_declared and find_schedule(row.name) is None:
            why = "no @schedule has this name; restore it, or delete the row in the admin"
            found.vanishes.append(Finding("schedule", row.name, 1, row.pk, why))
        elif row.target not in known:
            why = f"there is no workflow or scheduled function {row.target!r}"
            found.parks.append(Finding("schedule", row.name, 1, row.pk, why))


# -- offsets of new subscribers ----------------------------------------------------------------------------------------


def _fires(now: datetime) -> Iterator[Finding]:
    """Yield what the next reconciliation lets fire: offsets of new subscribers whose time has passed within ``grace``,
    counted from the event rows."""
    for label, definition in _dated():
        if not possible_offsets_of(definition.name):
            continue
        numbers: Counter[str] = Counter()
        examples: dict[str, int] = {}
        for events in _candidates(label, definition, now):
            for event, what in _due_at_once(events, definition, now):
                numbers[what] += 1
                examples.setdefault(what, event.pk)
        for what, number in numbers.items():
            yield Finding("event", definition.name, number, examples[what], f"{what} at once")


def _dated() -> Iterator[tuple[str, EventDefinition]]:
    for model in declaring_models():
        for declared in declared_on(model):
            if declared.owner is model and declared.definition.date_field:
                yield declared.label, declared.definition
    for event in all_free_events():
        yield event.label, event


def _candidates(label: str, definition: EventDefinition, now: datetime) -> Iterator[Sequence[Event]]:
    """Yield, in batches, the events whose timer was set for other subscribers and that may have an offset just now."""
    earliest, latest = bounds_of_offsets(definition.name, now)
    rows = Event.objects.filter(
        entity_type=label,
        declared_as=definition.name,
        status__in=LIVE_EVENTS,
        at__range=(now - definition.grace - latest, now - earliest),
    ).exclude(planned_for=plan_of(definition.name))
    after = seen = 0
    while seen < MAX_EVENTS and (batch := list(rows.filter(pk__gt=after).order_by("pk")[:BATCH_ROWS])):
        after, seen = batch[-1].pk, seen + len(batch)
        yield batch


def _due_at_once(events: Sequence[Event], definition: EventDefinition, now: datetime) -> Iterable[tuple[Event, str]]:
    planned: dict[str, tuple[Event, str]] = {}
    for event in events:
        if event.wake_at is None or event.wake_at > now:  # else these are overdue, and not of new subscribers
            for milestone, at in not_fired(event).items():
                if milestone and at <= now <= later(at, definition.grace):
                    names = [name for _, name in notified(event, milestone)]
                    yield event, f"{', '.join(names) or milestone}: its offset fires"
        for workflow in workflows_on(event):
            if workflow.offset is not None and event.at is not None:
                at = event.moment_of(workflow.offset)
                if at <= now <= later(max(event.at, at), definition.grace):
                    key = origin_key(event, workflow)
                    planned[key] = event, f"workflow {workflow.name}: a run starts"
    known = set(WorkflowRun.objects.filter(origin_key__in=list(planned)).values_list("origin_key", flat=True))
    yield from (found for key, found in planned.items() if key not in known)
