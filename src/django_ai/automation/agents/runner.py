"""A worker's path for one agent: bring it to life if it is new, then take one execution after the other from its
mailbox, run its handler, and commit what came of it together with the agent's Context.

The agent's lease stays in this worker's hands from execution to execution, so its handlers never overlap. With the last
one that is due the lease is let go in the same commit, and the mailbox looked into once more after it.
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
from ..events.claims import claim_against
from ..events.timing import depth_after
from ..exceptions import AutomationError, CodeError, ContextError, LeaseLostError, UnknownHandlerError
from ..queues.attempt import DATABASE_PAUSE, Progress, attempt, commit, trace_of
from ..queues.cause import CurrentRun, Owner, inside, rested
from ..queues.clock import Clock
from ..queues.contexts import dump_context, replaced
from ..queues.database import is_database_failure
from ..queues.lease import advance, alias_of, release
from ..queues.parking import because, take_back
from ..queues.signals import row_parked
from ..queues.versions import restore
from .birth import begin, catch_up
from .definitions import AgentDefinition, HandlerDefinition, agent_of
from .ending import KIND, clear_up
from .mailbox import pending_in, touch
from .models import AgentRun, AgentStatus, HandlerExecution, HandlerStatus
from .routes import Keys, fingerprint, keys_of, reroute, singleton_key


def perform_agent(run: AgentRun, clock: Clock) -> None:
    """Do what the agent is due for."""
    if run.is_finished:
        advance(run, {"wake_at": None, "lease": None})
        return
    was_parked = run.status == AgentStatus.PARKED
    if was_parked:
        run.status = run.unparked
    try:
        definition = agent_of(run)
        if run.status == AgentStatus.PENDING and run.event is not None:
            run.event.check_known()
    except CodeError as error:
        run.park(because(run, error), clock, for_code=True)
        return
    if run.status == AgentStatus.PENDING:
        if was_parked:
            take_back(run, run.status)
            was_parked = False
        if not begin(run, definition, clock):
            return
    before = dict(run.__dict__)
    try:
        shift = Shift(run, definition, clock)
        shift.settle_in(was_parked=was_parked)
    except LeaseLostError:
        raise
    except Exception as error:
        run.__dict__.update(before)
        _park(run, error, clock)
        return
    try:
        shift.work()
    except LeaseLostError:
        raise
    except Exception as error:
        _park(run, error, clock)


def _park(run: AgentRun, error: Exception, clock: Clock) -> None:
    """Park an agent for an error that no single execution is to blame for. It hangs on the code (a validator of its
    Context, a bug of ours), or on which singleton lives: another time it may go on. Raises a database failure."""
    if run.lease is None or is_database_failure(error, connections[alias_of(AgentRun)]):
        raise error
    reason = because(run, error) if isinstance(error, AutomationError) else f"{run}: {trace_of(error)}"
    run.park(reason, clock, for_code=True)


class Shift:
    """One worker's time with an agent: the Context in memory, from execution to execution.

    Raises ``ContextError`` where what is stored is no Context any more.
    """

    def __init__(self, run: AgentRun, definition: AgentDefinition, clock: Clock) -> None:
        self.run = run
        self.definition = definition
        self.clock = clock
        self.owner = Owner(KIND, run.pk, definition.namespace)
        self.current: CurrentRun | None = None
        self.until = time.monotonic() + conf().DRAIN_BUDGET.total_seconds()
        self.leased = time.monotonic()
        stored = restore(definition, run.data, run.version, str(run))
        self.context, self.moved = stored.context, stored.moved
        self.routes = self._routes()
        self.instance: Any = None
        self.lost = False

    def settle_in(self, *, was_parked: bool) -> None:
        """Take back an agent that was parked, and write the Context of one that an older version has left, with the
        routes that come of it.

        Raises ``SingletonTakenError`` where another one lives for its new match, and ``NotStorableError``.
        """
        run, (keys, singleton), before = self.run, self.routes, self.run.singleton or None
        if was_parked and not self.moved:
            take_back(run, run.status)
        if not self.moved:
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

    def _load(self) -> BaseModel:
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
        """Run one try of an execution and commit it; say whether the agent is still in this worker's hands.

        ``rest``: what is pending after it, the earliest first.
        """
        run, event = self.run, execution.event
        handler = self.definition.find_handler(execution.handler, event, execution.beat)
        now = self.clock()
        try:
            if handler is None:
                raise UnknownHandlerError(self._missing(execution))
            event.check_known()
        except CodeError as error:
            reason = because(run, error)
            done = self._commit(self._ended(execution, HandlerStatus.PARKED, reason, now, rest))
            row_parked.send_robust(HandlerExecution, row=execution, reason=reason)
            return done
        judged = handler.ignores_claims or execution.attempt > 0  # once, when it is about to start
        claim = None if judged else claim_against(event, self.owner, now)
        if claim is not None:
            return self._commit(self._ended(execution, HandlerStatus.SKIPPED, f"Skipped: {claim}.", now, rest))
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
        self.context = self._load()
        self.routes = self._routes()
        return True

    def _missing(self, execution: HandlerExecution) -> str:
        """Say which handler is gone, and what to do."""
        at = f" at {execution.beat!r}" if execution.beat else ""
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

    def _commit(self, progress: Progress) -> bool:
        """Commit what needs no try; say whether the agent is still in this worker's hands."""
        before = dict(self.run.__dict__)
        try:
            commit(self.run, progress)
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
        context, event, self.instance = self.context, execution.event, None
        # A copy of the row: what a handler does to it, or reads anew, must not touch the worker's fence.
        given = {"ctx": context, "context": context, "event": event, "events": [event], "run": copy(self.run)}
        with inside(self.run) as current:
            if handler.condition is not None and not handler.condition(**given):
                self.context = self._load()  # a question changes nothing
                return self._ended(execution, HandlerStatus.SKIPPED, "Its condition was false.", started, rest)
            # A new one for each handler: what is to outlive it is in the Context.
            self.instance = self.definition.cls()
            self.instance.context = context
            getattr(self.instance, handler.method)(**{name: given[name] for name in handler.takes})
        self.context = self._kept()
        changes: dict[str, Any] = {"data": dump_context(self.context, f"The Context of {self.run}")}
        progress = self._ended(execution, HandlerStatus.COMPLETED, "", started, rest, changes)
        if current.ending is None:
            return progress
        return self._last(progress, *current.ending)

    def _last(self, progress: Progress, status: AgentStatus, reason: str) -> Progress:
        """Let the agent end with this commit."""
        now, pk = self.clock(), self.run.pk
        ended = {"status": status, "error": reason, "finished_at": now, "wake_at": None, "lease": None}
        return Progress({**progress.changes, **ended}, None, (*progress.together, lambda: clear_up(pk, now)))

    def _rescue(
        self,
        execution: HandlerExecution,
        handler: HandlerDefinition,
        error: Exception,
        started: datetime,
        rest: Sequence[HandlerExecution],
    ) -> Progress:
        """Turn an exception into another try later, or into the end of the execution. The agent lives on."""
        text, changes = trace_of(error), {}
        delay = self.definition.retry_of(handler).delay(execution.attempt + 1)
        if isinstance(error, AutomationError) and not error.may_pass:
            # Wrong use of this package is wrong again at the next try.
            text, delay = f"{type(error).__name__}: {error}\n\n{text}", None
        try:
            # The Context keeps what the handler changed before it raised; its database writes are rolled back.
            self.context = self._kept()
            changes["data"] = dump_context(self.context, f"The Context of {self.run}")
            after = self._routes()
            if after[1] != self.routes[1]:
                raise ContextError("it would make a second life of a singleton's match, or give up its own")
        except Exception as unusable:
            if is_database_failure(unusable, connections[alias_of(AgentRun)]):
                raise
            text += f"\nWhat the handler had changed in its Context is lost: {type(unusable).__name__}: {unusable}"
            changes, self.context = {}, self._load()
        if delay is None:
            ended = self._ended(execution, HandlerStatus.FAILED, text, started, rest, changes)
            return replace(ended, failed=(execution, text))
        due_at = self.clock() + delay
        values = {"attempt": execution.attempt + 1, "error": text, "started_at": started, "due_at": due_at}
        return self._progress(execution, values, changes, rest, due_at)

    def _ended(
        self,
        execution: HandlerExecution,
        status: HandlerStatus,
        error: str,
        started: datetime,
        rest: Sequence[HandlerExecution],
        changes: dict[str, Any] | None = None,
    ) -> Progress:
        tried = status not in (HandlerStatus.SKIPPED, HandlerStatus.PARKED)
        values = {
            "status": status,
            "error": error,
            "attempt": execution.attempt + tried,
            "started_at": started,
            "finished_at": self.clock(),
            "parked_at": started if status == HandlerStatus.PARKED else None,
        }
        return self._progress(execution, values, changes or {}, rest, None)

    def _progress(
        self,
        execution: HandlerExecution,
        values: dict[str, Any],
        changes: dict[str, Any],
        rest: Sequence[HandlerExecution],
        again: datetime | None,
    ) -> Progress:
        """Return the commit of one try: the execution's ``values`` and the agent's ``changes``. ``again``: when the
        execution is due once more."""
        now = self.clock()
        goes_on = bool(rest) and rest[0].due_at <= now and time.monotonic() < self.until
        if not goes_on:
            nearest = [each for each in (rest[0].due_at if rest else None, again) if each is not None]
            changes |= {"wake_at": min(nearest, default=None), "lease": None}
        elif time.monotonic() - self.leased > conf().LEASE.total_seconds() / 2:
            # The heartbeat may have been kept out (SQLite: by this very transaction).
            changes["wake_at"] = now + conf().LEASE
            self.leased = time.monotonic()
        after = self._routes()
        if after != self.routes:
            changes |= {"singleton": after[1] or "", "routing": fingerprint(self.definition)}
        if self.current is not None and self.current.holds_claims and not self.run.holds_claims:
            changes["holds_claims"] = True
        before = self.routes

        def write() -> None:
            kept = HandlerExecution.objects.filter(pk=execution.pk, status=HandlerStatus.PENDING).update(**values)
            if kept != 1:
                raise LeaseLostError(f"{execution} was changed while a worker had it.")
            if after != before:
                reroute(self.run, after[0], before[1], after[1])

        return Progress(changes, None, (write,))
