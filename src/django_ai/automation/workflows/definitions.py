"""What a workflow class declares, as immutable definitions, and the register of all workflows by name and version.

A run keeps the version that it started with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..conf import conf
from ..events.subscriptions import Subscription, subscriptions
from ..exceptions import UnknownStepError, UnknownWorkflowError
from ..queues.lanes import Priority, declare, priority_for
from ..state.contexts import make_context, missing_fields, unknown_fields
from ..state.versions import Migration, is_newer, version_order
from ..values.clock import Offset, later
from ..values.limits import DeclaredLimit
from ..values.retry import Retry
from ..values.windows import Window
from .cancel_on import On
from .current_run import KIND
from .outcomes import StepName, Wait

if TYPE_CHECKING:
    from ..events.models import Event
    from .models import WorkflowRun


PAYLOAD_OF_SCHEDULES = ("schedule", "scheduled_at")
SCHEDULED = "schedule"
"""The first part of the key under which the subscriptions of schedules are declared."""


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """What ``@step`` declares of a method."""

    name: str
    start: bool = False
    retry: Retry | None = None
    atomic: bool = True
    own_timeout: timedelta | None = None
    wait: Wait | None = None
    hook: str = ""
    """``"@on_fail"`` or ``"@on_cancel"``, if the method is that: it is entered by no outcome."""
    takes: tuple[str, ...] = ()
    """The arguments that the method gets, each by its name."""

    @property
    def timeout(self) -> timedelta:
        return self.own_timeout or conf().STEP_TIMEOUT

    def waiting_for(self, wait: Wait) -> StepDefinition:
        return replace(self, wait=wait)


@dataclass(frozen=True, slots=True)
class WorkflowDefinition:
    """What ``@workflow`` or ``@event_workflow`` declares of a class."""

    name: str
    version: str
    cls: type
    context: type[BaseModel]
    steps: Mapping[str, StepDefinition]
    start: str
    default_retry: Retry = field(default_factory=Retry)
    event_name: str | None = None
    offset: Offset | None = None
    on_fail: StepDefinition | None = None
    on_cancel: StepDefinition | None = None
    namespace: str | None = None
    ignores_claims: bool = False
    recheck: bool = False
    window: Window | None = None
    migrate: Migration | None = None
    limits: tuple[DeclaredLimit, ...] = ()
    deadline: timedelta | None = None
    when: Callable[[Event], Any] | None = None
    queue: str = ""
    priority: Priority = 0
    cancel_on: tuple[On, ...] = ()

    def deadline_from(self, start: datetime) -> datetime | None:
        """Return the deadline of a run that starts at ``start``, if this workflow has one."""
        return None if self.deadline is None else later(start, self.deadline)

    @property
    def hooks(self) -> tuple[StepDefinition, ...]:
        """The methods with which the paths begin of runs that have failed or were cancelled."""
        return tuple(each for each in (self.on_fail, self.on_cancel) if each is not None)

    def path_to(self, status: str) -> StepDefinition | None:
        """Return the method with which the path of a run begins that is to end with ``status``, or None."""
        return {"failed": self.on_fail, "cancelled": self.on_cancel}.get(status)

    def entered(self, name: str, ending: str) -> StepDefinition:
        """Return the step that a run enters, or the method with which its path to the status ``ending`` begins.

        Raises ``UnknownStepError`` with the nearest name.
        """
        hook = self.path_to(ending)
        return hook if hook is not None and hook.name == name else self.step(name)

    def step(self, name: str) -> StepDefinition:
        """Return a step by its name. Raises ``UnknownStepError`` with the nearest name."""
        found = self.steps.get(name)
        for hook in self.hooks if found is None else ():
            if hook.name == name:
                raise UnknownStepError(
                    f"Workflow {self.name!r}: {name!r} is its {hook.hook} and no step: a run enters it only when it "
                    "ends. Write a step that does the same."
                )
        if found is None:
            near = get_close_matches(name, self.steps, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(map(repr, self.steps))}."
            raise UnknownStepError(f"Workflow {self.name!r} has no step {name!r}. {hint}")
        if isinstance(name, StepName) and not self._has(name):
            raise UnknownStepError(
                f"Workflow {self.name!r} has another step {name!r} than {name.function.__qualname__}, which belongs to "
                f"another class. Write self.{name}."
            )
        return found

    def _has(self, name: StepName) -> bool:
        """Return whether the step that ``name`` was made of belongs to this class or to one of its bases."""
        return any(each.__dict__.get(name) is name.function for each in self.cls.__mro__)

    def retry_of(self, step: StepDefinition) -> Retry:
        return step.retry or self.default_retry

    def start_on(self, event_name: str) -> None:
        """Start with each event of this name, too: that of a schedule."""
        known = {each.event_name: each for each in subscriptions.declared_by(Start, (SCHEDULED, self.name))}
        known[event_name] = Start(event_name=event_name, workflow=self)
        subscriptions.declare(Start, (SCHEDULED, self.name), known.values())

    def problem_with(self, arguments: Iterable[str]) -> str:
        """Return why a schedule with ``arguments`` of these names cannot start it. Empty: it can, or
        ``create_context`` decides."""
        if self.has_create_context:
            return ""
        names = list(arguments)
        return unknown_fields(self.context, names) or missing_fields(self.context, [*names, *PAYLOAD_OF_SCHEDULES])

    def problem_with_start(self, arguments: Iterable[str]) -> str:
        """Return why code cannot start it with arguments of these names. Empty: it can, as far as names tell."""
        names = list(arguments)
        if not self.has_create_context:
            return unknown_fields(self.context, names) or missing_fields(self.context, names)
        try:
            inspect.signature(self.cls.create_context).bind(**dict.fromkeys(names))  # type: ignore[attr-defined]
        except (TypeError, ValueError) as error:
            return f"{self.cls.__qualname__}.create_context: {error}."
        return ""

    @property
    def has_create_context(self) -> bool:
        return getattr(self.cls, "create_context", None) is not None

    def make_context(self, origin: Event | None, /, **arguments: Any) -> BaseModel:
        """Return a new Context, for the event that starts the run or for ``arguments``; see ``contexts.py``."""
        return make_context(self.cls, self.context, origin, arguments, f"The workflow {self.name!r}")

    def priority_by_hand(self, context: BaseModel) -> int:
        """Return the priority of a run that code starts with ``context``. A function of the event has none then.

        Raises what a function of the Context raises, and ``DefinitionError`` if it returns no priority.
        """
        if self.event_name is not None and callable(self.priority):
            return 0
        return priority_for(self.priority, context, f"@workflow({self.name!r})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Subscription):
    """The subscription of an event workflow. With an offset, its planned run is the timer."""

    uses_event_timer = False

    workflow: WorkflowDefinition

    @property
    def window_target(self) -> tuple[str, str]:
        return KIND, self.workflow.name

    @property
    def subscriber(self) -> tuple[str, str]:
        return KIND, self.workflow.name


_registry: dict[str, dict[str, WorkflowDefinition]] = {}


def find_workflow(name: str, version: str | None = None) -> WorkflowDefinition:
    """Return a workflow, its newest version unless one is named. Raises ``UnknownWorkflowError``."""
    versions = _registry.get(name)
    if not versions:
        near = get_close_matches(name, _registry, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(repr, _registry)) or 'none'}."
        raise UnknownWorkflowError(f"No workflow is called {name!r}. {hint}")
    if version is None:
        return versions[max(versions, key=version_order)]
    if version not in versions:
        raise UnknownWorkflowError(
            f"Workflow {name!r} has no version {version!r} any more; it has {', '.join(map(repr, versions))}. "
            "Keep the old class, with its version=, until its runs have ended."
        )
    return versions[version]


def registered_workflow(name: str, version: str) -> WorkflowDefinition | None:
    """Return the workflow that is registered under this name and version, or None."""
    return _registry.get(name, {}).get(version)


def workflow_of(run: WorkflowRun) -> WorkflowDefinition:
    """Return the definition that ``run`` continues with: its own version; if that is gone, the newest, provided that it
    has a ``migrate_context`` or that the run has no Context yet.

    Raises ``UnknownWorkflowError``, which names the fix.
    """
    versions = _registry.get(run.name)
    if not versions:
        near = get_close_matches(run.name, _registry, n=1, cutoff=0.75)
        hint = f" Was it renamed to {near[0]!r}? Then" if near else " If it was renamed,"
        raise UnknownWorkflowError(
            f"{run}: no workflow is called {run.name!r}.{hint} give that class name={run.name!r}; else restore the "
            "class. The run then resumes automatically."
        )
    if run.version in versions:
        return versions[run.version]
    newest = find_workflow(run.name)
    gone = f"{run}: workflow {run.name!r} has no version {run.version!r}; it has {', '.join(map(repr, versions))}."
    if is_newer(run.version, newest.version):
        raise UnknownWorkflowError(f"{gone} A worker of the newer release performs the run.")
    if newest.migrate is None and not run.has_no_context:
        raise UnknownWorkflowError(
            f"{gone} Keep the old class, with version={run.version!r}, until its runs have ended, or give the newest a "
            "migrate_context(data, from_version). The run then resumes automatically."
        )
    return newest


def all_workflows() -> list[WorkflowDefinition]:
    return [definition for versions in _registry.values() for definition in versions.values()]


def newest_workflows() -> list[WorkflowDefinition]:
    """Return the newest version of each workflow, which new runs use."""
    return [versions[max(versions, key=version_order)] for versions in _registry.values()]


def versions_of(name: str) -> list[str]:
    """Return the versions of a workflow that are registered, the oldest first."""
    return sorted(_registry.get(name, {}), key=version_order)


def limits_of(name: str) -> tuple[DeclaredLimit, ...] | None:
    """Return the limits of all versions of a workflow, as the newest has them; None if there is no such workflow."""
    versions = _registry.get(name)
    if versions is None:
        return None
    ordered = sorted(versions, key=version_order)
    return tuple({limit.name: limit for version in ordered for limit in versions[version].limits}.values())


def has_limits(name: str) -> bool:
    """Return whether any version of the workflow has limits."""
    return any(each.limits for each in _registry.get(name, {}).values())


def any_limits() -> bool:
    """Return whether any workflow has limits."""
    return any(map(has_limits, _registry))


def workflows_on(event: Event) -> list[WorkflowDefinition]:
    """Return the workflows that this event starts, the newest version of each."""
    return [each.workflow for each in subscriptions.subscribed_to(Start, event.event_name, event.namespace)]


def register(definition: WorkflowDefinition) -> None:
    declare("workflows", definition.queue, definition.priority)
    _registry.setdefault(definition.name, {})[definition.version] = definition
    _subscribe(definition.name)


def unregister(definition: WorkflowDefinition) -> None:
    """Forget ``definition``: for tests that declare their own."""
    versions = _registry.get(definition.name, {})
    versions.pop(definition.version, None)
    if not versions:
        _registry.pop(definition.name, None)
    _subscribe(definition.name)


def _subscribe(name: str) -> None:
    """Subscribe the newest version of a workflow to its event, and no other version."""
    newest = find_workflow(name) if name in _registry else None
    declared = []
    if newest is not None and newest.event_name is not None:
        declared.append(
            Start(
                event_name=newest.event_name,
                namespace=newest.namespace,
                offset=newest.offset,
                recheck=newest.recheck,
                window=newest.window,
                workflow=newest,
            )
        )
    subscriptions.declare(Start, name, declared)
