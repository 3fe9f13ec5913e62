"""``upcoming(entity)``: what is planned for an object, of every layer, by date and with a reason."""

from __future__ import annotations

from datetime import timedelta

import pytest
from dateutil.relativedelta import relativedelta
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    Debounce,
    EventDefinition,
    Retry,
    Upcoming,
    agent,
    complete,
    engine,
    event_workflow,
    fail,
    handler,
    on_event,
    on_event_created,
    on_fail,
    run_subflow,
    sleep,
    step,
    upcoming,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.events.upcoming import offset_text
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Booking, GroupBooking, Person
from tests.apps.reservations.models import Reservation
from tests.support.rows import event_of
from tests.support.workflows import flow

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.exact_times]

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
IF_TRUE = "if its condition is true by then (it is false now)"


class Empty(BaseModel):
    pass


class OfGuest(BaseModel):
    guest_id: int
    least: int = 0


def shown(entity, clock, **options) -> list[tuple[str, str, float | None, str]]:
    """Return what is upcoming, with hours from now."""
    return [
        (each.kind, each.name, None if each.at is None else (each.at - clock()) / HOUR, each.reason)
        for each in upcoming(entity, **options)
    ]


def book(clock, **values) -> Reservation:
    return Reservation.objects.create(**{"status": "confirmed", "checkin_at": clock() + DAY, **values})


# -- events and callbacks ----------------------------------------------------------------------------------------------


def test_dates_of_events_and_offsets_of_callbacks(clock, work):
    @on_event("checkin_due", offset=-3 * HOUR, name="warn")
    @on_event("checkin_due", name="greet")
    @on_event("checkin_due", offset=2 * DAY + HOUR, recheck=True, name="ask")
    @on_event_created("checkin_due", name="never listed")
    def call(event):
        pass

    stay = book(clock, checkout_at=clock() + 5 * DAY)
    work()
    assert shown(stay, clock) == [
        ("callback", "warn", 21, "3 hours before 'checkin_due'"),
        ("event", "checkin_due", 24, "its date 'checkin_at'"),
        ("callback", "greet", 24, "when 'checkin_due' occurs"),
        ("callback", "ask", 73, "2 days 1 hour after 'checkin_due', if its condition is still true then"),
        ("event", "checkout_due", 120, "its date 'checkout_at'"),
    ]
    (first, *_) = upcoming(stay)
    assert isinstance(first, Upcoming)
    assert first.row == event_of(stay, "checkin_due")
    work(clock.tick(DAY))
    assert [name for _, name, *_ in shown(stay, clock)] == ["ask", "checkout_due"]
    work(clock.tick(9 * DAY))
    assert shown(stay, clock) == []


def test_what_a_false_condition_holds_back_says_so(clock, work):
    @on_event("checkin_due", offset=-HOUR, name="warn")
    def warn(event):
        pass

    stay = book(clock, status="pending")
    work()
    assert shown(stay, clock) == [
        ("callback", "warn", 23, f"1 hour before 'checkin_due', {IF_TRUE}"),
        ("event", "checkin_due", 24, f"its date 'checkin_at', {IF_TRUE}"),
    ]


def test_events_that_are_collected(clock, work):
    @on_event("checkin_due", name="collected", debounce=Debounce(HOUR))
    def collected(events):
        pass

    stay = book(clock)
    expected = ("callback", "collected", 24, "when 'checkin_due' occurs, collected with other events")
    assert shown(stay, clock)[1] == expected
    work(clock.tick(DAY))
    assert [(name, hours) for _, name, hours, _ in shown(stay, clock)] == [("collected", 1)]


def test_only_what_concerns_the_object(clock):
    book(clock)
    assert shown(Reservation.objects.create(status="confirmed"), clock) == []
    assert shown(Person.objects.create(), clock) == []


def test_retries_and_what_is_parked(clock, work):
    @on_event("checkin_due", retry=Retry(max_attempts=2, base_delay=HOUR), name="stumbles")
    def stumbles(event):
        raise RuntimeError("always")

    stay = book(clock, checkin_at=clock())
    work()
    (found,) = upcoming(stay)
    row = CallbackExecution.objects.get()
    assert (found.kind, found.name, found.at, found.row) == ("callback", "stumbles", clock() + HOUR, row)
    assert found.reason.startswith("attempt 2, ")
    CallbackExecution.objects.update(status="parked", wake_at=None)
    assert [(each.at, each.reason) for each in upcoming(stay)] == [
        (None, "an operator, to resume it: RuntimeError: always")
    ]


def test_a_condition_that_raises_is_evaluated_again(clock, work, declare):
    def condition(stay):
        raise RuntimeError("out of order")

    declare(Reservation, EventDefinition("checkin_due", condition, date_field="checkin_at"))
    stay = book(clock)
    (found,) = upcoming(stay)
    assert (found.name, found.at) == ("checkin_due", event_of(stay, "checkin_due").wake_at)
    assert found.reason.startswith("its next attempt, ")
    assert found.reason.endswith("RuntimeError: out of order")
    Event.objects.update(status="parked", wake_at=None)
    assert [(each.at, each.reason) for each in upcoming(stay)] == [
        (None, "an operator, to resume it: RuntimeError: out of order")
    ]


# -- workflows ---------------------------------------------------------------------------------------------------------


def test_planned_runs_and_runs_to_start(clock, work):
    @event_workflow("checkin_due", offset=-2 * HOUR, name="prepare")
    class Prepare:
        Context = Empty

        @step(start=True)
        def first(self):
            return complete()

    @event_workflow("checkin_due", name="welcome")
    class Welcome:
        Context = Empty

        @step(start=True)
        def first(self):
            return complete()

    stay = book(clock)
    planned = WorkflowRun.objects.get()
    date = "2030-01-08 11:00:00"
    assert shown(stay, clock) == [
        ("workflow", "prepare", 22, f"its date, {date}"),
        ("event", "checkin_due", 24, "its date 'checkin_at'"),
        ("workflow", "welcome", 24, "when 'checkin_due' occurs"),
    ]
    assert upcoming(stay)[0].row == planned
    work(clock.tick(22 * HOUR))  # it has run, before the event has occurred
    assert [name for _, name, *_ in shown(stay, clock)] == ["checkin_due", "welcome"]


def test_a_planned_run_that_a_false_condition_withdraws_may_come_again(clock):
    @event_workflow("checkin_due", offset=-2 * HOUR, name="prepare")
    class Prepare:
        Context = Empty

        @step(start=True)
        def first(self):
            return complete()

    stay = book(clock)
    stay.status = "cancelled"
    stay.save()
    assert shown(stay, clock) == [
        ("workflow", "prepare", 22, f"2 hours before 'checkin_due', {IF_TRUE}"),
        ("event", "checkin_due", 24, f"its date 'checkin_at', {IF_TRUE}"),
    ]


def test_runs_of_the_object_that_sleep_wait_or_are_parked(clock, work):
    def declared(name, outcome):
        @event_workflow("reservation_confirmed", name=name)
        class Declared:
            Context = Empty

            @step(start=True)
            def first(self):
                return outcome(self)

    declared("asleep", lambda self: sleep(3 * HOUR))
    declared("patient", lambda self: wait("answer", timeout=5 * HOUR))
    declared("waiting", lambda self: wait("answer"))
    declared("parent", lambda self: run_subflow("child"))
    flow(lambda self: wait("answer"), "child")
    stay = Reservation.objects.create(status="confirmed")
    work()
    WorkflowRun.objects.filter(name="child").update(status="parked", wake_at=None, error="a reason")
    assert shown(stay, clock) == [
        ("workflow", "asleep", 3, "its timer, 2030-01-07 16:00:00"),
        ("workflow", "patient", 5, "the signal 'answer', until 2030-01-07 18:00:00"),
        ("workflow", "waiting", None, "the signal 'answer'"),
        ("workflow", "parent", None, "the end of its child run"),
        ("workflow", "child", None, "an operator, to resume it: a reason"),
    ]
    WorkflowRun.objects.filter(name="asleep").update(lease="host:1:token", wake_at=clock() + HOUR)
    found = upcoming(stay)[0]
    assert (found.name, found.at, found.reason) == ("asleep", clock(), "host:1, which has leased it")


def test_runs_of_the_object_that_wait_for_several_things(clock, work):
    def branches(self):
        return {"one": wait("answer"), "child": run_subflow("child"), "later": sleep(3 * HOUR)}

    @event_workflow("reservation_confirmed", name="first of")
    class FirstOf:
        Context = Empty

        @step(start=True)
        def first(self):
            return wait_any(branches(self), timeout=5 * HOUR)

    @event_workflow("reservation_confirmed", name="all of")
    class AllOf:
        Context = Empty

        @step(start=True)
        def first(self):
            return fail("no")

        @on_fail
        def undo(self):
            return wait_all(branches(self))

    flow(lambda self: complete() if self.context.n else wait("never"), "child")
    stay = Reservation.objects.create(status="confirmed")
    work()
    three, five = "2030-01-07 16:00:00", "2030-01-07 18:00:00"
    found = [each for each in shown(stay, clock) if each[1] != "child"]
    child, timer = "the end of its child run (child)", f"its timer, {three} (later)"
    assert found == [
        ("workflow", "first of", 3, f"the signal 'answer' (one) or {child} or {timer}, until {five}"),
        ("workflow", "all of", 3, f"the signal 'answer' (one) and {child} and {timer} (on the path of its @on_fail)"),
    ]


def test_runs_of_nobody_that_wait_for_an_event_of_the_object(clock, work):
    class Context(BaseModel):
        pk: int

    def start(name, event, match, timeout=None, pk=0):
        @step(start=True)
        def first(self):
            return wait_for_event(event, timeout, match=match)

        workflow(name)(type(name, (), {"Context": Context, "first": first, "__module__": name}))
        return engine.start(name, pk=pk)

    stay, other = book(clock), book(clock)
    mine = start("mine", "guest_docs_uploaded", {"pk": "{{ ctx.pk }}"}, pk=stay.pk)
    start("dated", "checkin_due", {"pk": "{{ ctx.pk }}"}, pk=stay.pk)
    start("impatient", "checkin_due", {"pk": "{{ ctx.pk }}"}, 2 * HOUR, pk=stay.pk)
    start("of another", "guest_docs_uploaded", {"pk": "{{ ctx.pk }}"}, pk=other.pk)
    start("of any", "guest_docs_uploaded", {})
    work()
    found = [each for each in upcoming(stay) if each.kind == "workflow"]
    assert [(each.name, each.at and (each.at - clock()) / HOUR) for each in found] == [
        ("impatient", 2),
        ("dated", 24),
        ("mine", None),
    ]
    assert found[2].row == mine
    assert found[2].reason == f"the event 'guest_docs_uploaded' with {{'pk': {stay.pk}}}"


def test_runs_that_wait_for_a_choice(clock, work):
    def paid():
        return wait_for_event("guest_docs_uploaded", match={"pk": "{{ ctx.n }}"})

    flow(lambda self: wait("answer"), "child")
    flow(lambda self: wait_any(paid=paid(), later=sleep(5 * HOUR), other=run_subflow("child")), "first")
    flow(lambda self: wait_all(paid=paid(), other=wait("answer"), timeout=6 * HOUR), "both")
    stay = book(clock)
    of_object = engine.start("first", n=stay.pk)
    engine.start("both", n=stay.pk)
    WorkflowRun.objects.filter(pk=of_object.pk).update(entity_type="app.reservation", entity_id=stay.pk)
    work()
    event = f"the event 'guest_docs_uploaded' with {{'pk': {stay.pk}}}"
    assert [each for each in shown(stay, clock) if each[0] == "workflow"] == [
        (
            "workflow",
            "first",
            5,
            f"{event} (paid) or its timer, 2030-01-07 18:00:00 (later) or the end of its child run (other)",
        ),
        ("workflow", "both", 6, f"{event} (paid)"),
        ("workflow", "child", None, "the signal 'answer'"),
    ]


def test_a_run_that_waits_ends_at_its_deadline_at_the_latest(clock, work):
    @event_workflow("reservation_confirmed", name="limited", deadline=2 * HOUR)
    class Limited:
        Context = Empty

        @step(start=True)
        def first(self):
            return wait("answer", timeout=5 * HOUR)

    @workflow("stranger", deadline=3 * HOUR)
    class Stranger:
        class Context(BaseModel):
            pk: int

        @step(start=True)
        def first(self):
            return wait_for_event("guest_docs_uploaded", match={"pk": "{{ ctx.pk }}"})

    stay = Reservation.objects.create(status="confirmed")
    engine.start("stranger", pk=stay.pk)
    work()
    deadline = "its deadline, 2030-01-07 15:00:00"
    assert shown(stay, clock) == [
        ("workflow", "limited", 2, f"the signal 'answer', until 2030-01-07 18:00:00 or {deadline}"),
        ("workflow", "stranger", 3, f"the event 'guest_docs_uploaded' with {{'pk': {stay.pk}}}"),
    ]


# -- agents ------------------------------------------------------------------------------------------------------------


def test_handlers_of_living_agents_and_agents_to_spawn(clock, work):
    guest, other = Person.objects.create(), Person.objects.create()

    @agent("companion", spawn_on="stay_over", match={"guest_id": "{{ ctx.guest_id }}"})
    class Companion:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("stay_due", offset=-HOUR)
        def before(self, ctx):
            pass

        @handler("stay_due", condition=lambda event, ctx: True)
        def at_once(self, ctx):
            pass

        @handler("stay_due", offset=HOUR, match={"guest_id": "{{ ctx.guest_id }}", "pk__gt": "{{ ctx.least }}"})
        def after(self, ctx):
            pass

    run = AgentManager.spawn("companion", guest_id=guest.pk)
    AgentManager.spawn("companion", guest_id=other.pk)
    AgentManager.spawn("companion", guest_id=guest.pk, least=10**6)
    work()
    booking = Booking.objects.create(guest=guest, starts_at=clock() + DAY, ends_at=clock() + 2 * DAY)
    work()
    found = [each for each in shown(booking, clock) if each[0] in ("agent", "handler")]
    condition = ", if the condition of the handler is true then"
    assert found == [
        ("handler", "companion.before", 23, "1 hour before 'stay_due'"),
        ("handler", "companion.before", 23, "1 hour before 'stay_due'"),
        ("handler", "companion.at_once", 24, f"when 'stay_due' occurs{condition}"),
        ("handler", "companion.at_once", 24, f"when 'stay_due' occurs{condition}"),
        ("handler", "companion.after", 25, "1 hour after 'stay_due', if its match still holds then"),
        ("agent", "companion", 48, "when 'stay_over' occurs"),
    ]
    rows = [each.row for each in upcoming(booking) if each.name == "companion.after"]
    assert rows == [run]
    work(clock.tick(DAY))
    assert [name for kind, name, *_ in shown(booking, clock) if kind == "handler"] == ["companion.after"]


def test_mailboxes_and_agents_of_the_object(clock, work):
    @agent("companion", spawn_on="booking_created")
    class Companion:
        Context = Empty

        @handler("booking_confirmed", retry=Retry(max_attempts=3, base_delay=HOUR))
        def confirmed(self, ctx):
            raise RuntimeError("always")

    booking = Booking.objects.create(guest=Person.objects.create(), status="confirmed")
    work()
    execution = HandlerExecution.objects.get()
    (found,) = [each for each in upcoming(booking) if each.kind == "handler"]
    assert (found.name, found.at, found.row) == ("companion.confirmed", clock() + HOUR, execution)
    assert upcoming(GroupBooking.objects.get(pk=booking.pk)) == upcoming(booking)
    AgentRun.objects.update(status="parked", wake_at=None, error="a reason")
    assert [(each.kind, each.at) for each in upcoming(booking)] == [("agent", None), ("handler", None)]


# -- the list ----------------------------------------------------------------------------------------------------------


def test_the_number_of_queries_does_not_depend_on_the_number_of_rows(clock, work):
    @event_workflow("reservation_confirmed", name="waits")
    class Waits:
        Context = Empty

        @step(start=True)
        def first(self):
            return run_subflow("child")

    flow(lambda self: wait_for_event("checkout_due", match={"pk": "{{ ctx.n }}"}), "child")

    @on_event("checkin_due", offset=-HOUR, name="warn")
    def warn(event):
        pass

    stay = book(clock)
    work()
    engine.start("child", n=stay.pk)
    work()
    with CaptureQueriesContext(connection) as few:
        number = len(upcoming(stay))
    for _ in range(10):
        engine.start("child", n=stay.pk)
    work()
    with CaptureQueriesContext(connection) as many:
        assert len(upcoming(stay)) == number + 10
    assert len(many) == len(few) <= 12


def test_the_limit_keeps_the_earliest(clock, work):
    stay = book(clock, checkout_at=clock() + 2 * DAY)
    assert [name for _, name, *_ in shown(stay, clock, limit=1)] == ["checkin_due"]
    for wrong in (0, "5", None):
        with pytest.raises(DefinitionError, match="positive whole number"):
            upcoming(stay, limit=wrong)


def test_it_takes_a_saved_instance():
    with pytest.raises(DefinitionError, match="has no primary key"):
        upcoming(Reservation())
    with pytest.raises(DefinitionError, match="must be a model instance"):
        upcoming("reservation")


def test_it_writes_nothing_and_evaluates_no_condition(clock, declare):
    def condition(stay):
        called.append(stay)
        return True

    called: list[object] = []
    declare(Reservation, EventDefinition("checkin_due", condition, date_field="checkin_at"))
    stay = book(clock)
    called.clear()
    before = list(Event.objects.values())
    assert len(upcoming(stay)) == 1
    assert called == []
    assert list(Event.objects.values()) == before


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (-HOUR, "1 hour before"),
        (2 * DAY + 3 * HOUR, "2 days 3 hours after"),
        (timedelta(minutes=-90), "1 hour 30 minutes before"),
        (SECOND, "1 second after"),
        (relativedelta(days=-1, hour=18, minute=0), "at 18:00, 1 day before"),
        (relativedelta(months=1, days=2), "1 month 2 days after"),
        (relativedelta(hour=7, minute=5, second=0, microsecond=0), "at 07:05 on the day of"),
        (relativedelta(hour=0, minute=0), "at 00:00 on the day of"),
        (relativedelta(days=-1, hour=9), "days=-1,hour=9 from"),
        (relativedelta(days=-1, hours=2), "days=-1,hours=+2 from"),
        (relativedelta(day=31), "day=31 from"),
        (relativedelta(second=5), "second=5 from"),
    ],
)
def test_offsets_in_words(offset, text):
    assert offset_text(offset) == text
