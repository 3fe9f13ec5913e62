"""What a workflow class declares, as immutable definitions, and the register of all workflows by name and version.

A run keeps the version that it started with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..conf import conf
from ..events.subscriptions import Subscription, subscriptions
from ..exceptions import UnknownStepError, UnknownWorkflowError
from ..state.contexts import make_context
from ..state.versions import Migration, is_newer, version_order
from ..values.clock import Offset
from ..values.retry import Retry
from .outcomes import StepName, Wait

if TYPE_CHECKING:
    from ..events.models import Event
    from .models import WorkflowRun


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """What ``@step`` declares of a method."""

    name: str
    start: bool = False
    retry: Retry | None = None
    atomic: bool = True
    own_timeout: timedelta | None = None
    wait: Wait | None = None

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
    on_fail: str | None = None
    namespace: str | None = None
    ignores_claims: bool = False
    recheck: bool = False
    migrate: Migration | None = None

    def step(self, name: str) -> StepDefinition:
        """Return a step by its name. Raises ``UnknownStepError`` with the nearest name."""
        found = self.steps.get(name)
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

    def make_context(self, origin: Event | None, /, **arguments: Any) -> BaseModel:
        """Return a new Context, for the event that starts the run or for ``arguments``; see ``contexts.py``."""
        return make_context(self.cls, self.context, origin, arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Subscription):
    """The subscription of an event workflow. With an offset, its planned run is the timer."""

    uses_event_timer = False

    workflow: WorkflowDefinition


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


def workflows_on(event: Event) -> list[WorkflowDefinition]:
    """Return the workflows that this event starts, the newest version of each."""
    return [each.workflow for each in subscriptions.subscribed_to(Start, event.event_name, event.namespace)]


def register(definition: WorkflowDefinition) -> None:
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
                workflow=newest,
            )
        )
    subscriptions.declare(Start, name, declared)
