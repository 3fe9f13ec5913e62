"""``time_machine``: a test lives through days in milliseconds, and everything due on the way happens at its own time.

Time stands until the test moves it, for the whole process: ``travel`` below is all that there is of it. On the way to
its goal ``advance`` stops at each moment at which a row is due and calls ``queues.drain.drain`` with the live clock, as
a worker does; there is no second path through the engine. What a worker would do in parallel is done here in turn, so
the order is always the same.

Inside a ``TestCase`` nothing ever commits, so no hook runs after a commit: what a process does there is due, and done
by the drain. Hooks that belong to others are left alone.
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

from ..events.models import Event, EventStatus
from ..exceptions import AutomationError, DefinitionError
from ..queues import notifier
from ..queues.drain import drain, draining
from ..queues.lease import revoke
from ..queues.registry import due_models, due_times
from ..values.clock import aware, shift
from .assertions import assert_not_occurred, assert_occurred, runs_of
from .errors import ErrorCollector

INSTALL = 'Install it with: pip install "django-ai-automation[testing]"'

BREATH = timedelta(seconds=0.25)
"""How much real time the drain gets before the machine looks whether it runs in circles."""

Move = Callable[[datetime], None]


class TimeMachine:
    """What a test has in its hands while ``time_machine`` is on.

    ``errors``: every exception that a step, callback or handler raised since the machine was switched on, or a
    condition, name, namespace or payload of an event, in a ``save()`` or later, and those of the engine itself, in
    order. The assertions are here too, for those who like one name.
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
        """Perform what is due now, and what becomes due now through it; return how many rows were performed.

        The clock stays where it is: a retry, a sleep or a date in the future waits for ``advance``. ``raise_errors``:
        for this call, whatever the machine was told. Raises ``AutomationError`` inside a step, and for rows that are
        due at this moment without end.
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
        """Let so much time pass, as in ``advance(hours=3)`` or ``advance(timedelta(days=1))``.

        A timedelta, and the units, count elapsed time; a relativedelta counts on the wall clock of the current time
        zone. Otherwise the same as ``advance_to``.
        """
        if (by is None) == (not units):
            raise DefinitionError("advance() takes either a timedelta or units, as in advance(days=1, hours=3).")
        if by is not None and not isinstance(by, timedelta | relativedelta):
            raise DefinitionError(
                f"advance({by!r}): give a timedelta, a relativedelta or units, as in advance(days=1, hours=3)."
            )
        return self.advance_to(shift(self.now, timedelta(**units) if by is None else by), raise_errors=raise_errors)

    def advance_to(self, target: datetime | str, *, raise_errors: bool | None = None) -> int:
        """Let time pass until ``target``, and return how many rows were performed on the way and there.

        Every row that becomes due is performed with the clock at its own time, the earliest first; a date that a step
        moves is met where it was moved to. ``target``: a datetime, or an ISO text, with a time zone. Raises
        ``NaiveDatetimeError``, ``DefinitionError`` for a target in the past, and whatever ``process`` raises.
        """
        goal = moment_of(target, "advance_to(...)")
        if goal < self.now:
            raise DefinitionError(
                f"advance_to({goal.isoformat()}) is before {self.now.isoformat()}, where time stands: time only goes "
                "forward. Start another time_machine(...) for an earlier date."
            )
        return self._live(goal, raise_errors)

    def _live(self, goal: datetime, raise_errors: bool | None) -> int:
        if draining():
            raise AutomationError(
                "The time machine was moved by a step, callback or handler. Only the test moves it; a step that wants "
                "time to pass returns sleep(...)."
            )
        performed = self._perform()
        while (due := _next_due()) is not None and due <= goal:
            # Not later than now: a row that drain could not take, for another connection holds it.
            self._move(max(due, self.now))
            performed += self._perform()
        self._move(goal)
        self._collector.settle(raising=self._raise_errors if raise_errors is None else raise_errors)
        return performed

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
        return drain(budget=BREATH)


@contextmanager
def time_machine(start: datetime | str | None = None, *, raise_errors: bool = False) -> Iterator[TimeMachine]:
    """Stop time in this process, and yield the ``TimeMachine`` that moves it.

    ``start``: a datetime, or an ISO text, with a time zone (default: the present moment). ``raise_errors``: let
    ``process`` and ``advance`` raise what ``errors`` has got since the last time, and ``ParkedRowError`` for rows that
    were parked for another reason, once everything that was due is done and its state committed.

    Works in a ``TransactionTestCase`` and in a ``TestCase``. While it is on, commits ring no executor: nothing is
    performed but by the machine. Raises ``ImportError`` where the package time-machine is missing or too
    old, ``NaiveDatetimeError``, and ``AutomationError`` inside another time machine.

        with time_machine("2030-01-07T12:00+01:00") as machine:
            stay = Reservation.objects.create(status="confirmed", checkin_at=machine.now + timedelta(days=3))
            machine.advance(days=3)
            assert_occurred("checkin_due", stay)
    """
    global _on
    if _on:
        raise AutomationError("A time machine is on already, and there is only one time. Move that one.")
    moment = timezone.now() if start is None else moment_of(start, "time_machine(...)")
    with _travelling() as travel:
        travel(moment)
        before, collector = notifier._override, ErrorCollector()
        notifier.set_notifier(notifier.SilentNotifier())
        collector.start()
        _on = True
        try:
            yield TimeMachine(travel, collector, raise_errors=raise_errors)
        finally:
            _on = False
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
        # Before 3.0 it stopped time.monotonic too, and a drain with a budget would never come to its end.
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
    """Return ``value``, a datetime or an ISO text, as a moment in time. Raises ``NaiveDatetimeError`` and
    ``DefinitionError``."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise DefinitionError(
                f'{what}: {value!r} is no ISO date; write it as in "2030-01-07T12:00+01:00".'
            ) from error
    moment = aware(value, what)
    if not settings.USE_TZ and timezone.is_aware(moment):
        return timezone.make_naive(moment)
    return moment


def _next_due() -> datetime | None:
    return min(due_times().values(), default=None)


def _bring_forward(now: datetime) -> None:
    """Make immediate events due that were saved at a later time than ``now``: for the whole class, before the machine
    was switched on."""
    for event in Event.objects.filter(status=EventStatus.PENDING, armed=True, event_created_at__gt=now, attempt=0):
        definition = event.definition
        if definition is not None and not definition.is_scheduled:
            revoke(Event.objects.filter(pk=event.pk), wake_at=now)


def _due_rows() -> list[Any]:
    """Return some of the rows that are due now, for a message."""
    now = timezone.now()
    return [row for model in due_models(now) for row in model._base_manager.filter(wake_at__lte=now)[:5]]
