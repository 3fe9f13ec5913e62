"""The graph of a workflow: its steps, what they wait for, and how its runs end."""

from __future__ import annotations

from datetime import timedelta

from django.utils.translation import gettext

from ...events.schedules.definitions import PREFIX
from ...events.subscriptions import subscriptions
from ...events.upcoming import offset_text
from ...workflows.definitions import Start, WorkflowDefinition
from ...workflows.source_outcomes import UNKNOWN, OutcomeKind, SourceOutcome, outcomes_of, wait_before
from ...workflows.statuses import WorkflowStatus
from ..story import duration_text
from .model import EdgeKind, Graph, GraphBuilder, NodeKind

STEP = "step:"
"""The first part of the key of the node of a step."""
START = "start"

_KINDS = {
    OutcomeKind.SLEEP: NodeKind.SLEEP,
    OutcomeKind.SIGNAL: NodeKind.SIGNAL,
    OutcomeKind.EVENT: NodeKind.EVENT,
    OutcomeKind.CHILD: NodeKind.CHILD,
    OutcomeKind.ANY: NodeKind.CHOICE,
    OutcomeKind.ALL: NodeKind.CHOICE,
}


def outcome_key(step: str, number: int) -> str:
    """Return the key of the node of an outcome of a step: ``number`` counts the outcomes of the step."""
    return f"outcome:{number}:{step}"


def end_key(status: str) -> str:
    return f"end:{status}"


def workflow_graph(definition: WorkflowDefinition) -> Graph:
    """Return the graph of a workflow, as far as its source tells it."""
    return _Builder(definition).built()


class _Builder:
    def __init__(self, definition: WorkflowDefinition) -> None:
        self.definition = definition
        self.outcomes = outcomes_of(definition)
        title = gettext("Workflow %(name)s, version %(version)s") % {
            "name": definition.name,
            "version": definition.version,
        }
        self.graph = GraphBuilder(definition.name, title)
        self.statuses = self._statuses()

    def built(self) -> Graph:
        """Add the starts, the steps in the order of the source, the paths to an end, and what ends all runs."""
        definition, graph = self.definition, self.graph
        self._starts()
        hooks = {hook.name: hook.hook for hook in definition.hooks}
        for name in self.outcomes:
            self._declare(name, NodeKind.HOOK if name in hooks else NodeKind.STEP, hooks.get(name, ""))
        for name, outcomes in self.outcomes.items():
            for number, outcome in enumerate(outcomes):
                self._outcome(name, number, outcome)
        self._ends()
        return graph.graph()

    def _starts(self) -> None:
        graph, definition = self.graph, self.definition
        declared = [each for each in subscriptions.all(Start) if each.workflow.name == definition.name]
        for number, each in enumerate(declared):
            detail = gettext("event") if each.offset is None else offset_text(each.offset)
            label = each.event_name
            if label.startswith(PREFIX):
                label, detail = label.removeprefix(PREFIX), gettext("schedule")
            key = graph.node(f"{START}:{number}", NodeKind.START, label, detail)
            graph.edge(key, self._entry(definition.start))
        if definition.event_name is None:
            key = graph.node(START, NodeKind.START, gettext("start"), gettext("by code, or as a child"))
            graph.edge(key, self._entry(definition.start))

    def _declare(self, name: str, kind: NodeKind, detail: str = "") -> None:
        """Add the node of a step; before it, the wait that is declared above it."""
        key = self.graph.node(f"{STEP}{name}", kind, name, detail)
        step = self.definition.steps.get(name)
        if step is not None and step.wait is not None:
            before = wait_before(step.wait)
            entry = self.graph.node(f"before:{name}", NodeKind.EVENT, before.subject, gettext("waits for the event"))
            self.graph.edge(entry, self._entry(before.then, name) if before.then else key)
            self._timeout(entry, name, before)

    def _entry(self, target: str | None, own: str = "") -> str:
        """Return the node that a run enters with the step ``target``; None: the step ``own`` again."""
        if target is None:
            return f"{STEP}{own}"
        step = self.definition.steps.get(target)
        if step is not None and step.wait is not None and target != own:
            return f"before:{target}"
        return f"{STEP}{target}"

    def _target(self, step: str, target: str | None, source: str = "") -> tuple[str, EdgeKind]:
        """Return the node of a target, and the kind of the edge to it. What cannot be known gets a node of its own."""
        if target == UNKNOWN or (target is not None and target not in self.definition.steps):
            if target != UNKNOWN:
                text = gettext("The step %(step)s names %(target)s, which the workflow does not have.")
                self.graph.note(text % {"step": step, "target": target})
                missing = self.graph.node(f"missing:{target}", NodeKind.UNKNOWN, str(target), gettext("no step"))
                return missing, EdgeKind.UNKNOWN
            text = gettext("Which step follows %(step)s is computed while it runs: %(source)s.")
            self.graph.note(text % {"step": step, "source": source or gettext("its target is no literal name")})
            label = gettext("computed by the code")
            return self.graph.node(f"unknown:{step}", NodeKind.UNKNOWN, label, source), EdgeKind.UNKNOWN
        return self._entry(target, step), EdgeKind.NORMAL

    def _outcome(self, step: str, number: int, outcome: SourceOutcome) -> None:
        graph, source = self.graph, f"{STEP}{step}"
        match outcome.kind:
            case OutcomeKind.GOTO | OutcomeKind.UNKNOWN:
                target, kind = self._target(step, outcome.then, outcome.subject)
                graph.edge(source, target, kind=kind)
            case OutcomeKind.COMPLETE:
                for status in self.statuses.get(step) or [WorkflowStatus.COMPLETED]:
                    graph.edge(source, self._end(status))
            case OutcomeKind.FAIL:
                self._fail(step, outcome.subject)
            case _:
                key = graph.node(outcome_key(step, number), _KINDS[outcome.kind], *_words(outcome))
                graph.edge(source, key)
                self._continued(key, step, outcome)

    def _continued(self, key: str, step: str, outcome: SourceOutcome) -> None:
        """Add the edges that leave a wait, a sleep, a child or a choice."""
        if outcome.kind == OutcomeKind.ANY and outcome.branches:
            for name, branch in outcome.branches:
                target, kind = self._target(step, branch.then or outcome.then, _text(branch))
                self.graph.edge(key, target, f"{name}: {_text(branch)}", kind)
        else:
            target, kind = self._target(step, outcome.then, _text(outcome))
            self.graph.edge(key, target, kind=kind)
        self._timeout(key, step, outcome)

    def _timeout(self, key: str, step: str, outcome: SourceOutcome) -> None:
        if outcome.duration is not None and outcome.kind != OutcomeKind.SLEEP:
            target, _ = self._target(step, outcome.on_timeout, _text(outcome))
            self.graph.edge(key, target, gettext("after %s") % _length(outcome.duration), EdgeKind.TIMEOUT)

    def _fail(self, step: str, reason: str) -> None:
        hook = self.definition.on_fail
        statuses = self.statuses.get(step) or []
        in_path = bool(statuses) and WorkflowStatus.COMPLETED not in statuses
        target = self._end(WorkflowStatus.FAILED) if hook is None or in_path else f"{STEP}{hook.name}"
        self.graph.edge(f"{STEP}{step}", target, gettext("fails: %s") % reason, EdgeKind.FAILURE)

    def _end(self, status: str) -> str:
        return self.graph.node(end_key(status), NodeKind.END, str(WorkflowStatus(status).label))

    def _ends(self) -> None:
        """Add what ends runs at any step: errors, the deadline, and events that cancel them."""
        definition, graph = self.definition, self.graph
        if definition.on_fail is not None:
            why = gettext("a step fails for good")
            if definition.deadline is not None:
                why = gettext("a step fails for good, or after %s") % duration_text(definition.deadline)
            key = graph.node("failure", NodeKind.START, why, gettext("at any step"))
            graph.edge(key, f"{STEP}{definition.on_fail.name}", kind=EdgeKind.FAILURE)
        elif definition.deadline is not None:
            graph.note(gettext("A run that has not ended after %s fails.") % duration_text(definition.deadline))
        cancelled = definition.on_cancel
        ends = self._end(WorkflowStatus.CANCELLED) if definition.cancel_on and cancelled is None else ""
        target = ends or (f"{STEP}{cancelled.name}" if cancelled is not None else "")
        for each in definition.cancel_on:
            name = each.wait.event or each.wait.signal
            key = graph.node(f"cancel:{name}", NodeKind.START, name, gettext("cancels the run, at any step"))
            graph.edge(key, target, kind=EdgeKind.FAILURE)
        if cancelled is not None and not definition.cancel_on:
            key = graph.node("cancel", NodeKind.START, gettext("the run is cancelled"), gettext("at any step"))
            graph.edge(key, target, kind=EdgeKind.FAILURE)

    def _statuses(self) -> dict[str, list[WorkflowStatus]]:
        """Return with which statuses a run may end that completes at a step: a step on the path of ``@on_fail`` ends
        it as failed."""
        definition = self.definition
        origins = [
            (definition.start, WorkflowStatus.COMPLETED),
            (definition.on_fail.name if definition.on_fail else "", WorkflowStatus.FAILED),
            (definition.on_cancel.name if definition.on_cancel else "", WorkflowStatus.CANCELLED),
        ]
        found: dict[str, list[WorkflowStatus]] = {}
        for origin, status in origins:
            ahead, seen = [origin] if origin else [], set[str]()
            while ahead:
                name = ahead.pop()
                if name in seen:
                    continue
                seen.add(name)
                found.setdefault(name, []).append(status)
                ahead += [each for outcome in self._all(name) for each in _targets(outcome)]
        return found

    def _all(self, name: str) -> list[SourceOutcome]:
        step = self.definition.steps.get(name)
        before = [wait_before(step.wait)] if step is not None and step.wait is not None else []
        return [*self.outcomes.get(name, []), *before]


def _targets(outcome: SourceOutcome) -> list[str]:
    own = [each for each in (outcome.then, outcome.on_timeout) if each is not None and each != UNKNOWN]
    return own + [each for _, branch in outcome.branches for each in _targets(branch)]


def _words(outcome: SourceOutcome) -> tuple[str, str]:
    """Return the label and the detail of the node of an outcome."""
    match outcome.kind:
        case OutcomeKind.SLEEP:
            return gettext("sleeps"), _length(outcome.duration)
        case OutcomeKind.SIGNAL:
            return outcome.subject, gettext("waits for the signal")
        case OutcomeKind.EVENT:
            return outcome.subject, gettext("waits for the event")
        case OutcomeKind.CHILD:
            return outcome.subject, gettext("waits for the child run")
        case OutcomeKind.ALL:
            return gettext("waits for all of"), ", ".join(f"{name}: {_text(each)}" for name, each in outcome.branches)
    return gettext("waits for the first of"), ", ".join(name for name, _ in outcome.branches)


def _text(outcome: SourceOutcome) -> str:
    """Return what a branch waits for, in a few words."""
    if outcome.kind == OutcomeKind.UNKNOWN:
        return outcome.subject
    if outcome.kind == OutcomeKind.SLEEP:
        return gettext("after %s") % _length(outcome.duration)
    if outcome.kind == OutcomeKind.CHILD:
        return gettext("child run %s") % outcome.subject
    what = gettext("event %s") if outcome.kind == OutcomeKind.EVENT else gettext("signal %s")
    text = what % outcome.subject
    return text if outcome.duration is None else f"{text}, " + gettext("after %s") % _length(outcome.duration)


def _length(duration: timedelta | str | None) -> str:
    return duration_text(duration) if isinstance(duration, timedelta) else duration or ""
