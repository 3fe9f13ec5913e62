"""A worker's path for one run: find its class, load its Context, enter the step, commit what came of it, go on.

After a ``goto`` the same worker goes on with the next step, with the Context in memory and one commit a step, until its
share of time is used. What cannot go on (a class, step or version that is gone, a Context that no longer validates)
parks this run and nothing else.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connections, transaction
from pydantic import BaseModel

from ..conf import conf
from ..events.claims import claim_against, release_all
from ..events.models import Event
from ..events.occurrence import RETRY
from ..exceptions import (
    AutomationError,
    CodeError,
    ContextError,
    PayloadError,
    SealedError,
    UnknownStepError,
)
from ..queues.attempt import Progress, attempt, trace_of
from ..queues.cause import CurrentRun, Owner, inside, rested
from ..queues.clock import Clock, shift
from ..queues.contexts import as_stored, dump_context, merge, replaced
from ..queues.database import is_database_failure, told_apart
from ..queues.heartbeat import is_working
from ..queues.lease import advance, alias_of
from ..queues.parking import because, parked, take_back
from ..queues.positions import bound_at
from ..queues.sealing import check_readable
from ..queues.session import kept_session
from ..queues.signals import row_parked
from ..queues.versions import Restored, restore
from .context import KIND, View, Wake, WakeReason
from .definitions import StepDefinition, WorkflowDefinition, find_workflow, workflow_of
from .ending import wake_parent, withdrawn
from .models import EVENT_CHANNEL, FINISHED, SUBFLOW, Signal, StepExecution, Wait, WorkflowRun, WorkflowStatus
from .outcomes import Outcome, Subflow
from .start import insert_run
from .transitions import Moment, ended, name_of, retried, subflow_channel, transition
from .waits import is_there, look_again, settle, time_out, waits_of

logger = logging.getLogger("django_ai.automation")


SLACK = timedelta(seconds=5)
"""A run that is planned for a date that was past already counts from its creation, which the saving machine's clock
has written and the database's has not: so much may they differ."""


@dataclass(slots=True)
class Entry:
    """Which step a run enters now, and why. ``waits``: what its ``@wait_for_event`` asks for has still to come."""

    step: StepDefinition
    reason: WakeReason
    waits: bool = False


def perform_run(run: WorkflowRun, clock: Clock) -> None:
    """Do what the run is due for."""
    if run.is_finished:
        advance(run, {"wake_at": None, "lease": None})
        return
    was_parked = run.status == WorkflowStatus.PARKED
    if was_parked:
        run.status = run.unparked
    waits = waits_of(run) if run.status == WorkflowStatus.SUSPENDED else []
    rests = bool(waits) and (all(not wait.is_over(clock()) for wait in waits) or is_there(run, waits))
    if rests and not was_parked:
        look_again(run, clock, waits)
        return
    try:
        definition = workflow_of(run)
        entry = _entry(run, definition, waits)
        stored = _stored(run, definition, entry)
        moved = None
        if stored is not None and stored.moved:
            moved = _moved(run, stored.context)
    except CodeError as error:
        run.park(because(run, error), clock, for_code=True)
        return
    if was_parked:
        take_back(run, run.status)
    if rests:
        look_again(run, clock, waits)
        return
    if waits:
        time_out(run, waits)
    if run.planned and run.started_at is None and not _still_planned(run, definition, clock):
        return
    if run.has_no_context and not definition.ignores_claims and _is_claimed(run, clock):
        return
    if moved is not None:
        advance(run, {"version": definition.version, "data": moved, "losses": run.losses})
    elif run.version != definition.version:
        advance(run, {"version": definition.version, "losses": run.losses})
    _go(run, definition, entry, stored.context if stored else None, clock)


def _stored(run: WorkflowRun, definition: WorkflowDefinition, entry: Entry) -> Restored | None:
    """Return the run's Context, or None if it is still to be made of its event. Raises ``CodeError``."""
    if not run.has_no_context:
        return restore(definition, run.data, run.version, f"{run} ({entry.step.name})")
    assert run.event is not None
    run.event.check_known(declared=run.planned)
    return None


def _moved(run: WorkflowRun, context: BaseModel) -> str:
    """Return a migrated Context as it is stored. Raises ``ContextError``, which parks the run, where it cannot be."""
    try:
        return dump_context(context, f"The Context of {run}")
    except Exception as error:
        if is_database_failure(error, connections[alias_of(WorkflowRun)]):
            raise
        raise ContextError(f"{run}: migrate_context made what cannot be stored.\n{trace_of(error)}") from error


def _entry(run: WorkflowRun, definition: WorkflowDefinition, waits: Sequence[Wait] = ()) -> Entry:
    name, reason = run.current_step or definition.start, WakeReason(run.wake_reason)
    if run.has_no_context and name not in definition.steps:
        name = definition.start  # it has not begun, so the first step may go by another name by now
    if waits:
        name, reason = waits[0].on_timeout, WakeReason.TIMEOUT
    elif reason in (WakeReason.SIGNAL, WakeReason.EVENT, WakeReason.TIMEOUT):
        name = run.wake_step or name
    try:
        step = definition.step(name)
    except UnknownStepError as error:
        raise UnknownStepError(
            f"{run}: {error} Bring the step back, and this goes on by itself; or let the run go on at another one: "
            f"manage.py automation_resume workflow --pk {run.pk} --step NAME."
        ) from None
    came = name == run.current_step and reason in (WakeReason.SIGNAL, WakeReason.EVENT, WakeReason.TIMEOUT)
    return Entry(step, reason, waits=step.wait is not None and not came)


def _still_planned(run: WorkflowRun, definition: WorkflowDefinition, clock: Clock) -> bool:
    """Say whether a planned run begins now. Its event may have changed behind Django's back."""
    event = run.event
    assert event is not None
    connection = connections[alias_of(WorkflowRun)]
    with told_apart(connection) as is_ours:
        try:
            occurred = event.occurred_at is not None
            with kept_session(connection, is_ours=is_working()):
                valid = event.has_date if occurred and not definition.recheck else event.is_valid
                at = event.current_date() if valid else event.at
        except Exception as error:
            if is_ours(error):
                raise
            _ask_again(run, event, error, clock)
            return False
    run.attempt = 0  # those of its condition are not its first step's
    if not valid:
        if occurred and event.has_date:
            reason = f"Skipped: recheck=True, and the condition of {event} was not true when this was to begin."
            advance(run, ended(WorkflowStatus.CANCELLED, reason, clock()))
        else:
            _withdraw(run, event, clock())
        return False
    due = None if at is None else shift(at, definition.offset)
    if due is not None and due > clock():
        advance(run, {"attempt": 0, "error": "", "wake_at": due, "lease": None})
        return False
    # It begins at its date, however late this worker is: what has come since then is heard.
    begins = run.created_at - SLACK
    run.position = bound_at(begins if due is None else max(due, begins), clock())
    return True


def _ask_again(run: WorkflowRun, event: Event, error: Exception, clock: Clock) -> None:
    """Look at a planned run again after a backoff, as at an event whose condition raises, or park it."""
    text = f"The condition of {event} raised:\n{trace_of(error)}"
    delay = None if isinstance(error, AutomationError) else RETRY.delay(run.attempt + 1)
    if delay is None:
        run.park(text, clock)
    else:
        changes = {"attempt": run.attempt + 1, "error": text, "wake_at": clock() + delay, "lease": None}
        advance(run, changes)


def _is_claimed(run: WorkflowRun, clock: Clock) -> bool:
    """End a run whose event somebody else keeps to himself; say whether it was so."""
    event = run.event
    assert event is not None
    claim = claim_against(event, Owner(KIND, run.pk), clock())
    if claim is None:
        return False
    advance(run, ended(WorkflowStatus.CANCELLED, f"Skipped: {claim}.", clock()))
    return True


def _withdraw(run: WorkflowRun, event: Event, now: datetime) -> None:
    """Take back a planned run whose condition is false; when it turns true again, the next save plans it anew."""
    reason = "the condition of its event is not true any more"
    if event.entity is None or not event.has_date:
        reason = "its entity is gone" if event.entity is None else "its event has no date any more"
    with transaction.atomic(using=alias_of(WorkflowRun)):
        advance(run, {**withdrawn(reason, now), "lease": None})
        Event.objects.filter(pk=event.pk).update(armed=False)


def _go(
    run: WorkflowRun, definition: WorkflowDefinition, entry: Entry, context: BaseModel | None, clock: Clock
) -> None:
    """Enter one step after the other, until the run rests or the share of time is used."""
    until = time.monotonic() + conf().DRAIN_BUDGET.total_seconds()
    walk = Walk(run, definition, context, clock, until)
    while walk.enter(entry):
        try:
            entry = _entry(run, definition)
            walk.reload()
        except CodeError as error:
            run.park(because(run, error), clock, for_code=True)
            return


class Walk:
    """One worker's way through a run: the Context in memory, from step to step."""

    def __init__(
        self, run: WorkflowRun, definition: WorkflowDefinition, context: BaseModel | None, clock: Clock, until: float
    ) -> None:
        self.run = run
        self.definition = definition
        self.context = context
        self.clock = clock
        self.until = until
        self.started = clock()
        self.leased = time.monotonic()
        self.event = run.event if run.has_no_context else None
        self.instance: Any = None
        self.depth = run.depth

    def enter(self, entry: Entry) -> bool:
        """Run one try of a step, and commit it; say whether the run goes on at once in this worker."""
        run, step = self.run, entry.step
        self.started = self.clock()
        self.waits: tuple[Wait, ...] = ()
        self.merged = False
        self.depth = 0 if run.depth and self._has_rested(entry) else run.depth
        self.current = CurrentRun(
            f"workflow:{run.pk}:{step.name}",
            self.depth + 1,
            run.idempotency_key,
            Owner(KIND, run.pk, self.definition.namespace),
        )
        committed = attempt(
            run,
            lambda: self._work(entry),
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

    def _has_rested(self, entry: Entry) -> bool:
        """Return whether so much time has passed since the run last did something that what it does now is no part of a
        storm: it waited in vain, or for long until a signal was sent, or a failed attempt was a while ago."""
        run = self.run
        if entry.reason == WakeReason.TIMEOUT:
            return True
        if run.attempt:
            return rested(self.definition.retry_of(entry.step).delay(run.attempt))
        if entry.reason != WakeReason.SIGNAL:
            return False  # an event brings the depth of its own chain
        sent_at = Signal.objects.filter(pk=run.wake_ref or 0).values_list("sent_at", flat=True).first()
        last = run.steps.order_by("-pk").values_list("finished", flat=True).first()
        return sent_at is not None and last is not None and rested(sent_at - last)

    def _work(self, entry: Entry) -> Progress:
        run, step, definition = self.run, entry.step, self.definition
        if entry.waits:
            return self._wait_first(entry)
        context = self.context = self._made()
        wake = self._wake(entry, context)
        self.merged = True
        # A new one for each step: what is to outlive a step is in the Context, and not only while one worker has it.
        self.instance = definition.cls()
        self.instance.context = context
        with inside(View(self.instance, wake, run)) as current:
            outcome: Outcome = getattr(self.instance, step.name)()
        context = self.context = self._kept()
        moment = Moment(self.started, self.clock())
        changes = self._common(entry)
        if current.ending is not None:
            changes |= ended(*current.ending, moment.finished)
        else:
            share_used = time.monotonic() >= self.until
            changes |= self._transition(step, outcome, context, moment, yielding=share_used)
        changes["visit"] = run.visit + 1
        changes["data"] = dump_context(context, f"The Context of {definition.name}.{step.name}")
        if "wake_at" not in changes and time.monotonic() - self.leased > conf().LEASE.total_seconds() / 2:
            # Going on in this worker, and the heartbeat may have been kept out (SQLite: by this very transaction).
            changes["wake_at"] = moment.finished + conf().LEASE
            self.leased = time.monotonic()
        if "error" not in changes and run.error:
            changes["error"] = ""
        together = self._together(outcome, changes, context)
        record = self._record(entry, name_of(outcome), moment, changes.get("error", ""))
        failed = (run, str(changes["error"])) if changes["status"] == WorkflowStatus.FAILED else None
        return Progress(changes, record, together, failed, self.waits)

    def _made(self) -> BaseModel:
        """Return the Context, made of the run's event if it is not there yet: as a later load would give it."""
        if self.context is not None:
            return self.context
        made = self.definition.make_context(self.event)
        return as_stored(made, f"The Context of {self.run}")

    def _kept(self) -> BaseModel:
        """Return the Context that the step has left, which may be another object than it was given."""
        assert self.context is not None
        if self.instance is None:
            return self.context
        return replaced(self.context, self.instance.context, f"{self.definition.name} set self.context to")

    def _forget(self) -> None:
        """Go back to the Context that is stored, for ``@on_fail``; to none where there is none yet."""
        self.instance = None
        try:
            self.context = None
            if not self.run.has_no_context:
                self.reload()
        except ContextError:
            logger.exception("The stored Context of %s does not load.", self.run)

    def reload(self) -> None:
        """Take the Context as it was stored: a step sees the same whether its worker had the one before it or not."""
        self.context = restore(self.definition, self.run.data, self.run.version, str(self.run)).context

    def _transition(
        self, step: StepDefinition, outcome: Outcome, context: BaseModel, moment: Moment, *, yielding: bool = False
    ) -> dict[str, Any]:
        found = transition(self.run, self.definition, step, outcome, context, moment, yielding=yielding)
        self.waits = found.waits
        return found.changes

    def _wait_first(self, entry: Entry) -> Progress:
        """A step below ``@wait_for_event`` that was not reached by a goto: register its wait, and enter it later."""
        run, step, definition = self.run, entry.step, self.definition
        assert step.wait is not None
        self.context = self._made()
        self._wake(entry, self.context)
        moment = Moment(self.started, self.clock())
        changes = self._common(entry)
        changes |= self._transition(step, step.wait, self.context, moment)
        changes["visit"] = run.visit + 1
        changes["data"] = dump_context(self.context, f"The Context of {definition.name}.{step.name}")
        return Progress(changes, self._record(entry, "wait", moment, ""), inserts=self.waits)

    def _wake(self, entry: Entry, context: BaseModel) -> Wake:
        """Return why the step is entered. The payload is merged into the Context until that has been committed, which
        the run's ``wake_step`` says."""
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
            return Wake(entry.reason, payload)  # the end of a child is told, not merged
        fields = {name: value for name, value in payload.items() if name in type(context).model_fields}
        if run.entity_id and fields.get("entity_id", run.entity_id) != run.entity_id:
            # Another entity's event woke the run, which does not make that its own.
            del fields["entity_id"]
        if fields and run.wake_step:
            try:
                merge(context, fields, f"The payload of {channel!r} that woke {run}")
            except ContextError as error:
                raise PayloadError(str(error)) from error
        return Wake(entry.reason, payload)

    def _common(self, entry: Entry) -> dict[str, Any]:
        """Return the changes that every commit of a try has."""
        changes: dict[str, Any] = {"current_step": entry.step.name}
        if self.depth != self.run.depth:
            changes["depth"] = self.depth
        if self.run.started_at is None:
            changes["started_at"] = self.started
            self.run.started_at = self.started
            if self.run.planned:
                changes["position"] = self.run.position
        if self.run.wake_step:
            changes["wake_step"] = ""
        if self.current.holds_claims and not self.run.holds_claims:
            changes["holds_claims"] = True
        return changes

    def _together(self, outcome: Outcome, changes: Mapping[str, Any], context: BaseModel) -> Any:
        run = self.run
        if isinstance(outcome, Subflow) and changes["status"] not in FINISHED:
            child = find_workflow(outcome.workflow)
            made = child.make_context(None, **outcome.arguments)
            channel = subflow_channel(run)
            return (lambda: _start_child(run, child, channel, made, self.clock()),)
        if changes["status"] == WorkflowStatus.FAILED:
            return self._ending(changes["error"], context)
        if changes["status"] in FINISHED:
            return self._ending(None, context)
        return ()

    def _ending(self, error: str | None, context: BaseModel | None) -> tuple[Any, ...]:
        run, found = self.run, []
        if error is not None and self.definition.on_fail is not None:
            found.append(lambda: self._call_on_fail(error, context))
        if run.parent_id is not None:
            found.append(lambda: wake_parent(run, ending_of(run), self.clock()))
        if run.holds_claims or self.current.holds_claims:
            found.append(lambda: release_all(KIND, run.pk))
        return tuple(found)

    def _call_on_fail(self, error: str, context: BaseModel | None) -> None:
        run = self.run
        try:
            with transaction.atomic(using=alias_of(WorkflowRun)):
                instance = self.definition.cls()
                instance.context = context
                with inside(View(instance, Wake(), run)), kept_session(connections[alias_of(WorkflowRun)]):
                    getattr(instance, str(self.definition.on_fail))(error)
                if context is None:
                    return
                left = replaced(context, instance.context, f"@on_fail of {run} set self.context to")
                data = json.loads(dump_context(left, f"The Context of {run} after its @on_fail"))
                if data != run.data:
                    WorkflowRun.objects.filter(pk=run.pk, seq=run.seq).update(data=data)
                    run.data = data
        except Exception as raised:
            if is_database_failure(raised, connections[alias_of(WorkflowRun)]):
                raise
            logger.exception("@on_fail of %s raised; the run has failed all the same.", self.run)

    def _rescue(self, entry: Entry, error: Exception) -> Progress:
        """Turn an exception into another try, or into the end of the run."""
        run, step, definition = self.run, entry.step, self.definition
        now, text = self.clock(), trace_of(error)
        if isinstance(error, AutomationError) and not error.may_pass:
            # Wrong use of this package is wrong again at the next try.
            text = f"{type(error).__name__}: {error}\n\n{text}"
            changes: Mapping[str, Any] | None = None
        else:
            changes = retried(definition, step, run.attempt + 1, text, now)
        common: dict[str, Any] = {} if entry.waits else {"current_step": step.name, "wake_reason": entry.reason.value}
        if self.current.holds_claims:
            common["holds_claims"] = True  # held outside a transaction (atomic=False), it outlives the failure
        self.waits = ()
        if self.context is not None:
            # The Context keeps what the step changed before it raised; its database writes are rolled back.
            try:
                self.context = self._kept()
                common["data"] = dump_context(self.context, f"The Context of {definition.name}.{step.name}")
            except Exception as unstorable:
                if is_database_failure(unstorable, connections[alias_of(WorkflowRun)]):
                    raise
                text += f"\nWhat the step had changed in its Context is lost: {type(unstorable).__name__}: {unstorable}"
                self._forget()
            else:
                # A run has begun once it has stored a Context; without one its next try makes it anew.
                common["started_at"] = run.started_at = run.started_at or self.started
                if run.planned:
                    common["position"] = run.position
                if run.wake_step and not entry.waits and self.merged:
                    common["wake_step"] = ""  # the payload of what woke the run is merged and stored
        record = self._record(entry, "error", Moment(self.started, now), text)
        if isinstance(error, PayloadError):
            # Somebody else's mistake: a person can mend the Context or drop the payload, and resume.
            return Progress(common | parked(run, text, now, for_code=False), record)
        if changes is not None:
            return Progress(common | {**changes, "error": text}, record)
        final = common | ended(WorkflowStatus.FAILED, text, now) | {"attempt": run.attempt + 1}
        return Progress(final, record, self._ending(text, self.context), failed=(run, text))

    def _record(self, entry: Entry, outcome: str, moment: Moment, error: str) -> StepExecution:
        run = self.run
        return StepExecution(
            run_id=run.pk,
            step=entry.step.name,
            visit=run.visit,
            attempt=run.attempt + 1,
            started=moment.started,
            finished=moment.finished,
            outcome=outcome,
            error=error,
            wake_reason=entry.reason.value,
            wake_ref=run.wake_ref,
        )


def _check_payload(signal: Signal, run: WorkflowRun) -> None:
    """Raise ``PayloadError``, which parks the run, for a payload that no key opens."""
    try:
        check_readable(signal.payload, f"The payload of {signal} that woke {run}")
    except SealedError as error:
        raise PayloadError(str(error)) from error


def ending_of(run: WorkflowRun) -> dict[str, Any]:
    """Return what a parent is told of its child's end."""
    return {"status": str(run.status), "data": run.data, "error": run.error}


def _start_child(
    parent: WorkflowRun, child: WorkflowDefinition, channel: str, context: BaseModel, now: datetime
) -> None:
    insert_run(
        child,
        context,
        now,
        parent=parent,
        parent_channel=channel,
        depth=parent.depth + 1,
        caused_by=f"workflow:{parent.pk}",
        entity_type=parent.entity_type,
        entity_id=parent.entity_id,
    )
