"""One worker's session with an agent: it runs handler after handler, and commits each with the agent's Context.

The worker keeps the agent's lease from execution to execution, so handlers of one agent never overlap. The commit of
the last execution that is due releases the lease. After it the worker looks into the mailbox once more.
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
from ..events.claims import claim_against
from ..events.timing import depth_after
from ..exceptions import CodeError, ContextError, LeaseLostError, UnknownHandlerError
from ..queues.attempt import DATABASE_PAUSE, Progress, attempt, commit
from ..queues.causation import CurrentRun, Owner, inside, rested
from ..queues.lease import advance, release
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
from .mailbox import pending_in
from .models import AgentRun, HandlerExecution, HandlerStatus, touch
from .routing import Keys, fingerprint, keys_of, reroute, singleton_key
from .transitions import Decision, Returned, Skipped, State, Unknown, decide


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
        self.until = time.monotonic() + conf().DRAIN_BUDGET.total_seconds()
        self.leased = time.monotonic()
        self.instance: Any = None
        self.lost = False

    def prepare(self) -> None:
        """Restore the Context, take back an agent that was parked, and write the Context of one that an older version
        has left, with the routes that come of it.

        Raises ``ContextError`` where what is stored is no Context any more, ``SingletonTakenError`` where another one
        lives for its new match, and ``NotStorableError``.
        """
        run, before = self.run, self.run.singleton or None
        stored = restore(self.definition, run.data, run.version, str(run))
        self.context = stored.context
        self.routes = keys, singleton = self._routes()
        if self.was_parked and not stored.moved:
            unpark(run, run.status)
        if not stored.moved:
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
        commit(run, Progress(changes, None, (lambda: reroute(run, keys, before, singleton),)))

    def _kept(self) -> BaseModel:
        """Return the Context that the handler has left, which may be another object than it was given."""
        if self.instance is None:
            return self.context
        return replaced(self.context, self.instance.context, f"{self.definition.name} set self.context to")

    def _restored(self) -> BaseModel:
        return restore(self.definition, self.run.data, self.run.version, str(self.run)).context

    def _routes(self) -> tuple[Keys, str | None]:
        return (
            keys_of(self.definition, self.run, self.context),
            singleton_key(self.definition, self.run, self.context),
        )

    def work(self) -> None:
        """Handle what is due, and let the agent rest until the next is."""
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
        """Run one try of an execution and commit it; return whether the agent is still leased by this worker.

        ``rest``: what is pending after it, the earliest first.
        """
        run, event, now = self.run, execution.event, self.clock()
        handler = self.definition.find_handler(execution.handler, event, execution.milestone)
        try:
            if handler is None:
                raise UnknownHandlerError(self._missing(execution))
            event.check_known()
        except CodeError as error:
            reason = reason_of(run, error)
            done = self._commit(execution, now, rest, Unknown(reason))
            row_parked.send_robust(HandlerExecution, row=execution, reason=reason)
            return done
        judged = handler.ignores_claims or execution.attempt > 0  # once, when it is about to start
        claim = None if judged else claim_against(event, self.owner, now)
        if claim is not None:
            return self._commit(execution, now, rest, Skipped(f"Skipped: {claim}."))
        found = handler
        self.current = CurrentRun(
            f"agent:{run.pk}:{handler.method}", self._depth(found, execution), execution.idempotency_key, self.owner
        )
        committed = attempt(
            run,
            lambda: self._work(execution, found, now, rest),
            lambda error: self._rescue(execution, found, error, now, rest),
            current=self.current,
            atomic=handler.atomic,
            timeout=handler.timeout,
            clock=self.clock,
        )
        if not committed:
            self._let_go()
            return False
        if run.lease is None:
            self.routes = self._routes()
            return False
        # As it was stored: a handler sees the same whether its worker had the one before it or not.
        self.context = self._restored()
        self.routes = self._routes()
        return True

    def _missing(self, execution: HandlerExecution) -> str:
        """Say which handler is gone, and what to do."""
        at = f" at {execution.milestone!r}" if execution.milestone else ""
        near = get_close_matches(execution.handler, [each.method for each in self.definition.handlers], n=1)
        hint = f" Did it become {near[0]!r}?" if near else ""
        return (
            f"{self.run}: {self.run.name!r} has no handler {execution.handler!r} for {execution.event.event_name!r}{at}"
            f" any more.{hint} Bring the method back under this name, and this goes on by itself, or delete this row."
        )

    def _depth(self, handler: HandlerDefinition, execution: HandlerExecution) -> int:
        """Return how deep in its chain of causes a handler's work is."""
        if execution.attempt and rested(self.definition.retry_of(handler).delay(execution.attempt)):
            return 1
        run, event, depth = self.run, execution.event, depth_after(execution.event, handler.offset)
        if event.pk == run.event_id and not handler.offset and run.caused_by != f"event:{event.pk}":
            # Spawned by hand: it goes on with what did that, which may have been its like.
            return max(depth, run.depth + 1)
        return depth

    def _commit(
        self,
        execution: HandlerExecution,
        now: datetime,
        rest: Sequence[HandlerExecution],
        gave: Skipped | Unknown,
    ) -> bool:
        """Commit what needs no try; return whether the agent is still leased by this worker."""
        before = dict(self.run.__dict__)
        state = self._state(execution, None, now, rest)
        try:
            commit(self.run, self._record(execution, state, decide(state, gave)))
        except LeaseLostError:
            self.run.__dict__.update(before)
            self._let_go()
        return self.run.lease is not None

    def _let_go(self) -> None:
        """Give the agent back after a commit that was refused. In vain if its lease is lost indeed, or was given back
        to rest a while after trouble of the database."""
        release(self.run, self.clock() + DATABASE_PAUSE)
        self.run.lease, self.lost = None, True

    def _work(
        self,
        execution: HandlerExecution,
        handler: HandlerDefinition,
        started: datetime,
        rest: Sequence[HandlerExecution],
    ) -> Progress:
        """Try the handler, decide what becomes of its execution, and record that with the Context that it has left."""
        gave = self._try(execution, handler)
        state = self._state(execution, handler, started, rest)
        decision = decide(state, gave)
        if isinstance(gave, Returned):
            data = dump_context(self.context, f"The Context of {self.run}")
            decision = replace(decision, agent={**decision.agent, "data": data})
        return self._record(execution, state, decision)

    def _rescue(
        self,
        execution: HandlerExecution,
        handler: HandlerDefinition,
        error: Exception,
        started: datetime,
        rest: Sequence[HandlerExecution],
    ) -> Progress:
        """Turn an exception into another try later, or into the end of the execution. The agent lives on."""
        data, note = self._salvaged()
        state = self._state(execution, handler, started, rest)
        return self._record(execution, state, decide(state, Raised(error, trace_of(error), data, note)))

    def _try(self, execution: HandlerExecution, handler: HandlerDefinition) -> Returned | Skipped:
        context, event, self.instance = self.context, execution.event, None
        # A copy of the row: what a handler does to it, or reads anew, must not touch the worker's fence.
        given = {"ctx": context, "context": context, "event": event, "events": [event], "run": copy(self.run)}
        with inside(self.run) as current:
            if handler.condition is not None and not handler.condition(**given):
                self.context = self._restored()  # a question changes nothing
                return Skipped("Its condition was false.")
            # A new one for each handler: what is to outlive it is in the Context.
            self.instance = self.definition.cls()
            self.instance.context = context
            getattr(self.instance, handler.method)(**{name: given[name] for name in handler.takes})
        self.context = self._kept()
        return Returned(current.ending)

    def _salvaged(self) -> tuple[str | None, str]:
        """Return the Context as the handler has left it before it raised, or None and why it cannot be kept. The
        handler's database writes are rolled back."""
        try:
            self.context = self._kept()
            data = dump_context(self.context, f"The Context of {self.run}")
            if self._routes()[1] != self.routes[1]:
                raise ContextError("it would make a second life of a singleton's match, or give up its own")
            return data, ""
        except Exception as error:
            if is_database_failure(error, connections[alias_of(AgentRun)]):
                raise
            self.context = self._restored()
            return None, f"\nWhat the handler had changed in its Context is lost: {type(error).__name__}: {error}"

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
            next_due=rest[0].due_at if rest else None,
            is_share_used=time.monotonic() >= self.until,
        )

    def _record(self, execution: HandlerExecution, state: State, decision: Decision) -> Progress:
        """Return the commit of an attempt: the agent's changes, and with them the execution's and the routes'."""
        run, changes = self.run, dict(decision.agent)
        if "wake_at" not in changes and time.monotonic() - self.leased > conf().LEASE.total_seconds() / 2:
            # The heartbeat may have been kept out (SQLite: by this very transaction).
            changes["wake_at"] = state.finished + conf().LEASE
            self.leased = time.monotonic()
        before, after = self.routes, self._routes()
        if after != before:
            changes |= {"singleton": after[1] or "", "routing": fingerprint(self.definition)}
        if self.current is not None and self.current.holds_claims and not run.holds_claims:
            changes["holds_claims"] = True

        def write() -> None:
            pending = HandlerExecution.objects.filter(pk=execution.pk, status=HandlerStatus.PENDING)
            if pending.update(**decision.execution) != 1:
                raise LeaseLostError(f"{execution} was changed while a worker had it.")
            if after != before:
                reroute(run, after[0], before[1], after[1])
            if decision.ends:
                clear_up(run.pk, state.finished)

        failed = None if decision.failure is None else (execution, decision.failure)
        return Progress(changes, None, (write,), failed)
