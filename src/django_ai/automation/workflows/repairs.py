"""``Repairs``: what ``engine`` offers to repair a run by hand. A page, a command and a test call the same methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from ..queues.run import Run, key_of
from .editing import fork
from .models import WorkflowRun
from .repairing import repaired, run_with, try_now
from .rewinding import rewind
from .skipping import skip_wait

AnyRun = TypeVar("AnyRun", bound=Run)


class Repairs:
    """The part of ``Engine`` that repairs runs."""

    def try_now(self, run: WorkflowRun | int, *, reason: str = "") -> WorkflowRun:
        """Let a run try again now that waits for its next attempt.

        That is the backoff of a ``Retry``, the time of a ``RetryAfter``, or the next evaluation of ``when=`` or of the
        condition of a planned run. The attempt counts as it would have later. The run is locked, and is due after the
        commit of the caller's transaction; its history gets a record.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            reason: Why, as a string for the history. Default: none.

        Returns:
            The ``WorkflowRun``, read again. One that is due already is returned as it is.

        Raises:
            StateError: If the run waits for something else, is paused, is performed by a worker at this moment, is
                parked, or has ended. The message names its state and what to do.
            UnknownRunError: If the run does not exist.

        Example:
            The supplier answers again::

                for run in engine.runs("order_parts", status="waiting").filter(attempt__gt=0):
                    engine.try_now(run, reason="The supplier is back.")
        """
        row, _ = repaired(run, "engine.try_now()", lambda row, now: try_now(row, now, "engine.try_now()", reason))
        return row

    def skip_wait(
        self,
        run: WorkflowRun | int,
        payload: Mapping[str, Any] | None = None,
        *,
        branch: str | None = None,
        reason: str = "",
    ) -> WorkflowRun:
        """Let a run continue that sleeps, or waits for a signal, an event or a child run.

        What the next step sees in ``get_wake()``:

        * without a payload: the same as after the timeout, ``reason="timeout"``, at the step of ``on_timeout=``; also
          if the wait has no timeout. After a ``sleep``: ``reason="timer"``;
        * with a payload: ``reason="signal"`` and the payload, at the step of ``then=``, as after a signal to this run.
          Fields of the Context are merged into it. A wait for an event gets ``"signal"``, too: no event has occurred.

        The wait is withdrawn in the caller's transaction. A child run that it was for is cancelled. What arrives for it
        from then on is kept for later waits of this run. The history gets a record.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            payload: What the signal or event would have brought, as a dict of JSON values. For a child run, its end:
                ``{"status": "completed", "data": {...}}``. Default: continue as after a timeout.
            branch: The branch of a ``wait_any`` that wins, or the one of a ``wait_all`` that is over. Default: the
                whole of it, as after its ``timeout=``; a ``wait_all`` without one continues at its ``then=``.
            reason: Why, as a string for the history. Default: none.

        Returns:
            The ``WorkflowRun``, read again.

        Raises:
            StateError: If the run waits for nothing that can be skipped (a retry, its date, its turn), is performed by
                a worker at this moment, is parked, or has ended; or if a ``branch`` is needed or does not exist.
            InvalidContextError: If the payload has values that the fields of the Context do not accept.
            NotStorableError: If the payload cannot be stored as JSON.
            DefinitionError: If ``payload`` is not a dict.
            UnknownRunError: If the run does not exist.

        Example:
            The approval came by phone::

                engine.skip_wait(run, {"approved": True}, reason="Approved by phone.")
        """
        what = "engine.skip_wait()"
        row, _ = repaired(run, what, lambda row, now: skip_wait(row, now, what, payload, branch, reason))
        return row

    @overload
    def edit_context(self, run: int, fields: Mapping[str, Any], *, reason: str = "") -> WorkflowRun: ...

    @overload
    def edit_context(self, run: AnyRun, fields: Mapping[str, Any], *, reason: str = "") -> AnyRun: ...

    def edit_context(self, run: Run | int, fields: Mapping[str, Any], *, reason: str = "") -> Run:
        """Give fields of the Context of a run or agent other values.

        The row keeps waiting for what it waits for, with the values that it had then; the next step or handler reads
        the new ones. A parked or failed run is not resumed: call ``engine.resume`` next. The row is locked and written
        in the caller's transaction. The history of a run gets a record, without values. Data that no longer fits the
        Context can be repaired in this way. The routes of an agent follow.

        Args:
            run: A ``WorkflowRun``, its primary key, or an ``AgentRun``.
            fields: The new values by the names of the fields; all others stay.
            reason: Why, as a string for the history. Default: none.

        Returns:
            The row, read again.

        Raises:
            InvalidContextError: If the Context has no such field or does not accept the values. Its ``errors`` has the
                error of each field.
            StateError: If the run has ended otherwise than by a failure, or is performed by a worker at this moment:
                pause it first.
            NoContextError: If the row has no Context yet.
            CodeError: If this code lacks the workflow or agent, or cannot migrate the stored data.
            DefinitionError: If ``fields`` is no dict of fields.
            SingletonTakenError: If another agent has the singleton key of the new values.
            UnknownRunError: If the run does not exist.

        Example:
            A failed run gets the right address, and continues::

                engine.edit_context(run, {"email": "guest@example.org"})
                engine.resume(run)
        """
        row: Run = run if isinstance(run, Run) else run_with(key_of(run, WorkflowRun, "engine.edit_context(run)"))
        row.edit_context(fields, reason=reason)
        return row

    def fork(
        self,
        run: WorkflowRun | int,
        step: str | None = None,
        context: Mapping[str, Any] | None = None,
        *,
        reason: str = "",
    ) -> WorkflowRun:
        """Start another run of the same workflow, with the Context of a run as it is now.

        The new run is inserted in the caller's transaction and begins after the commit. It is about the same entity and
        caused by the old one, which stays as it is, whatever its status, and gets a record in its history. The new run
        has no key, event, parent or claims of its own, and receives what arrives from now on.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            step: Name of the step at which it begins. Default: the first one.
            context: Fields of the Context that get other values. Default: none.
            reason: Why, as a string for the history. Default: none.

        Returns:
            The new ``WorkflowRun``.

        Raises:
            InvalidContextError: If the Context has no such field or does not accept the values. Its ``errors`` has the
                error of each field.
            NoContextError: If the run has no Context yet.
            UnknownStepError: If the workflow has no such step.
            CodeError: If this code lacks the workflow, or cannot migrate the stored data.
            StateError: Inside a step of this run.
            UnknownRunError: If the run does not exist.

        Example:
            Send the invoice again, to another address::

                engine.fork(run, "send", {"email": "office@example.org"}, reason="The guest asked for it.")
        """
        _, made = repaired(run, "engine.fork()", lambda row, now: fork(row, now, step, context or {}, reason))
        return made

    def rewind(self, run: WorkflowRun | int, visit: int, *, again: bool = False, reason: str = "") -> WorkflowRun:
        """Let a run continue at an earlier visit of a step, with the Context that it had before that visit.

        The step is entered as then: with the same ``get_wake()``, as a new visit with another idempotency key. What the
        steps since then have written to the database, or sent, stays. The history stays, too, and so does what the run
        has consumed: it waits for new signals and events. In the caller's transaction, its waits are withdrawn, its
        unfinished child runs are cancelled, and the claims end that it did not hold then. A worker that performs the
        run at this moment has its write refused.

        A failed run leaves its path. One that has completed or was cancelled can be rewound unless its end has had an
        effect that cannot be taken back: a parent was told, an ``@on_cancel`` has begun, or claims have ended that the
        run held before the visit. Code that has read the result of a completed run has read it.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            visit: The number of the visit, as in ``run.steps.last().visit``.
            again: Rewind even to before a child run that has completed; its step may then start a second one. Default
                False.
            reason: Why, as a string for the history. Default: none.

        Returns:
            The ``WorkflowRun``, read again.

        Raises:
            StateError: If the history has no such visit or kept no Context of it (``HISTORY_CONTEXT_BYTES``), if the
                end of the run cannot be taken back, if the run undoes its work at present, if the signal or event that
                woke the visit was removed, or if a child run has completed since then and ``again`` is False.
            CodeError: If this code lacks the workflow or the step, or if the Context no longer fits.
            DefinitionError: If ``visit`` is no number.
            UnknownRunError: If the run does not exist.

        Example:
            Calculate again, after a bug in that step was mended::

                visit = run.steps.filter(step="calculate").last().visit
                engine.rewind(run, visit, reason="The rate was wrong.")
        """
        what = "engine.rewind()"
        row, _ = repaired(run, what, lambda row, now: rewind(row, now, visit, again, reason))
        return row
