"""``time_machine``: days pass in milliseconds, and everything due on the way happens at its own time.

Time stands for the whole process until the test moves it. ``advance`` stops at each moment at which a row is due and
calls ``queues.drain.drain``, as a worker does; there is no second path through the engine. Rows that workers would
perform in parallel are performed one after the other, so the order is always the same.

In a ``TestCase`` nothing commits, so no ``on_commit`` hook runs: events that would occur in such a hook are due, and
``drain`` performs them. Other hooks are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from dateutil.relativedelta import relativedelta
from django.conf import settings
from django.utils import timezone

from ..events.models import CapturedWrite, CapturedWriteStatus, Event, EventStatus
from ..events.schedules.rows import ensure_rows
from ..exceptions import AutomationError, DefinitionError
from ..queues import notifier, waiting
from ..queues.drain import drain, draining
from ..queues.lease import revoke
from ..queues.registry import due_models, due_times, wakeables
from ..values.clock import aware, later, shift
from .assertions import assert_not_occurred, assert_occurred, runs_of
from .errors import ErrorCollector

INSTALL = 'Install it with: pip install "django-ai-automation[testing]"'

DRAIN_BUDGET = timedelta(seconds=0.25)
"""Real time for one ``drain``, before the machine checks whether rows are due without end."""

MAX_WAIT = timedelta(days=366)
"""How far ``run.wait()`` without a timeout moves the clock."""

Move = Callable[[datetime], None]


class TimeMachine:
    """Moves time in a test; ``time_machine`` yields it.

    The assertions of this package are its methods, too.

    Attributes:
        now: The moment at which time stands, a datetime.
        errors: A list of the exceptions that were raised since the time machine was started, the oldest first: by
            steps, callbacks and handlers, by functions of event definitions, and by the engine itself.

    Example:
        Nothing has failed in a year::

            with time_machine("2031-03-01T08:00+00:00") as machine:
                machine.advance(days=365)
                assert machine.errors == []
    """

    assert_occurred = staticmethod(assert_occurred)
    assert_not_occurred = staticmethod(assert_not_occurred)
    runs_of = staticmethod(runs_of)

    def __init__(self, travel: Move, collector: ErrorCollector, *, raise_errors: bool) -> None:
        self._travel = travel
        self._collector = collector
        self._raise_errors = raise_errors
        self._is_fresh = True

    @property
    def now(self) -> datetime:
        """The moment at which time stands."""
        return timezone.now()

    @property
    def errors(self) -> list[Exception]:
        return list(self._collector.errors)

    def process(self, *, raise_errors: bool | None = None) -> int:
        """Perform what is due now, and what becomes due now through it.

        The clock does not move: a retry, a sleep or a date in the future waits for ``advance``. Rows are performed as a
        worker performs them, each in a transaction of its own; in a ``TestCase`` in a savepoint.

        Args:
            raise_errors: Raise what has failed since the last call, as ``time_machine`` describes. Default: what
                ``time_machine`` was given.

        Returns:
            The number of rows that were performed.

        Raises:
            AutomationError: If it is called by a step, callback or handler, or if rows are due at this moment without
                end.
            ParkedRowError: With ``raise_errors``, if a row was parked.

        Example:
            Save an entity, and let its workflow start::

                invoice.save()
                machine.process()
        """
        return self._live(self.now, raise_errors)

    def advance(
        self,
        by: timedelta | relativedelta | None = None,
        /,
        *,
        raise_errors: bool | None = None,
        **units: float,
    ) -> int:
        """Let a duration pass, and perform what becomes due on the way; otherwise the same as ``advance_to``.

        Args:
            by: A timedelta (elapsed time) or a relativedelta (wall clock of the current time zone). Give this or units.
            raise_errors: Raise what has failed since the last call, as ``time_machine`` describes. Default: what
                ``time_machine`` was given.
            **units: Numbers of ``weeks``, ``days``, ``hours``, ``minutes``, ``seconds``, as for a timedelta.

        Returns:
            The number of rows that were performed.

        Raises:
            DefinitionError: If both or none of ``by`` and units are given, if ``by`` is invalid, or if the duration is
                negative.
            AutomationError: If it is called by a step, callback or handler, or if rows are due at one moment without
                end.
            ParkedRowError: With ``raise_errors``, if a row was parked.

        Example:
            Two ways to let a day pass::

                machine.advance(days=1)
                machine.advance(relativedelta(days=1))
        """
        if (by is None) == (not units):
            raise DefinitionError("advance() takes a timedelta or units, as in advance(days=1, hours=3), and not both.")
        if by is not None and not isinstance(by, timedelta | relativedelta):
            raise DefinitionError(
                f"advance({by!r}): give a timedelta, a relativedelta or units, as in advance(days=1, hours=3)."
            )
        return self.advance_to(shift(self.now, timedelta(**units) if by is None else by), raise_errors=raise_errors)

    def advance_to(self, target: datetime | str, *, raise_errors: bool | None = None) -> int:
        """Let time pass until a moment, and perform what becomes due on the way.

        Each row is performed with the clock at the moment at which it is due, the earliest first. A date that a step
        moves is performed at the date it was moved to.

        Args:
            target: A datetime or a string in ISO format, with a time zone.
            raise_errors: Raise what has failed since the last call, as ``time_machine`` describes. Default: what
                ``time_machine`` was given.

        Returns:
            The number of rows that were performed.

        Raises:
            NaiveDatetimeError: If ``target`` has no time zone.
            DefinitionError: If ``target`` is in the past or is not a date.
            AutomationError: If it is called by a step, callback or handler, or if rows are due at one moment without
                end.
            ParkedRowError: With ``raise_errors``, if a row was parked.

        Example:
            Go to the last day of the year::

                machine.advance_to("2031-12-31T12:00+01:00")
        """
        goal = moment_of(target, "advance_to(...)")
        if goal < self.now:
            raise DefinitionError(
                f"advance_to({goal.isoformat()}) is before the present {self.now.isoformat()}: time only goes forward. "
                "Start another time_machine(...) for an earlier date."
            )
        return self._live(goal, raise_errors)

    def _live(self, goal: datetime, raise_errors: bool | None) -> int:
        if draining():
            raise AutomationError(
                "The time machine was moved by a step, callback or handler. Only the test may move it; a step that "
                "shall wait returns sleep(...)."
            )
        performed = self._perform()
        while (due := _next_due()) is not None and due <= goal:
            # Not before now: a row that another connection has locked is still due.
            self._move(max(due, self.now))
            performed += self._perform()
        self._move(goal)
        self._collector.settle(raising=self._raise_errors if raise_errors is None else raise_errors)
        return performed

    def _wait(self, is_over: Callable[[], bool], timeout: timedelta | None) -> bool:
        """Let time pass until ``is_over()``; return whether it is. What ``run.wait()`` does while time stands."""
        goal = later(self.now, MAX_WAIT if timeout is None else timeout)
        self._perform()
        while not is_over() and (due := _next_due()) is not None and due <= goal:
            self._move(max(due, self.now))
            self._perform()
        found = is_over()
        if not found and timeout is not None:
            self._move(goal)
        self._collector.settle(raising=self._raise_errors)
        return found

    def _move(self, moment: datetime) -> None:
        if moment != self.now:
            self._travel(moment)
            self._collector.moved()

    def _perform(self) -> int:
        """Perform until nothing is due at this moment."""
        if self._is_fresh:
            self._is_fresh = False
            _bring_forward(self.now)
        self._collector.count_round(_due_rows)
        _bring_writes_forward(self.now)
        performed = drain(budget=DRAIN_BUDGET)
        while _bring_writes_forward(self.now):
            performed += drain(budget=DRAIN_BUDGET)
        return performed


@contextmanager
def time_machine(
    start: datetime | str | None = None, *, raise_errors: bool = False, schedules: bool = False
) -> Iterator[TimeMachine]:
    """Stop time in this process, and yield the ``TimeMachine`` that moves it.

    It works in a ``TestCase`` and in a ``TransactionTestCase``. While it is active, commits wake no worker: rows are
    performed by the time machine alone.

    Args:
        start: The moment to begin at, a datetime or a string in ISO format, with a time zone. Default: the present
            time.
        raise_errors: Let ``process``, ``advance`` and ``advance_to`` raise the exceptions that have been added to
            ``errors`` since the last call (one as it is, several as an ``ExceptionGroup``), and ``ParkedRowError`` for
            a row that was parked for another reason. They raise after everything due is performed and committed.
            Default False.
        schedules: Insert the rows of the schedules that the code declares, so that they are fired as time passes.
            Default False: a test is about its own rows.

    Yields:
        The ``TimeMachine``.

    Raises:
        ImportError: If the package time-machine is missing or too old.
        NaiveDatetimeError: If ``start`` has no time zone.
        DefinitionError: If ``start`` is not a date.
        AutomationError: If another time machine is active.

    Example:
        An invoice is overdue after 30 days::

            with time_machine("2031-03-01T08:00+00:00", raise_errors=True) as machine:
                invoice = Invoice.objects.create(due_on=machine.now + timedelta(days=30))
                machine.advance(days=30)
                assert_occurred("invoice_overdue", invoice)
    """
    global _on
    if _on:
        raise AutomationError("Another time machine is on already: leave its block first, or move that one.")
    moment = timezone.now() if start is None else moment_of(start, "time_machine(...)")
    with _travelling() as travel:
        travel(moment)
        before, collector = notifier._override, ErrorCollector()
        notifier.set_notifier(notifier.SilentNotifier())
        collector.start()
        _on = True
        machine = TimeMachine(travel, collector, raise_errors=raise_errors)
        waiting.set_waiting(machine._wait)
        try:
            if schedules:
                ensure_rows(moment)
            yield machine
        finally:
            _on = False
            waiting.set_waiting(None)
            collector.stop()
            notifier.set_notifier(before)


_on = False


@contextmanager
def _travelling() -> Iterator[Move]:
    """Stop time, and yield the function that moves it."""
    try:
        import time_machine as library
    except ImportError as error:
        raise ImportError(f"time_machine() needs the package time-machine. {INSTALL}") from error
    if (found := version("time-machine")).startswith(("1.", "2.")):
        # Before 3.0 it stopped time.monotonic too, and a drain with a budget would never end.
        raise ImportError(f"time_machine() needs the package time-machine >= 3, and {found} is installed. {INSTALL}")
    epoch = datetime.fromtimestamp(0, UTC)
    with library.travel(0, tick=False) as traveller:
        is_active = epoch

        def travel(moment: datetime) -> None:
            nonlocal is_active
            # By a difference, not to a date: a date with a zone would change the time zone of the whole process.
            traveller.shift(moment.astimezone(UTC) - is_active)
            is_active = moment.astimezone(UTC)

        yield travel


def moment_of(value: datetime | str, what: str) -> datetime:
    """Return ``value``, a datetime or a string in ISO format, as a moment in time.

    Raises ``NaiveDatetimeError`` and ``DefinitionError``.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise DefinitionError(
                f'{what}: {value!r} is not an ISO date; write it as in "2030-01-07T12:00+01:00".'
            ) from error
    moment = aware(value, what)
    if not settings.USE_TZ and timezone.is_aware(moment):
        return timezone.make_naive(moment)
    return moment


def _next_due() -> datetime | None:
    return min(due_times().values(), default=None)


def _bring_forward(now: datetime) -> None:
    """Make immediate events due that were saved later than ``now``, in ``setUpTestData`` before the machine started."""
    for event in Event.objects.filter(status=EventStatus.PENDING, armed=True, event_created_at__gt=now, attempt=0):
        definition, row = event.definition, Event.objects.filter(pk=event.pk)
        if event.is_free and event.at == event.event_created_at:
            revoke(row, wake_at=now, at=now)
        elif definition is not None and not definition.is_scheduled:
            revoke(row, wake_at=now)


def _bring_writes_forward(now: datetime) -> int:
    """Make captured writes due: triggers read the clock of the database, which may be ahead. Return how many."""
    if CapturedWrite not in wakeables():
        return 0
    rows = CapturedWrite.objects.filter(wake_at__gt=now, lease=None, status=CapturedWriteStatus.PENDING)
    return revoke(rows, wake_at=now)


def _due_rows() -> list[Any]:
    """Return some of the rows that are due now, for an error message."""
    now = timezone.now()
    return [row for model in due_models(now) for row in model._base_manager.filter(wake_at__lte=now)[:5]]
