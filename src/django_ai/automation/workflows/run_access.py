"""What code outside a workflow asks of a run: its result, and its end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Self, TypeVar, overload

from django.utils import timezone
from pydantic import BaseModel

from ..db.writer import alias_of
from ..exceptions import RunCancelledError, RunFailedError, RunTimeoutError, RunUnfinishedError, UnknownRunError
from ..queues.run import Run
from ..queues.waiting import check_timeout, refuse_inside_work, wait_until

Ctx = TypeVar("Ctx", bound=BaseModel)


class RunAccess(Run):
    """The base of ``WorkflowRun`` with the methods that only read."""

    class Meta:
        abstract = True

    @overload
    def result(self, /) -> Any: ...

    @overload
    def result(self, expected: type[Ctx], /) -> Ctx: ...

    def result(self, expected: type[BaseModel] | None = None, /) -> Any:
        """Return the final Context of a completed run.

        A run that is unfinished in memory is read again first.

        Args:
            expected: The class of the Context; type checkers then know the result's class. Default: the result is not
                typed.

        Returns:
            The Context, with the fields that ``complete()`` was given.

        Raises:
            RunFailedError: If the run has failed, or was cancelled and the path of its ``@on_cancel`` has failed.
            RunCancelledError: If it was cancelled, or withdrawn before it started.
            RunUnfinishedError: If it has not ended yet.
            UnknownRunError: If its row was removed.
            DefinitionError: If the Context is not of the class ``expected``.
            CodeError: If the Context cannot be loaded, as for ``run.context``.

        Example:
            Start a calculation, and show its result on a later page::

                try:
                    total = run.result(InvoiceContext).total
                except RunUnfinishedError:
                    return render(request, "wait.html", {"progress": run.progress})
        """
        run: Any = self
        if not run.is_finished:
            self._read_again()
        if run.status == "completed":
            return self.context if expected is None else self.context_as(expected)
        if not run.is_finished:
            raise RunUnfinishedError(f"{self} has not ended: {self._why_unfinished()}.", self)
        error = RunFailedError if run.status == "failed" else RunCancelledError
        end = "cancelled" if run.path == "@on_cancel" else run.status
        how = "failed" if end == "failed" else f"was {end}"
        raise error(f"{self} has no result, because it {how}: {run.error_summary}", self)

    def wait(self, timeout: timedelta | None = None) -> Self:
        """Wait until the run has ended, in scripts, views and tests; return the run, read again.

        It asks the database, at intervals that grow from 10 ms to half a second, and holds no transaction. Under the
        runtime ``"inline"`` and in the time machine it performs what is due meanwhile; the time machine moves its clock
        until the run has ended, for ``timeout`` at most (a year by default).

        Args:
            timeout: Longest time to wait, as a timedelta of zero or more. Default: no limit.

        Returns:
            The run itself, so that ``run.wait(...).result()`` is its result.

        Raises:
            RunTimeoutError: If the run has not ended in time. It names what the run waits for.
            EndlessWaitError: In a step, callback or handler; and inside a transaction, if the run has not ended.
            UnknownRunError: If its row was removed, or its transaction was rolled back.
            DefinitionError: If ``timeout`` is invalid.

        Example:
            A command that waits for a nightly import::

                run = engine.start("import_prices", upload_id=upload.pk)
                print(run.wait(timedelta(minutes=10)).result().rows)
        """
        what = f"wait() of {self}"
        check_timeout(timeout, what)
        refuse_inside_work(what, "Return run_subflow(...) or wait_for_event(...) from a step instead.")
        unfinished = type(self).unfinished().filter(pk=self.pk)
        has_ended = wait_until(alias_of(type(self)), lambda: not unfinished.exists(), timeout, what)
        self._read_again()
        if not has_ended:
            within = "" if timeout is None else f" within {timeout}"
            raise RunTimeoutError(f"{self} has not ended{within}: {self._why_unfinished()}.", self)
        return self

    def _read_again(self) -> None:
        try:
            self.refresh_from_db()
        except type(self).DoesNotExist:
            raise UnknownRunError(
                f"There is no {self} any more: it was removed (RETENTION_RUNS), or its transaction was rolled back."
            ) from None

    def _why_unfinished(self) -> str:
        """Return the status of the unfinished run, and what it waits for."""
        run: Any = self
        return f"it is {run.status} and waits for {self.waits_for(timezone.now()) or 'nothing (report a bug)'}"
