"""``when=``: which events a workflow wants, evaluated when the run is to start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from django_ai.automation import Debounce, Retry, RetryAfter, complete, engine, event_workflow, on_fail, step, wait
from django_ai.automation.events import claims
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import WorkflowRun, WorkflowStatus
from tests.apps.reservations.models import Document, Reservation
from tests.support.rows import change, effects, history, leave, status, the_run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Nothing(BaseModel):
    pass


def wanted_when(when: Any, event_name: str = "document_uploaded", **options: Any) -> type:
    """Declare an event workflow with ``when``."""

    @event_workflow(event_name, name="wanted", when=when, **options)
    class Wanted:
        Context = Nothing

        @classmethod
        def create_context(cls, event):
            leave("context")
            return cls.Context()

        @step(start=True)
        def begin(self):
            leave("begin")
            return complete()

    return Wanted


def upload(kind: str = "passport") -> Document:
    return Document.objects.create(reservation=Reservation.objects.create(), kind=kind)


def test_a_false_when_ends_the_run_with_the_reason(work):
    wanted_when(lambda event: event.entity.kind == "visa")
    upload("passport")
    work()
    run = the_run()
    assert (run.status, run.started_at, run.wake_at, effects()) == ("cancelled", None, None, [])
    assert run.error == (f"Skipped: when= of wanted was not true for {run.event} when this run was to start.")
    upload("visa")
    work()
    assert (status(WorkflowRun.objects.latest("pk")), effects()) == ("completed", ["context", "begin"])


def test_it_is_evaluated_when_the_run_is_to_start_not_when_the_event_occurs(clock, work):
    wanted_when(lambda event: event.entity.kind == "visa")
    document = upload("visa")
    change(document, kind="passport")  # before a worker has reached the run
    work()
    assert status(the_run()) == "cancelled"


@pytest.mark.parametrize(("note", "expected"), [("yes", "completed"), ("", "cancelled")])
def test_the_when_of_a_planned_run_is_evaluated_at_its_date(clock, work, note, expected):
    wanted_when(lambda event: event.entity.note == "yes", "checkin_due", offset=-HOUR)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    run = the_run()
    assert run.status == "waiting"
    change(stay, note=note)
    work(clock.now + DAY - HOUR)
    assert status(run) == expected


def test_the_condition_of_the_event_is_evaluated_first(clock, work):
    wanted_when(lambda event: leave("asked"), "checkin_due", offset=-HOUR)
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    Reservation.objects.update(status="cancelled")
    work(clock.now + DAY - HOUR)
    assert (status(the_run()), effects()) == ("withdrawn", [])


def test_the_when_of_a_claimed_event_is_not_evaluated(work):
    @event_workflow("reservation_confirmed", name="owner", ignores_claims=True)
    class Owner:
        Context = Nothing

        @step(start=True)
        def begin(self):
            claims.hold("document_uploaded", {}, expires_in=None)
            return wait("never")

    Reservation.objects.create(status="confirmed")
    work()
    wanted_when(lambda event: leave("asked"))
    upload()
    work()
    assert (status(the_run(name="wanted")), effects()) == ("cancelled", [])
    assert "claimed" in the_run(name="wanted").error


def collects_when(when: Any) -> None:
    @event_workflow("document_uploaded", name="wanted", when=when, debounce=Debounce(MINUTE))
    class Collects:
        class Context(BaseModel):
            kinds: list[str]

        @classmethod
        def create_context(cls, events):
            return cls.Context(kinds=[event.entity.kind for event in events])

        @step(start=True)
        def begin(self):
            return complete()


@pytest.mark.parametrize(
    ("wants", "status", "kinds"), [({"a", "c"}, "completed", ["a", "c"]), ({"x"}, "cancelled", None)]
)
def test_the_run_of_a_window_gets_the_events_for_which_when_is_true(clock, work, wants, status, kinds):
    collects_when(lambda event: event.entity.kind in wants)
    for kind in "abc":
        upload(kind)
    clock.tick(MINUTE)
    work()
    run = the_run()
    assert (run.status, run.data.get("kinds")) == (status, kinds)
    if kinds is None:
        assert run.error == "Skipped: when= of wanted was not true for 3 events when this run was to start."


def test_a_when_that_raises_keeps_the_events_of_the_window(clock, work):
    collects_when(Flaky(2, ConnectionError("away")))
    for kind in "abc":
        upload(kind)
    for seconds in (60, 1, 2):
        clock.tick(seconds * SECOND)
        work()
    assert (the_run().status, the_run().data) == ("completed", {"kinds": ["a", "b", "c"]})


class Flaky:
    """Raises as often as the test wants."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error = failures, error

    def __call__(self, event):
        if self.failures:
            self.failures -= 1
            raise self.error
        return True


@pytest.mark.exact_times
@pytest.mark.parametrize("offset", [None, -HOUR])
def test_a_when_that_raises_is_retried_and_uses_up_no_attempt_of_the_first_step(clock, work, offset):
    flaky = Flaky(2, ConnectionError("the price service is away"))
    wanted_when(flaky, "checkin_due", offset=offset)
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.now += DAY + (offset or timedelta(0))
    for attempt, delay in enumerate([SECOND, 2 * SECOND], 1):
        work()
        run = the_run()
        assert (run.status, run.failed_evaluations, run.wake_at) == ("waiting", attempt, clock.now + delay)
        assert run.attempt == 0
        assert run.error.startswith(f"when= of wanted, called with {run.event}, raised:\nTraceback")
        assert "the price service is away" in run.error
        (reason,) = [each.waits_for for each in explain(clock.now, ["workflow run"])]
        assert reason.startswith(f"its evaluation {attempt + 1}, ")
        assert reason.endswith(": ConnectionError: the price service is away")
        clock.tick(delay)
    work()
    run = the_run()
    assert (run.status, run.error, effects()) == ("completed", "", ["context", "begin"])
    assert history(run) == [("begin", 1, "complete")]


@pytest.mark.parametrize("offset", [None, -HOUR])
def test_a_when_that_keeps_raising_parks_the_run(clock, work, offset):
    flaky = Flaky(5, ConnectionError("away"))
    wanted_when(flaky, "checkin_due", offset=offset)
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.now += DAY
    for _ in range(9):
        work()
        clock.tick(MINUTE)
    run = the_run()
    assert (run.status, run.wake_at, flaky.failures, effects()) == ("parked", None, 0, [])
    engine.resume(run)
    work()
    assert (status(run), effects()) == ("completed", ["context", "begin"])


def test_a_misuse_of_this_package_in_a_when_parks_the_run_at_once(work):
    wanted_when(Flaky(1, DefinitionError("wrong")))
    upload()
    work()
    assert (status(the_run()), the_run().wake_at) == ("parked", None)


@pytest.mark.parametrize("offset", [None, -HOUR])
def test_evaluations_of_when_do_not_reset_the_attempts_of_the_first_step(clock, work, offset):
    """The run has not started, so ``when`` is asked before each of them."""
    asked = []

    @event_workflow("checkin_due", offset=offset, when=lambda event: asked.append(event) or True)
    class Fails:
        Context = Nothing

        @classmethod
        def create_context(cls, event):
            raise ValueError("no")

        @step(start=True, retry=Retry(max_attempts=3, base_delay=SECOND))
        def begin(self):
            return complete()

    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.now += DAY + (offset or timedelta(0))
    for _ in range(9):
        work()
        clock.tick(MINUTE)
    run = the_run()
    assert (run.status, run.attempt, len(asked)) == ("failed", 3, 3)


class Counted:
    """Raises each error of ``errors`` in turn, and then returns True; counts its calls."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self, event=None):
        self.calls += 1
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        return True


def counts_context(when: Any, context: Counted, undo: Counted | None = None, **options: Any) -> None:
    """Declare a workflow whose first step has three attempts, and whose Context cannot always be made."""

    @event_workflow("checkin_due", when=when, **options)
    class Counts:
        Context = Nothing

        @classmethod
        def create_context(cls, event):
            context()
            return cls.Context()

        @step(start=True, retry=Retry(max_attempts=3, base_delay=SECOND))
        def begin(self):
            leave("begin")
            return complete()

        @on_fail(retry=Retry(max_attempts=9, base_delay=SECOND))
        def undo(self):
            if undo is not None:
                undo()


def work_for_minutes(clock, work, number: int = 12) -> WorkflowRun:
    for _ in range(number):
        work()
        clock.tick(MINUTE)
    return the_run()


@pytest.mark.parametrize("offset", [None, -HOUR])
@pytest.mark.parametrize("failures_of_path", [0, 5])
@pytest.mark.parametrize("has_when", [True, False])
def test_a_run_that_is_resumed_before_its_start_has_all_attempts_again(clock, work, offset, failures_of_path, has_when):
    """Neither the attempts before it was resumed nor those of its path count."""
    away = ConnectionError("away")
    context, undo = Counted(*[away] * 9), Counted(*[away] * failures_of_path)
    counts_context((lambda event: True) if has_when else None, context, undo, offset=offset)
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.now += DAY + (offset or timedelta(0))
    run = work_for_minutes(clock, work)
    assert (run.status, context.calls, undo.calls) == ("failed", 3, failures_of_path + 1)
    engine.resume(run)
    run = work_for_minutes(clock, work)
    assert (run.status, context.calls) == ("failed", 6)
    engine.resume(run)
    context.errors = context.errors[:2]
    run = work_for_minutes(clock, work)
    assert (run.status, context.calls, effects()) == ("completed", 9, ["begin"])


@pytest.mark.parametrize("offset", [None, -HOUR])
def test_attempts_and_evaluations_that_alternate_do_not_count_for_each_other(clock, work, offset):
    away = ConnectionError("away")
    when = Counted(away, away, away, away, None, away, away, away, away, None, away, None)
    context = Counted(away, away)
    counts_context(when, context, offset=offset)
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.now += DAY + (offset or timedelta(0))
    run = work_for_minutes(clock, work, 24)
    assert (run.status, run.failed_evaluations, when.calls, context.calls) == ("completed", 0, 12, 3)
    assert history(run) == [("begin", 1, "error"), ("begin", 2, "error"), ("begin", 3, "complete")]


def test_a_run_that_is_resumed_before_its_start_has_all_evaluations_again(clock, work):
    when = Counted(*[ConnectionError("away")] * 9)
    wanted_when(when)
    upload()
    run = work_for_minutes(clock, work)
    assert (run.status, when.calls) == ("parked", 5)
    engine.resume(run)
    run = work_for_minutes(clock, work)
    assert (run.status, run.failed_evaluations, when.calls) == ("completed", 0, 10)


@pytest.mark.parametrize("is_deferred", [False, True])
def test_a_run_that_is_retried_before_its_start_starts_at_its_new_date(clock, work, is_deferred):
    when, context = Counted(ConnectionError("away")), Counted(RetryAfter(SECOND))
    counts_context(None if is_deferred else when, context if is_deferred else Counted(), offset=-HOUR)
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + DAY)
    clock.now += DAY - HOUR
    work()
    run = the_run()
    assert (run.failed_evaluations, run.deferrals) == ((0, 1) if is_deferred else (1, 0))
    change(stay, checkin_at=clock.now + DAY)
    work(clock.tick(MINUTE))
    run = the_run()
    assert (run.status, run.failed_evaluations, run.deferrals, run.error) == ("waiting", 0, 0, "")
    change(stay, checkin_at=clock.now + 2 * HOUR)
    work(clock.tick(HOUR))
    assert (status(run), effects()) == ("completed", ["begin"])


def test_the_when_of_a_started_run_is_not_evaluated_again(clock, work):
    answers = [True, False]

    @event_workflow("document_uploaded", name="waits", when=lambda event: answers.pop(0))
    class Waits:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return wait("go", then=self.end)

        @step()
        def end(self):
            return complete()

    upload()
    work()
    engine.signal("go")
    work()
    assert (status(the_run()), answers) == ("completed", [False])


def test_a_when_reads_the_entity_and_may_query(work):
    def is_second(event):
        return Document.objects.filter(reservation=event.entity.reservation_id, pk__lt=event.entity.pk).exists()

    wanted_when(is_second)
    first = upload()
    Document.objects.create(reservation_id=first.reservation_id)
    work()
    assert list(WorkflowRun.objects.order_by("pk").values_list("status", flat=True)) == [
        WorkflowStatus.CANCELLED,
        WorkflowStatus.COMPLETED,
    ]


def test_the_time_machine_collects_the_errors_of_when():
    wanted_when(Flaky(1, ConnectionError("away")))
    with time_machine("2030-01-07T12:00+01:00") as machine:
        upload()
        machine.advance(seconds=1)
        assert [type(each) for each in machine.errors] == [ConnectionError]
        assert status(the_run()) == "completed"


def generating(event):
    yield True


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (True, r"when=True must be a function of the event"),
        ("visa", r"when='visa' must be a function of the event"),
        (lambda: True, r"when: .*is called with \(event\)"),
        (lambda event, ctx: True, r"when: .*is called with \(event\)"),
        (generating, r"when: generating must be a plain function or async def"),
    ],
)
def test_what_is_no_function_of_the_event_is_refused_at_import(when, said):
    with pytest.raises(DefinitionError, match=rf"@event_workflow\('document_uploaded'\): {said}"):
        wanted_when(when)
