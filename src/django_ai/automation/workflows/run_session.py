"""One worker's session with a run: it enters step after step and commits each.

After a ``goto`` the same worker enters the next step, with the Context in memory and one commit for each step, until
its ``DRAIN_BUDGET`` is spent.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db import connections, transaction
from pydantic import BaseModel

from ..conf import conf
from ..db.errors import is_database_failure
from ..db.session import kept_session
from ..db.writer import alias_of
from ..events.claims import release_all
from ..events.models import Event
from ..exceptions import CodeError, ContextError, DecryptionError, PayloadError, UnknownStepError
from ..queues.advance import advance
from ..queues.attempt import Progress, attempt
from ..queues.causation import CurrentRun, Owner, breaks_chain, inside
from ..queues.parking import reason_of
from ..queues.signals import row_parked
from ..state.contexts import as_stored, dump_context, merge, replaced
from ..state.encryption import check_readable
from ..state.versions import restore
from ..values.clock import Clock
from ..values.failures import Raised
from ..values.text import trace_of
from .admission import begins_now, cancel_if_claimed
from .child_runs import ending_of, start_child, wake_parent
from .current import KIND, View, Wake, WakeReason
from .definitions import StepDefinition, WorkflowDefinition, find_workflow
from .models import Signal, StepExecution, Wait, WorkflowRun, WorkflowStatus
from .outcomes import Outcome
from .transitions import Decision, Returned, State, decide
from .wait_keys import EVENT_CHANNEL, SUBFLOW, subflow_channel
from .waits import registration, settle

logger = logging.getLogger("django_ai.automation")


@dataclass(frozen=True, slots=True)
class StepEntry:
    """The step that a run enters now, and why. ``waits``: its ``@wait_for_event`` waits first."""

    step: StepDefinition
    reason: WakeReason
    waits: bool = False


def next_entry(run: WorkflowRun, definition: WorkflowDefinition, waits: Sequence[Wait] = ()) -> StepEntry:
    """Return the step that the run enters next. ``waits``: the waits that have timed out, if any."""
    name, reason = run.current_step or definition.start, WakeReason(run.wake_reason)
    if run.has_no_context and name not in definition.steps:
        name = definition.start  # it has not started, so its first step may have been renamed
    if waits:
        name, reason = waits[0].on_timeout, WakeReason.TIMEOUT
    elif reason in (WakeReason.SIGNAL, WakeReason.EVENT, WakeReason.TIMEOUT):
        name = run.wake_step or name
    try:
        step = definition.step(name)
    except UnknownStepError as error:
        raise UnknownStepError(
            f"{run}: {error} Restore the step and the run resumes automatically, or resume it at another step: "
            f"manage.py automation_resume workflow --pk {run.pk} --step NAME."
        ) from None
    arrived = name == run.current_step and reason in (WakeReason.SIGNAL, WakeReason.EVENT, WakeReason.TIMEOUT)
    return StepEntry(step, reason, waits=step.wait is not None and not arrived)


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
        self.lease_renewed = time.monotonic()
        self.event = run.event if run.has_no_context else None
        self.context: BaseModel | None = None
        self.migrated: str | None = None
        if self.event is not None:
            self.event.check_known(declared=run.planned)
        else:
            stored = restore(definition, run.data, run.version, f"{run} ({entry.step.name})")
            self.context = stored.context
            self.migrated = _dump_migrated(run, stored.context) if stored.is_migrated else None

    def admit(self) -> bool:
        """Return whether the run continues now. A planned run may be too early or no longer wanted, and another run may
        have claimed its event."""
        run, definition, clock = self.run, self.definition, self.clock
        if run.planned and run.started_at is None and not begins_now(run, definition, clock):
            return False
        if not run.has_no_context or definition.ignores_claims:
            return True
        return not cancel_if_claimed(run, clock)

    def store_version(self) -> None:
        """Store the version of the current code, with the Context that ``migrate_context`` returned."""
        run, definition = self.run, self.definition
        if self.migrated is not None:
            advance(run, {"version": definition.version, "data": self.migrated, "losses": run.losses})
        elif run.version != definition.version:
            advance(run, {"version": definition.version, "losses": run.losses})

    def execute(self) -> None:
        """Enter step after step, until the run is released or the worker's ``DRAIN_BUDGET`` is spent."""
        self.budget_ends = time.monotonic() + conf().DRAIN_BUDGET.total_seconds()
        while self.enter(self.entry):
            try:
                self.entry = next_entry(self.run, self.definition)
                self.reload()
            except CodeError as error:
                self.run.park(reason_of(self.run, error), self.clock, awaiting_deploy=True)
                return

    def enter(self, entry: StepEntry) -> bool:
        """Run one attempt of a step and commit it; return whether this worker continues the run at once."""
        run, step = self.run, entry.step
        self.started = self.clock()
        self.instance: Any = None
        self.waits: tuple[Wait, ...] = ()
        self.merged = False
        self.depth = 0 if run.depth and self._breaks_chain(entry) else run.depth
        self.current = CurrentRun(
            f"workflow:{run.pk}:{step.name}",
            self.depth + 1,
            run.idempotency_key,
            Owner(KIND, run.pk, self.definition.namespace),
        )
        committed = attempt(
            run,
            lambda: self._execute(entry),
            lambda error: self._rescue(entry, error),
            current=self.current,
            atomic=step.atomic,
            timeout=step.timeout,
            clock=self.clock,
        )
        if not committed:
            return False
        if run.status == WorkflowStatus.SUSPENDED:
            settle(run, self.clock, list(self.waits))
        elif run.status == WorkflowStatus.PARKED:
            row_parked.send_robust(WorkflowRun, row=run, reason=run.error)
        return run.lease is not None

    def _breaks_chain(self, entry: StepEntry) -> bool:
        """Return whether the run has waited long enough to end its chain of causes, which guards against event storms.

        It has if its wait timed out, if a signal was sent long after its last step, or after a long backoff.
        """
        run = self.run
        if entry.reason == WakeReason.TIMEOUT:
            return True
        if run.attempt:
            return breaks_chain(self.definition.retry_of(entry.step).delay(run.attempt))
        if entry.reason != WakeReason.SIGNAL:
            return False  # an event has set the depth of its own chain
        sent_at = Signal.objects.filter(pk=run.wake_ref or 0).values_list("sent_at", flat=True).first()
        last = run.steps.order_by("-pk").values_list("finished", flat=True).first()
        return sent_at is not None and last is not None and breaks_chain(sent_at - last)

    def _execute(self, entry: StepEntry) -> Progress:
        """Call the step, decide the next state of the run, and return the commit of both with the Context."""
        outcome, ending = self._call_step(entry)
        context = self.context = self._context_left()
        state = self._state(entry)
        decision = decide(state, Returned(outcome, type(context), ending))
        if decision.fields:
            merge(context, decision.fields, f"complete() of {self.definition.name}.{entry.step.name}")
        more: dict[str, Any] = {"data": dump_context(context, self._context_label(entry))}
        lease_age = time.monotonic() - self.lease_renewed
        if "wake_at" not in decision.changes and lease_age > conf().LEASE.total_seconds() / 2:
            # This worker continues, and the heartbeat may have been blocked (on SQLite by this very transaction).
            more["wake_at"] = state.finished + conf().LEASE
            self.lease_renewed = time.monotonic()
        return self._progress(state, replace(decision, changes={**decision.changes, **more}))

    def _rescue(self, entry: StepEntry, error: Exception) -> Progress:
        """Turn an exception into a retry, or into the end of the run."""
        data, note = self._salvage_context(entry)
        state = self._state(entry)
        return self._progress(state, decide(state, Raised(error, trace_of(error), data, note)))

    def _call_step(self, entry: StepEntry) -> tuple[Outcome, tuple[WorkflowStatus, str] | None]:
        """Call the step; return its outcome, and the status and reason with which it has ended its own run, if it has.

        A step with ``@wait_for_event`` waits first, unless a ``goto`` has registered that wait already.
        """
        context = self.context = self._make_context()
        wake = self._wake(entry, context)
        if entry.waits:
            assert entry.step.wait is not None
            return entry.step.wait, None
        self.merged = True
        # A new instance for each step: only the Context outlives a step, also within one worker.
        self.instance = self.definition.cls()
        self.instance.context = context
        with inside(View(self.instance, wake, self.run)) as current:
            return getattr(self.instance, entry.step.name)(), current.ending

    def _state(self, entry: StepEntry) -> State:
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
            is_budget_spent=time.monotonic() >= self.budget_ends,
            holds_claims=self.current.holds_claims,
        )

    def _progress(self, state: State, decision: Decision) -> Progress:
        """Return the commit of an attempt: the changes of the run, its history, its wait, and its follow-ups."""
        run = self.run
        if decision.wait is not None:
            step = str(decision.changes["current_step"])
            self.waits = (registration(run, step, decision.wait, self.context, state.finished),)
        else:
            self.waits = ()
        history = StepExecution(
            run_id=run.pk,
            step=state.step.name,
            visit=run.visit,
            attempt=run.attempt + 1,
            started=state.started,
            finished=state.finished,
            outcome=decision.outcome,
            error=decision.error,
            wake_reason=state.reason.value,
            wake_ref=run.wake_ref,
        )
        failed = None if decision.failure is None else (run, decision.failure)
        return Progress(decision.changes, history, self._follow_ups(decision), failed, self.waits)

    def _make_context(self) -> BaseModel:
        """Return the Context. A new one is made from the run's event, as a later load would return it."""
        if self.context is not None:
            return self.context
        made = self.definition.make_context(self.event)
        return as_stored(made, f"The Context of {self.run}")

    def _context_left(self) -> BaseModel:
        """Return the Context after the step, which may have replaced the object."""
        assert self.context is not None
        if self.instance is None:
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
            self.context = self._context_left()
            return dump_context(self.context, self._context_label(entry)), ""
        except Exception as error:
            if is_database_failure(error, connections[alias_of(WorkflowRun)]):
                raise
            self._reset_context()
            return None, f"\nThe changes of the step to its Context are lost: {type(error).__name__}: {error}"

    def _reset_context(self) -> None:
        """Restore the stored Context for ``@on_fail``, if there is one."""
        self.instance = None
        try:
            self.context = None
            if not self.run.has_no_context:
                self.reload()
        except ContextError:
            logger.exception("The stored Context of %s cannot be loaded.", self.run)

    def reload(self) -> None:
        """Restore the Context from what was stored: a step sees the same one whether or not its worker ran the last
        step."""
        self.context = restore(self.definition, self.run.data, self.run.version, str(self.run)).context

    def _wake(self, entry: StepEntry, context: BaseModel) -> Wake:
        """Return why the step is entered. Merge the payload into the Context, unless an earlier attempt has committed
        that: then ``wake_step`` is empty."""
        run = self.run
        payload: Mapping[str, Any] = {}
        channel = ""
        if run.wake_ref is None:
            return Wake(entry.reason)
        if entry.reason == WakeReason.SIGNAL:
            signal = Signal.objects.filter(pk=run.wake_ref or 0).first()
            if signal is not None:
                _check_payload(signal, run)
                channel = signal.name
            payload = (signal.payload if signal else None) or {}
        elif entry.reason == WakeReason.EVENT:
            event = Event.objects.filter(pk=run.wake_ref).first()
            payload = (event.payload if event else None) or {}
            channel = f"{EVENT_CHANNEL}{event.event_name}" if event else ""
        if channel.startswith(f"{SUBFLOW}:"):
            return Wake(entry.reason, payload)  # the end of a child is not merged into the Context
        fields = {name: value for name, value in payload.items() if name in type(context).model_fields}
        if run.entity_id and fields.get("entity_id", run.entity_id) != run.entity_id:
            # The event of another entity woke the run; it must not replace the entity of the run.
            del fields["entity_id"]
        if fields and run.wake_step:
            try:
                merge(context, fields, f"The payload of {channel!r} that woke {run}")
            except ContextError as error:
                raise PayloadError(str(error)) from error
        return Wake(entry.reason, payload)

    def _follow_ups(self, decision: Decision) -> tuple[Callable[[], None], ...]:
        """Return the writes that commit together with a decision."""
        run = self.run
        if decision.child is not None:
            child = find_workflow(decision.child.workflow)
            made = child.make_context(None, **decision.child.arguments)
            channel = subflow_channel(run.pk, run.visit)
            return (lambda: start_child(run, child, channel, made, self.clock()),)
        found: list[Callable[[], None]] = []
        error = decision.failure
        if error is not None and self.definition.on_fail is not None:
            found.append(lambda: self._call_on_fail(error))
        if decision.ends and run.parent_id is not None:
            found.append(lambda: wake_parent(run, ending_of(run), self.clock()))
        if decision.ends and (run.holds_claims or self.current.holds_claims):
            found.append(lambda: release_all(KIND, run.pk))
        return tuple(found)

    def _call_on_fail(self, error: str) -> None:
        """Call ``@on_fail`` and store its changes to the Context. If it raises, the run has failed nevertheless."""
        run, context = self.run, self.context
        try:
            with transaction.atomic(using=alias_of(WorkflowRun)):
                instance = self.definition.cls()
                instance.context = context
                with inside(View(instance, Wake(), run)), kept_session(connections[alias_of(WorkflowRun)]):
                    getattr(instance, str(self.definition.on_fail))(error)
                if context is None:
                    return
                replacement = replaced(context, instance.context, f"@on_fail of {run} set self.context to")
                data = json.loads(dump_context(replacement, f"The Context of {run} after its @on_fail"))
                if data != run.data:
                    WorkflowRun.objects.filter(pk=run.pk, seq=run.seq).update(data=data)
                    run.data = data
        except Exception as raised:
            if is_database_failure(raised, connections[alias_of(WorkflowRun)]):
                raise
            logger.exception("@on_fail of %s raised; the run has failed nevertheless.", self.run)


def _check_payload(signal: Signal, run: WorkflowRun) -> None:
    """Raise ``PayloadError``, which parks the run, for a payload that no key decrypts."""
    try:
        check_readable(signal.payload, f"The payload of {signal} that woke {run}")
    except DecryptionError as error:
        raise PayloadError(str(error)) from error
