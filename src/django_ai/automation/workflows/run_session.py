"""One worker's session with a run: it enters step after step and commits each.

After a ``goto`` the same worker enters the next step, with the Context in memory and one commit for each step, until
its ``DRAIN_BUDGET`` is spent.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from django.db import connections
from pydantic import BaseModel

from ..conf import conf
from ..db.errors import is_database_failure
from ..db.new_rows import new
from ..db.writer import alias_of
from ..events.claims import release_all
from ..events.models import Event
from ..exceptions import CodeError, ContextError, UnknownStepError
from ..queues import pauses
from ..queues.advance import advance
from ..queues.async_code import awaited
from ..queues.attempt import Progress, attempt, commit
from ..queues.causation import CurrentRun, Owner, breaks_chain, inside
from ..queues.held_leases import has_kept_progress
from ..queues.limits.acquire import RowSlots
from ..queues.limits.release import left
from ..queues.parking import reason_of
from ..queues.signals import row_parked
from ..queues.tracing import linked
from ..state.contexts import dump_context, load_context, merge, replaced
from ..state.versions import restore
from ..values.clock import Clock
from ..values.failures import Raised
from ..values.text import trace_of
from .admission import begins_now, cancel_if_claimed, wanted
from .child_runs import ending_of, start_child, wake_parent
from .current_run import KIND, View, Wake, WakeReason
from .deadlines import fail_at_deadline
from .definitions import StepDefinition, WorkflowDefinition, find_workflow
from .models import Signal, StepExecution, Wait, WorkflowRun
from .outcomes import Choice, Complete, Outcome, Subflow
from .paths import original_error
from .received import read_arrived, receive
from .registration import forget_cancel_on, registrations
from .statuses import ACTIONS, DEFERRED, WorkflowStatus
from .transitions import Decision, Returned, State, deadline_change, decide
from .visits import before_visit, claims_of, is_kept
from .wait_keys import SUBFLOW, subflow_channel
from .waits import reason_of_timeout, settle
from .window_runs import check_still_collects, is_window_run, take_events

logger = logging.getLogger("django_ai.automation")


@dataclass(frozen=True, slots=True)
class StepEntry:
    """The step that a run enters now, and why. ``waits``: its ``@wait_for_event`` waits first."""

    step: StepDefinition
    reason: WakeReason
    waits: bool = False


ENDS_OF_WAITS = (WakeReason.SIGNAL, WakeReason.EVENT, WakeReason.TIMEOUT, WakeReason.ALL)


def next_entry(run: WorkflowRun, definition: WorkflowDefinition, over: Wait | None = None) -> StepEntry:
    """Return the step that the run enters next. ``over``: the wait that has timed out, if one has."""
    name, reason = run.current_step or definition.start, WakeReason(run.wake_reason)
    ending = str((run.ending or {}).get("status", ""))
    if run.has_no_context and not ending and name not in definition.steps:
        name = definition.start  # it has not started, so its first step may have been renamed
    has_waited = over is not None or reason in ENDS_OF_WAITS or bool(run.branches)
    if over is not None:
        name, reason = over.on_timeout, reason_of_timeout(over)
    elif has_waited:
        name = run.wake_step or name
    try:
        step = definition.entered(name, ending)
    except UnknownStepError as error:
        raise UnknownStepError(
            f"{run}: {error} Restore the step and the run resumes automatically, or resume it at another step, on its "
            f"page in the admin or by manage.py automation_resume workflow --pk {run.pk} --step NAME."
        ) from None
    arrived = has_waited and name == run.current_step
    return StepEntry(step, reason, waits=step.wait is not None and not arrived)


def last_entry(run: WorkflowRun, definition: WorkflowDefinition) -> StepEntry:
    """Return the step of a run that enters no other, because its deadline has passed. The code may lack that step."""
    step = definition.steps.get(run.current_step, definition.steps[definition.start])
    return StepEntry(step, WakeReason(run.wake_reason))


def _dump_migrated(run: WorkflowRun, context: BaseModel) -> str:
    """Return a migrated Context as JSON. Raises ``ContextError``, which parks the run, if it cannot be stored."""
    try:
        return dump_context(context, f"The Context of {run}")
    except Exception as error:
        if is_database_failure(error, connections[alias_of(WorkflowRun)]):
            raise
        raise ContextError(
            f"{run}: migrate_context returned a Context that cannot be stored.\n{trace_of(error)}"
        ) from error


class RunSession:
    """A run while one worker leases it, with the Context in memory from step to step.

    Raises ``CodeError`` if the stored data is no valid Context for this code, or this code lacks the run's event.
    """

    def __init__(self, run: WorkflowRun, definition: WorkflowDefinition, entry: StepEntry, clock: Clock) -> None:
        self.run = run
        self.definition = definition
        self.entry = entry
        self.clock = clock
        self.row_slots: RowSlots | None = None
        self.lease_renewed = time.monotonic()
        self.budget_ends = self.lease_renewed + conf().DRAIN_BUDGET.total_seconds()
        self.pauses = pauses.count()
        self.position = run.position
        self.event = run.event if run.awaits_start and run.ending is None else None
        self.context: BaseModel | None = None
        self.migrated: str | None = None
        self.new_data: Any = None
        self.data_size: int | None = None
        self.collects = self.event is not None and (definition.window is not None or is_window_run(run))
        self.events: Sequence[Event] = []
        if self.collects and is_window_run(run):
            check_still_collects(run, definition)
        if self.event is not None:
            self.event.check_known(declared=run.planned)
        if not run.has_no_context:
            stored = restore(definition, run.data, run.version, f"{run} ({entry.step.name})")
            self.context = stored.context
            self.migrated = _dump_migrated(run, stored.context) if stored.is_migrated else None

    def admit(self) -> bool:
        """Return whether the run continues now. A planned run may be too early or no longer wanted, another run may
        have claimed its event, and ``when=`` may be false for it. What has begun its path continues."""
        run, definition, clock = self.run, self.definition, self.clock
        if run.ending is not None:
            return True
        if run.planned and run.started_at is None and not begins_now(run, definition, clock):
            return False
        if self.collects:
            if run.deadline is None:
                run.deadline = definition.deadline_from(clock())
            alone = [self.event] if self.event is not None else []
            self.events = take_events(run, definition, clock) if is_window_run(run) else alone
            self.events = wanted(run, definition, self.events, clock)
            return bool(self.events)
        if not run.awaits_start:
            return True
        if not definition.ignores_claims and cancel_if_claimed(run, clock):
            return False
        return self.event is None or bool(wanted(run, definition, [self.event], clock))

    def store_admission(self) -> None:
        """Store the version of the current code, with the Context that ``migrate_context`` returned, and that the run
        could be evaluated: the next failed evaluation is the first again."""
        run, definition = self.run, self.definition
        changes: dict[str, Any] = {} if self.migrated is None else {"data": self.migrated}
        if changes or run.version != definition.version:
            changes["version"] = definition.version
        if run.failed_evaluations:
            changes["failed_evaluations"] = 0
        if changes:
            advance(run, {**changes, "losses": run.losses})

    def execute(self) -> None:
        """Enter step after step, until the run is released, its deadline has passed, or the worker's ``DRAIN_BUDGET``
        is spent."""
        while True:
            if self.run.is_late(self.clock()):
                fail_at_deadline(self)
                return
            if not self.enter(self.entry) or not self._is_at_next_step():
                return

    def resume(self) -> None:
        """Go on after a step whose progress was kept and is written by now."""
        if self._is_at_next_step():
            self.execute()

    def _is_at_next_step(self) -> bool:
        try:
            self.entry = next_entry(self.run, self.definition)
            self.reload()
        except CodeError as error:
            self.run.park(reason_of(self.run, error), self.clock, awaiting_deploy=True)
            return False
        return True

    def enter(self, entry: StepEntry) -> bool:
        """Run one attempt of a step and commit it; return whether this worker continues the run at once. It does so
        later, in ``resume``, if the progress is kept for a common commit."""
        self.begin(entry)
        may_wait = self.row_slots is None
        committed = self.run_attempt(entry, lambda: self._execute(entry), atomic=entry.step.atomic, may_wait=may_wait)
        if may_wait and has_kept_progress(self.run):
            return False
        if not committed or self.current.is_over:
            if self.row_slots is not None:
                left(KIND, self.run.pk, self.clock())
            return False
        if self.run.status == WorkflowStatus.SUSPENDED:
            settle(self.run, self.clock, list(self.waits))
        return self.run.lease is not None

    def begin(self, entry: StepEntry) -> None:
        """Forget the attempt before."""
        run = self.run
        self.started = self.clock()
        self.keeps_before = is_kept(run)
        self.claims = claims_of(run) if self.keeps_before else []
        self.instance: Any = None
        self.waits: tuple[Wait, ...] = ()
        self.merged = False
        self.arrived = read_arrived(run, entry.reason)
        self.depth = 0 if run.depth and self._breaks_chain(entry) else run.depth
        self.current = CurrentRun(
            f"workflow:{run.pk}:{entry.step.name}",
            self.depth + 1,
            run.idempotency_key,
            Owner(KIND, run.pk, self.definition.namespace),
            trace_context=linked(run.trace_context) if self._starts_trace(entry) else run.trace_context,
        )

    def _starts_trace(self, entry: StepEntry) -> bool:
        """Return whether the step starts a trace of its own: after a timer or a wait, except for a child run."""
        run = self.run
        if run.trace_context is None or run.attempt or run.deferrals or entry.reason == WakeReason.FIRST:
            return False
        if entry.reason != WakeReason.SIGNAL:
            return True
        return not (isinstance(self.arrived, Signal) and self.arrived.name.startswith(f"{SUBFLOW}:"))

    def run_attempt(
        self, entry: StepEntry, work: Callable[[], Progress], *, atomic: bool, may_wait: bool = False
    ) -> bool:
        """Run ``work`` as an attempt of the step; return whether anything was committed, or is kept to be."""
        committed = attempt(
            self.run,
            work,
            lambda error: self._rescue(entry, error),
            current=self.current,
            atomic=atomic,
            timeout=entry.step.timeout,
            clock=self.clock,
            may_wait=may_wait,
            resume=self.resume,
        )
        if committed and self.run.status == WorkflowStatus.PARKED:
            row_parked.send_robust(WorkflowRun, row=self.run, reason=self.run.error)
        return committed

    def store_context(self) -> bool:
        """Make the Context of a run that an event starts, and commit it, so that it is made once. Return whether this
        worker continues; an exception counts as a failed attempt of the first step."""
        self.begin(self.entry)
        return self.run_attempt(self.entry, self._new_context, atomic=True) and self.run.lease is not None

    def _new_context(self) -> Progress:
        self.context = context = self.make_context()
        assert context is not None
        data = dump_context(context, self._context_label(self.entry))
        return Progress({"data": data, **deadline_change(self.run)})

    def fail_attempt(self, error: Exception) -> None:
        """Commit ``error`` as a failed attempt of the step that the run enters."""
        self.begin(self.entry)
        commit(self.run, self._rescue(self.entry, error))

    def _breaks_chain(self, entry: StepEntry) -> bool:
        """Return whether the run has waited long enough to end its chain of causes, which guards against event storms.

        It has if its wait timed out, if a signal was sent long after its last step, and if all branches of a choice, or
        its timer, took that long. (The commit of a failed attempt that is followed by a long pause ends the chain
        itself.)
        """
        run = self.run
        if entry.reason == WakeReason.TIMEOUT:
            return True
        if run.attempt:
            return False
        if entry.reason == WakeReason.SIGNAL:
            woken_at = self.arrived.sent_at if isinstance(self.arrived, Signal) else None
        elif run.branches is not None and entry.reason in (WakeReason.ALL, WakeReason.TIMER):
            woken_at = self.started
        else:
            return False  # an event has set the depth of its own chain
        steps = run.steps.exclude(outcome__in=[StepExecution.ARRIVED, *ACTIONS])
        last = steps.order_by("-pk").values_list("finished", flat=True).first()
        return woken_at is not None and last is not None and breaks_chain(woken_at - last)

    def _execute(self, entry: StepEntry) -> Progress:
        """Call the step, decide the next state of the run, and return the commit of both with the Context."""
        outcome = self._call_step(entry)
        context = self.context = self._context_left()
        state = self.state(entry)
        current = self.current
        accepted = self.definition.context if context is None else type(context)
        decision = decide(state, Returned(outcome, accepted, current.ending, current.ends_at_once))
        more: dict[str, Any] = {}
        if context is not None:
            if decision.fields:
                merge(context, decision.fields, f"complete() of {self.definition.name}.{entry.step.name}")
            more["data"] = dump_context(context, self._context_label(entry))
        lease_age = time.monotonic() - self.lease_renewed
        if "wake_at" not in decision.changes and lease_age > conf().LEASE.total_seconds() / 2:
            # This worker continues, and the heartbeat may have been blocked (on SQLite by this very transaction).
            more["wake_at"] = state.finished + conf().LEASE
            self.lease_renewed = time.monotonic()
        return self.progress(state, replace(decision, changes={**decision.changes, **more}))

    def _rescue(self, entry: StepEntry, error: Exception) -> Progress:
        """Turn an exception into a retry, or into the end of the run."""
        data, note = self._salvage_context(entry)
        state = self.state(entry)
        return self.progress(state, decide(state, Raised(error, trace_of(error), data, note)))

    def _call_step(self, entry: StepEntry) -> Outcome:
        """Call the step; return its outcome. ``current.ending`` then has the status and the reason with which it has
        ended its own run, if it has.

        A step with ``@wait_for_event`` waits first, unless a ``goto`` has registered that wait already.
        """
        run, step = self.run, entry.step
        context = self.context = self.make_context()
        wake = Wake(entry.reason) if context is None else receive(run, entry.reason, context, self.arrived)
        if entry.waits:
            assert step.wait is not None
            return step.wait
        self.merged = True
        # A new instance for each step: only the Context outlives a step, also within one worker.
        self.instance = self.definition.cls()
        self.instance.context = context
        given = {name: original_error(run) if name == "error" else run for name in step.takes}
        with inside(View(self.instance, wake, run)):
            outcome: Any = awaited(getattr(self.instance, step.name)(**given))
        return Complete() if outcome is None and step.hook else outcome

    def state(self, entry: StepEntry) -> State:
        return State(
            self.run,
            self.definition,
            entry.step,
            entry.reason,
            self.started,
            self.clock(),
            depth=self.depth,
            waits_first=entry.waits,
            took_payload=self.merged,
            is_budget_spent=time.monotonic() >= self.budget_ends or pauses.count() != self.pauses,
            holds_claims=self.current.holds_claims,
            has_context=self.context is not None,
        )

    def progress(self, state: State, decision: Decision) -> Progress:
        """Return the commit of an attempt: the changes of the run, its history, its wait, and its follow-ups."""
        run = self.run
        writes = self._follow_ups(decision)
        inserts = decision.kept_waits
        self.waits = ()
        if decision.wait is not None:
            step = str(decision.changes["current_step"])
            self.waits = waits = registrations(run, step, decision.wait, self.context, state.finished)
            if isinstance(decision.wait, Choice):
                writes = (lambda: _insert(waits), *writes)
            else:
                inserts = waits
        history = new(
            StepExecution,
            run_id=run.pk,
            step=state.step.name,
            visit=run.visit,
            attempt=run.attempt + 1,
            started=state.started,
            finished=state.finished,
            outcome=decision.outcome,
            error=decision.error,
            wake_reason=state.reason.value,
            # An attempt that is repeated records nothing as consumed: the visit has not ended yet.
            wake_ref=None if decision.outcome == DEFERRED else run.wake_ref,
            before=self._before(decision),
        )
        failed = None if decision.failure is None else (run, decision.failure)
        return Progress(decision.changes, history, writes, failed, inserts)

    def _before(self, decision: Decision) -> dict[str, Any] | None:
        """Return what the history keeps of the run before this visit, if this is its first attempt."""
        data, size = (self.new_data, None) if self.run.has_no_context else (self.run.data, self.data_size)
        if isinstance(text := decision.changes.get("data"), str):
            self.data_size = len(text)  # that of the Context before the next visit
        if not self.keeps_before or data is None:
            return None
        return before_visit(self.run, data, size, self.claims)

    def make_context(self) -> BaseModel | None:
        """Return the Context. A new one is made from the run's event, as a later load would return it; a run that has
        failed before it had one has none on its path."""
        if self.context is not None or self.run.ending is not None:
            return self.context
        if self.collects:
            made = self.definition.make_context(None, events=self.events)
        else:
            made = self.definition.make_context(self.event)
        what = f"The Context of {self.run}"
        self.new_data = json.loads(dump_context(made, what))
        return load_context(type(made), self.new_data, what)

    def _context_left(self) -> BaseModel | None:
        """Return the Context after the step, which may have replaced the object."""
        if self.instance is None or self.context is None:
            return self.context
        return replaced(self.context, self.instance.context, f"{self.definition.name} set self.context to")

    def _context_label(self, entry: StepEntry) -> str:
        return f"The Context of {self.definition.name}.{entry.step.name}"

    def _salvage_context(self, entry: StepEntry) -> tuple[str | None, str]:
        """Return the Context as it was when the step raised, or None and the reason why it cannot be kept.

        The step's database writes are rolled back.
        """
        if self.context is None:
            return None, ""
        try:
            self.context = context = self._context_left()
            assert context is not None
            return dump_context(context, self._context_label(entry)), ""
        except Exception as error:
            if is_database_failure(error, connections[alias_of(WorkflowRun)]):
                raise
            return None, f"\nThe changes of the step to its Context are lost: {type(error).__name__}: {error}"

    def reload(self) -> None:
        """Restore the Context from what was stored: a step sees the same one whether or not its worker ran the last
        step."""
        if self.run.has_no_context:
            self.context = None
            return
        self.context = restore(self.definition, self.run.data, self.run.version, str(self.run)).context

    def _follow_ups(self, decision: Decision) -> tuple[Callable[[], None], ...]:
        """Return the writes that commit together with a decision."""
        run = self.run
        if decision.child is not None:
            return (self._start_of(decision.child), *self._releases(decision))
        if isinstance(decision.wait, Choice):
            branches = decision.wait.branches.items()
            starts = [self._start_of(child, name) for name, child in branches if isinstance(child, Subflow)]
            return (*starts, *self._releases(decision))
        found: list[Callable[[], None]] = []
        if decision.ends and run.parent_id is not None:
            found.append(lambda: wake_parent(run, ending_of(run), self.clock()))
        if decision.ends and decision.failure is None and self.definition.cancel_on:  # a failed run may be resumed
            found.append(partial(forget_cancel_on, run))
        if decision.ends and (run.holds_claims or self.current.holds_claims):
            found.append(lambda: release_all(KIND, run.pk))
        return (*found, *self._releases(decision))

    def _releases(self, decision: Decision) -> tuple[Callable[[], None], ...]:
        """Return the write that releases the slot of each limit, unless the run continues to execute."""
        row_slots, changes = self.row_slots, decision.changes
        if row_slots is None or "lease" not in changes:
            return ()
        now = self.clock()
        if changes["wake_at"] is not None and changes["wake_at"] <= now:
            return ()
        has_started = self.run.started_at is not None or "started_at" in changes
        return (lambda: row_slots.release(now, has_started=has_started, has_ended=decision.ends),)

    def _start_of(self, subflow: Subflow, branch: str = "") -> Callable[[], None]:
        """Return the write that starts a child run. Its Context and priority are computed before the commit."""
        run, child = self.run, find_workflow(subflow.workflow)
        made = child.make_context(None, **subflow.arguments)
        channel, priority = subflow_channel(run.pk, run.visit, branch), child.priority_by_hand(made)
        return lambda: start_child(run, child, channel, made, priority, self.clock())


def _insert(waits: tuple[Wait, ...]) -> None:
    Wait.objects.bulk_create(waits)
