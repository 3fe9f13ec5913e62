"""What a deployment changes for the rows that exist: which of them would park, and what would fire at once.

It is called with the new code and the database of the old one, and reads only. The database groups rows by the names
that they refer to, in ranges (``live_rows.py``), and one row of each group is looked at as a worker would. Events whose
offsets would fire are found as the reconciliation finds them: by the dates of their entities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from django.db.models import Case, CharField, F, Model, Q, QuerySet, Value, When

from ..agents.definitions import agent_of
from ..agents.models import AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from ..events.callbacks import find_callback
from ..events.declarations import Declared, declared_on, declaring_models
from ..events.definitions import EventDefinition
from ..events.entity_ids import entity_id_of
from ..events.free_events import FreeEvent, all_free_events
from ..events.models import (
    CallbackExecution,
    CapturedWrite,
    Event,
    EventStatus,
    ExecutionStatus,
    Schedule,
    active_key,
)
from ..events.recording.captured.performing import is_known
from ..events.recording.reconcile import Window, differing_entities, windows_of_offsets
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
from .live_rows import LiveRows, Shown

LIVE_EVENTS = (EventStatus.PENDING, EventStatus.PROCESSED)
BATCH_ROWS = 500
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


def check_deployment(
    now: datetime, contexts: int = CONTEXTS_OF_EACH, progress: Callable[[str, int], Shown] | None = None
) -> Deployment:
    """Compare the unfinished rows with this code. Reads only.

    ``contexts``: how many Contexts of each workflow and agent are loaded, the newest first, as a worker would load them
    (``migrate_context`` is called); 0: none. ``progress``: makes what shows how many rows are read.
    """
    found = Deployment()
    tables: list[type[Model]] = [WorkflowRun, Wait, AgentRun, HandlerExecution, CallbackExecution, Event, CapturedWrite]
    rows = LiveRows([*tables, WorkflowRun, AgentRun] if contexts else tables, progress)
    _check_runs(rows, found)
    found.parks += _waits(rows)
    found.parks += _agents(rows)
    found.parks += _handlers(rows)
    found.parks += _callbacks(rows)
    found.parks += _events(rows)
    found.parks += _writes(rows)
    _check_schedules(found)
    if contexts:
        broken = {(each.kind, each.name) for each in found.parks}
        found.parks += _contexts(rows.newest(_live_runs(), "name", contexts), "workflow", contexts, broken)
        found.parks += _contexts(rows.newest(_live_agents(), "name", contexts), "agent", contexts, broken)
    rows.end()
    found.fires += _fires(now)
    return found


def _live_runs() -> QuerySet[WorkflowRun, WorkflowRun]:
    return WorkflowRun.objects.unfinished().exclude(status=WorkflowStatus.PARKED)


def _live_agents() -> QuerySet[AgentRun, AgentRun]:
    return AgentRun.objects.unfinished().exclude(status=AgentStatus.PARKED)


def _reason(error: AutomationError) -> str:
    return str(error).partition("\n")[0]


# -- runs --------------------------------------------------------------------------------------------------------------


def _check_runs(rows: LiveRows, found: Deployment) -> None:
    is_suspended, is_new = Q(status=WorkflowStatus.SUSPENDED), Q(event__isnull=False, started_at=None)
    # What a run does next depends on these: of a suspended one, what follows its wait counts, and not its step.
    state = Case(
        When(is_suspended, then=Value("suspended")),
        When(ending__isnull=False, then=Value("ending")),
        When(is_new, then=Value("new")),
        default=Value("at a step"),
        output_field=CharField(),
    )
    step = Case(When(is_suspended, then=Value("")), default=F("current_step"), output_field=CharField())
    live = _live_runs().annotate(at_state=state, at_step=step)
    for group in rows.groups(live, "name", "version", "at_state", "at_step"):
        run, number = group.first, group.number
        try:
            definition = workflow_of(run)
            if run.status != WorkflowStatus.SUSPENDED:
                next_entry(run, definition)
        except CodeError as error:
            found.parks.append(Finding("workflow", run.name, number, run.pk, _without(str(run), _reason(error))))
            continue
        if registered_workflow(run.name, run.version) is None:
            why = f"version {run.version!r} is gone; they continue with version {definition.version!r}"
            found.versions.append(Finding("workflow", run.name, number, run.pk, why))


def _waits(rows: LiveRows) -> Iterator[Finding]:
    """Yield the steps that follow a wait and do not exist."""
    open_waits = Wait.objects.filter(run__status=WorkflowStatus.SUSPENDED, visit=F("run__visit"))
    for group in rows.groups(open_waits, "run__name", "run__version", "then", "on_timeout", related=["run"]):
        wait = group.first
        try:
            definition = workflow_of(wait.run)
        except CodeError:
            continue  # reported with the run
        for step in dict.fromkeys([wait.then, wait.on_timeout]):
            if step and not _has_step(definition, step):
                why = f"they wait, and then enter the step {step!r}, which does not exist"
                yield Finding("workflow", wait.run.name, group.number, wait.run_id, why)


def _has_step(definition: WorkflowDefinition, step: str) -> bool:
    return step in definition.steps or any(hook.name == step for hook in definition.hooks)


def _contexts(rows: Iterable[Run], kind: str, limit: int, broken: set[tuple[str, str]]) -> Iterator[Finding]:
    """Yield the Contexts that the code cannot load, of ``rows``."""
    problems: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], int] = {}
    for row in rows:
        name: str = row.name  # type: ignore[attr-defined]
        if (kind, name) in broken:
            continue
        try:
            row.context  # noqa: B018
        except NoContextError:
            continue
        except CodeError as error:
            problem = name, f"their Context does not fit: {_without(str(row), _reason(error))}"
            problems[problem] += 1
            examples.setdefault(problem, row.pk)
    for (name, why), number in sorted(problems.items()):
        yield Finding(kind, name, number, examples[name, why], f"of the newest {limit}, {why}")


def _without(row: str, text: str) -> str:
    """Return the text without the row that it begins with, so that equal problems are one."""
    return text.removeprefix(f"The Context of {row}").removeprefix(row).lstrip(": ").replace(row, "it")


# -- agents ------------------------------------------------------------------------------------------------------------


def _agents(rows: LiveRows) -> Iterator[Finding]:
    for group in rows.groups(_live_agents(), "name", "version"):
        try:
            agent_of(group.first)
        except CodeError as error:
            yield Finding("agent", group.first.name, group.number, group.first.pk, _reason(error))


def _handlers(rows: LiveRows) -> Iterator[Finding]:
    pending = HandlerExecution.objects.filter(
        status__in=[HandlerStatus.PENDING, HandlerStatus.WAITING],
        run__status__in=[AgentStatus.PENDING, AgentStatus.ACTIVE],
    )
    for group in rows.groups(pending, "run__name", "run__version", "handler", "milestone", related=["run", "event"]):
        row = group.first
        try:
            definition = agent_of(row.run)
        except CodeError:
            continue  # reported with the agent
        if definition.find_handler(row.handler, row.event, row.milestone) is None:
            why = f"the agent has no handler {row.handler!r} for {row.event.event_name!r}{_at(row.milestone)}"
            yield Finding("handler", f"{row.run.name}.{row.handler}", group.number, row.pk, why)


def _at(milestone: str) -> str:
    return f" at {milestone!r}" if milestone else ""


# -- events ------------------------------------------------------------------------------------------------------------


def _callbacks(rows: LiveRows) -> Iterator[Finding]:
    pending = CallbackExecution.objects.filter(status=ExecutionStatus.PENDING)
    for group in rows.groups(pending, "callback", "event__event_name", "milestone"):
        name, milestone = group.values["event__event_name"], group.values["milestone"]
        if find_callback(name, group.values["callback"], milestone) is None:
            why = f"no callback has this name for {name!r}{_at(milestone)}"
            yield Finding("callback", group.values["callback"], group.number, group.first.pk, why)


def _events(rows: LiveRows) -> Iterator[Finding]:
    due = Event.objects.filter(status__in=LIVE_EVENTS, wake_at__isnull=False)
    for group in rows.groups(due, "entity_type", "declared_as"):
        try:
            group.first.check_known(declared=True)
        except CodeError as error:
            yield Finding("event", group.values["declared_as"], group.number, group.first.pk, _reason(error))


def _writes(rows: LiveRows) -> Iterator[Finding]:
    for group in rows.groups(CapturedWrite.objects.filter(status="pending"), "entity_type", "model"):
        if not is_known(group.first):
            why = "no model of this code captures writes of its table"
            yield Finding("write", group.values["model"], group.number, group.first.pk, why)


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
    for name, definition, batches in _dated(now):
        numbers: Counter[str] = Counter()
        examples: dict[str, int] = {}
        for events in batches:
            for event, what in _due_at_once(events, definition, now):
                numbers[what] += 1
                examples.setdefault(what, event.pk)
        for what, number in numbers.items():
            yield Finding("event", name, number, examples[what], f"{what} at once")


def _dated(now: datetime) -> Iterator[tuple[str, EventDefinition, Iterator[Sequence[Event]]]]:
    """Yield the definitions with offsets, each with batches of the events whose timer was set for other subscribers
    and that may have an offset just now."""
    for model in declaring_models():
        for declared in declared_on(model):
            definition = declared.definition
            if declared.owner is model and definition.date_field and possible_offsets_of(definition.name):
                yield definition.name, definition, _of_entities(model, declared, now)
    for event in all_free_events():
        if possible_offsets_of(event.name):
            yield event.name, event, _of_free_event(event, now)


def _of_entities(model: type[Model], declared: Declared, now: datetime) -> Iterator[Sequence[Event]]:
    definition = declared.definition
    for window in windows_of_offsets(definition, now):
        for page in differing_entities(model, declared, window):
            for start in range(0, len(page), BATCH_ROWS):
                ids = [entity_id_of(model, pk) for _, pk in page[start : start + BATCH_ROWS]]
                keys = [active_key(declared.label, each, definition.name) for each in ids]
                yield list(_planned_for_others(definition, window).filter(active_key__in=keys))


def _of_free_event(event: FreeEvent, now: datetime) -> Iterator[Sequence[Event]]:
    for window in windows_of_offsets(event, now):
        rows = _planned_for_others(event, window).filter(entity_type=event.label, declared_as=event.name)
        pks = rows.filter(wake_at__isnull=False).values_list("pk", flat=True).iterator(BATCH_ROWS)
        while batch := list(islice(pks, BATCH_ROWS)):
            yield list(Event.objects.filter(pk__in=batch))


def _planned_for_others(definition: EventDefinition, window: Window) -> QuerySet[Event, Event]:
    rows = Event.objects.filter(status__in=LIVE_EVENTS, at__gte=window[0], at__lt=window[1])
    return rows.exclude(planned_for=plan_of(definition.name))


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
