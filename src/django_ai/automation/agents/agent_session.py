"""One worker's session with an agent: it runs handler after handler, and commits each with the agent's Context.

The worker keeps the agent's lease from execution to execution, so handlers of one agent never overlap. The commit of
the last execution that is due releases the lease. After that commit the worker looks into the mailbox again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from django.db import connections
from pydantic import BaseModel

from ..conf import conf
from ..db.errors import is_database_failure
from ..db.writer import alias_of
from ..events.claim_lookup import claim_against
from ..events.entities import awaited_about, read_for_async
from ..events.limit_keys import context_key
from ..events.timing import depth_after, trace_after
from ..exceptions import AutomationError, CodeError, ContextError, LeaseLostError, UnknownHandlerError
from ..queues import pauses
from ..queues.advance import advance
from ..queues.async_code import awaited
from ..queues.attempt import DATABASE_RETRY_DELAY, Progress, attempt, commit
from ..queues.causation import CurrentRun, Owner, breaks_chain, inside
from ..queues.lease import release
from ..queues.limits.acquire import Applicant, RowSlots
from ..queues.limits.release import left, release_from_outside
from ..queues.parking import reason_of, unpark
from ..queues.signals import row_parked
from ..state.contexts import dump_context, replaced
from ..state.versions import restore
from ..values.clock import Clock
from ..values.failures import Raised
from ..values.text import trace_of
from .catch_up import catch_up
from .definitions import AgentDefinition, HandlerDefinition
from .ending import KIND, clear_up
from .handler_limits import limiter_name
from .mailbox import pending_in
from .models import HANDLER, AgentRun, HandlerExecution, HandlerStatus, touch
from .routing import Keys, fingerprint, keys_of, replace_routes, singleton_key
from .transitions import AwaitsSlot, Decision, MissingCode, Returned, Skipped, State, decide


class AgentSession:
    """One worker's time with an agent: the Context in memory, from execution to execution."""

    context: BaseModel
    routes: tuple[Keys, str | None]

    def __init__(self, run: AgentRun, definition: AgentDefinition, clock: Clock, *, was_parked: bool) -> None:
        self.run = run
        self.definition = definition
        self.clock = clock
        self.was_parked = was_parked
        self.owner = Owner(KIND, run.pk, definition.namespace)
        self.current: CurrentRun | None = None
        self.budget_ends = time.monotonic() + conf().DRAIN_BUDGET.total_seconds()
        self.lease_renewed = time.monotonic()
        self.pauses = pauses.count()
        self.instance: Any = None
        self.row_slots: RowSlots | None = None
        self.lost = False

    def load(self) -> None:
        """Restore the Context, and unpark a parked agent. If an older version has written the Context, store the
        migrated one with its routes.

        Raises ``ContextError`` if the stored data is no valid Context, ``SingletonTakenError`` if another agent holds
        its new singleton key, and ``NotStorableError``.
        """
        run, before = self.run, self.run.singleton or None
        stored = restore(self.definition, run.data, run.version, str(run))
        self.context = stored.context
        self.routes = keys, singleton = self._current_routes()
        if self.was_parked and not stored.is_migrated:
            unpark(run, run.status)
        if not stored.is_migrated:
            return
        changes = {
            "status": run.status,
            "error": "",
            "parked_at": None,
            "version": self.definition.version,
            "data": dump_context(self.context, f"The Context of {run}"),
            "singleton": singleton or "",
            "routing": fingerprint(self.definition),
        }
        commit(run, Progress(changes, None, (lambda: replace_routes(run, keys, before, singleton),)))

    def _context_left(self) -> BaseModel:
        """Return the Context after the handler, which may have replaced the object."""
        if self.instance is None:
            return self.context
        return replaced(self.context, self.instance.context, f"{self.definition.name} set self.context to")

    def _restored_context(self) -> BaseModel:
        return restore(self.definition, self.run.data, self.run.version, str(self.run)).context

    def _current_routes(self) -> tuple[Keys, str | None]:
        return (
            keys_of(self.definition, self.run, self.context),
            singleton_key(self.definition, self.run, self.context),
        )

    def execute(self) -> None:
        """Run the due executions of the mailbox, and release the agent until its next execution is due."""
        run = self.run
        if run.started_at is None:
            catch_up(run, self.definition, self.context, self.clock())
            advance(run, {"started_at": self.clock()})
        while run.lease is not None:
            now = self.clock()
            pending = pending_in(run, conf().BATCH + 1)
            due = [each for each in pending[: conf().BATCH] if each.due_at <= now]
            if not due:
                advance(run, {"wake_at": pending[0].due_at if pending else None, "lease": None})
            for number, execution in enumerate(due):
                if not self.handle(execution, pending[number + 1 :]):
                    break
        if not self.lost:
            touch([run.pk])

    def handle(self, execution: HandlerExecution, rest: Sequence[HandlerExecution]) -> bool:
        """Run one attempt of an execution and commit it; return whether this worker still leases the agent.

        ``rest``: the pending executions after it, the earliest first.
        """
        run, event, now = self.run, execution.event, self.clock()
        handler = self.definition.find_handler(execution.handler, event, execution.milestone)
        try:
            if handler is None:
                raise UnknownHandlerError(self._missing_handler(execution))
            event.check_known()
        except CodeError as error:
            reason = reason_of(run, error)
            done = self._commit(execution, now, rest, MissingCode(reason))
            row_parked.send_robust(HandlerExecution, row=execution, reason=reason)
            return done
        # Claims are evaluated once, when the first attempt is about to start.
        skips_claims = handler.ignores_claims or execution.attempt > 0 or execution.deferrals > 0
        claim = None if skips_claims else claim_against(event, self.owner, now)
        if claim is not None:
            done = self._commit(execution, now, rest, Skipped(f"Skipped: {claim}."))
            if handler.limits:
                release_from_outside(HANDLER, [execution.pk], now)
            return done
        found = handler
        if handler.limits and not self._acquire_slots(execution, handler, now, rest):
            return self.run.lease is not None
        execution.run = run  # in memory, so that reports of the attempt name the agent without a query
        self.current = CurrentRun(
            f"agent:{run.pk}:{handler.method}",
            self._depth_of(found, execution, now),
            execution.idempotency_key,
            self.owner,
            row=execution,
            trace_context=trace_after(event, handler.offset),
        )
        read_for_async([event], getattr(self.definition.cls, handler.method), handler.condition)
        committed = attempt(
            run,
            lambda: self._execute(execution, found, now, rest),
            lambda error: self._rescue(execution, found, error, now, rest),
            current=self.current,
            atomic=handler.atomic,
            timeout=handler.timeout,
            clock=self.clock,
        )
        row_slots, self.row_slots = self.row_slots, None
        if not committed:
            if row_slots is not None:
                left(HANDLER, execution.pk, self.clock())
            self._release()
            return False
        if run.lease is None:
            self.routes = self._current_routes()
            return False
        # From what was stored: a handler sees the same Context whether or not its worker ran the previous handler.
        self.context = self._restored_context()
        self.routes = self._current_routes()
        return True

    def _acquire_slots(
        self,
        execution: HandlerExecution,
        handler: HandlerDefinition,
        now: datetime,
        rest: Sequence[HandlerExecution],
    ) -> bool:
        """Return whether the execution holds a slot of each limit of its handler. If not, it waits for one, has failed
        or was skipped."""
        row_slots, has_started = RowSlots(HANDLER, execution.pk), execution.started_at is not None
        missing = row_slots.missing(handler.limits, has_started=has_started)
        self.instance = None
        try:
            keys = {each.name: context_key(each, self.context) for each in missing}
        except AutomationError as error:
            commit(self.run, self._rescue(execution, handler, error, now, rest))
            return False

        def write(result: AwaitsSlot | Skipped) -> None:
            state = self._state(execution, None, now, rest)
            commit(self.run, self._progress(execution, state, decide(state, result)))

        applicant = Applicant(
            row=self.run,
            name=limiter_name(handler),
            has_started=has_started,
            let_wait=lambda start: write(AwaitsSlot(start)),
            refuse=lambda reason: write(Skipped(reason)),
        )
        try:
            if not row_slots.acquire(applicant, missing, lambda each: keys[each.name], self.clock):
                return False
        except LeaseLostError:
            self._release()
            return False
        self.row_slots = row_slots
        return True

    def _missing_handler(self, execution: HandlerExecution) -> str:
        """Return the error for a handler that the class does not have, with the fix."""
        at = f" at {execution.milestone!r}" if execution.milestone else ""
        near = get_close_matches(execution.handler, [each.method for each in self.definition.handlers], n=1)
        hint = f" Was it renamed to {near[0]!r}?" if near else ""
        return (
            f"{self.run}: {self.run.name!r} has no handler {execution.handler!r} for "
            f"{execution.event.event_name!r}{at}.{hint} Restore the method under this name and the execution resumes "
            "automatically, or delete this row."
        )

    def _depth_of(self, handler: HandlerDefinition, execution: HandlerExecution, now: datetime) -> int:
        """Return the depth of an execution in its chain of causes."""
        if execution.started_at is not None and breaks_chain(now - execution.started_at):
            return 1  # an earlier attempt
        run, event, depth = self.run, execution.event, depth_after(execution.event, handler.offset)
        if event.pk == run.event_id and not handler.offset and run.caused_by != f"event:{event.pk}":
            # Spawned by code: it continues the chain of that code, which an agent of the same kind may have run.
            return max(depth, run.depth + 1)
        return depth

    def _commit(
        self,
        execution: HandlerExecution,
        now: datetime,
        rest: Sequence[HandlerExecution],
        result: Skipped | MissingCode,
    ) -> bool:
        """Commit a result without an attempt; return whether this worker still leases the agent."""
        before = dict(self.run.__dict__)
        state = self._state(execution, None, now, rest)
        try:
            commit(self.run, self._progress(execution, state, decide(state, result)))
        except LeaseLostError:
            self.run.__dict__.update(before)
            self._release()
        return self.run.lease is not None

    def _release(self) -> None:
        """Release the agent after a commit that was refused.

        This changes nothing if the lease was lost, or was released already after a database failure.
        """
        release(self.run, self.clock() + DATABASE_RETRY_DELAY)
        self.run.lease, self.lost = None, True

    def _execute(
        self,
        execution: HandlerExecution,
        handler: HandlerDefinition,
        started: datetime,
        rest: Sequence[HandlerExecution],
    ) -> Progress:
        """Call the handler, decide the next state of its execution, and return the commit of both with the Context."""
        result = self._call_handler(execution, handler)
        state = self._state(execution, handler, started, rest)
        decision = decide(state, result)
        if isinstance(result, Returned):
            data = dump_context(self.context, f"The Context of {self.run}")
            decision = replace(decision, agent={**decision.agent, "data": data})
        return self._progress(execution, state, decision)

    def _rescue(
        self,
        execution: HandlerExecution,
        handler: HandlerDefinition,
        error: Exception,
        started: datetime,
        rest: Sequence[HandlerExecution],
    ) -> Progress:
        """Turn an exception into a retry, or into the end of the execution. The agent stays active."""
        data, note = self._salvage_context()
        state = self._state(execution, handler, started, rest)
        return self._progress(execution, state, decide(state, Raised(error, trace_of(error), data, note)))

    def _call_handler(self, execution: HandlerExecution, handler: HandlerDefinition) -> Returned | Skipped:
        context, event, self.instance = self.context, execution.event, None
        # A copy of the row: a handler that changes or reloads it must not change the worker's fence.
        given = {"ctx": context, "context": context, "event": event, "events": [event], "run": copy(self.run)}
        with inside(self.run) as current:
            if handler.condition is not None and not awaited_about(event, handler.condition(**given)):
                self.context = self._restored_context()  # a condition must not change the Context
                return Skipped("Its condition was false.")
            # A new instance for each handler: only the Context outlives a handler.
            self.instance = self.definition.cls()
            self.instance.context = context
            awaited(getattr(self.instance, handler.method)(**{name: given[name] for name in handler.takes}))
        self.context = self._context_left()
        return Returned(current.ending)

    def _salvage_context(self) -> tuple[str | None, str]:
        """Return the Context as it was when the handler raised, or None and the reason why it cannot be kept.

        The handler's database writes are rolled back.
        """
        try:
            self.context = self._context_left()
            data = dump_context(self.context, f"The Context of {self.run}")
            if self._current_routes()[1] != self.routes[1]:
                raise ContextError("it would change the singleton key of the agent")
            return data, ""
        except Exception as error:
            if is_database_failure(error, connections[alias_of(AgentRun)]):
                raise
            self.context = self._restored_context()
            return None, f"\nThe changes of the handler to its Context are lost: {type(error).__name__}: {error}"

    def _state(
        self,
        execution: HandlerExecution,
        handler: HandlerDefinition | None,
        started: datetime,
        rest: Sequence[HandlerExecution],
    ) -> State:
        return State(
            execution.attempt,
            self.definition.default_retry if handler is None else self.definition.retry_of(handler),
            started,
            self.clock(),
            execution.deferrals,
            execution.idempotency_key,
            next_due=rest[0].due_at if rest else None,
            is_budget_spent=time.monotonic() >= self.budget_ends or pauses.count() != self.pauses,
        )

    def _progress(self, execution: HandlerExecution, state: State, decision: Decision) -> Progress:
        """Return the commit of an attempt: the changes of the agent, its execution and its routes."""
        run, changes = self.run, dict(decision.agent)
        if "wake_at" not in changes and time.monotonic() - self.lease_renewed > conf().LEASE.total_seconds() / 2:
            # The heartbeat may have been blocked (on SQLite by this very transaction).
            changes["wake_at"] = state.finished + conf().LEASE
            self.lease_renewed = time.monotonic()
        before, after, row_slots = self.routes, self._current_routes(), self.row_slots
        if after != before:
            changes |= {"singleton": after[1] or "", "routing": fingerprint(self.definition)}
        if self.current is not None and self.current.holds_claims and not run.holds_claims:
            changes["holds_claims"] = True

        def write() -> None:
            pending = HandlerExecution.objects.filter(pk=execution.pk, status=HandlerStatus.PENDING)
            if pending.update(**decision.execution) != 1:
                raise LeaseLostError(f"{execution} was changed while a worker was running it.")
            if after != before:
                replace_routes(run, after[0], before[1], after[1])
            if row_slots is not None:
                row_slots.release(state.finished, has_ended="status" in decision.execution)
            if decision.ends:
                clear_up(run.pk, state.finished)

        failed = None if decision.failure is None else (execution, decision.failure)
        return Progress(changes, None, (write,), failed)
