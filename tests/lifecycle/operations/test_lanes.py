"""Named queues and priorities: how rows get them, which rows a worker claims, and in which order."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_ai.automation import (
    AgentManager,
    Debounce,
    agent,
    complete,
    engine,
    event_workflow,
    get_run,
    handler,
    on_event,
    on_event_created,
    run_subflow,
    step,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues import due, lanes
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.lanes import Lane
from django_ai.automation.queues.registry import due_times
from django_ai.automation.queues.runtimes.tasks import reconcile
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.lanes import Word, leaving, start
from tests.support.rows import effects, leave, status

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def lane_of(row) -> tuple[str, int]:
    row.refresh_from_db()
    return row.queue, row.priority


# -- how rows get them -------------------------------------------------------------------------------------------------


def test_a_run_has_the_queue_and_priority_of_its_workflow():
    leaving(queue="reports", priority=7)
    assert lane_of(engine.start("lanes:leaves")) == ("reports", 7)
    leaving("lanes:plain")
    assert lane_of(engine.start("lanes:plain")) == ("", 0)


def test_a_function_gets_the_context_of_a_run_that_code_starts(work):
    leaving(priority=lambda context: 50 if context.urgent else -50)
    assert lane_of(engine.start("lanes:leaves", urgent=True)) == ("", 50)
    assert lane_of(engine.start("lanes:leaves")) == ("", -50)


def test_what_a_function_raises_reaches_the_code_that_starts_the_run():
    leaving(priority=lambda context: context.no_such_field)
    with pytest.raises(AttributeError, match="no_such_field"):
        engine.start("lanes:leaves")
    leaving(priority=lambda context: "high")
    with pytest.raises(ValueError, match="returned 'high'"):
        engine.start("lanes:leaves")
    assert not WorkflowRun.objects.exists()


def test_a_child_has_the_lane_of_its_own_workflow(work):
    leaving("lanes:child", queue="exports", priority=lambda context: len(context.word))

    @workflow("lanes:parent", queue="reports")
    class Parent:
        Context = Word

        @step(start=True)
        def begin(self):
            return run_subflow("lanes:child", word="seven", then=self.end)

        @step()
        def end(self):
            return complete()

    parent = engine.start("lanes:parent")
    work()
    assert status(parent) == "completed"
    assert lane_of(WorkflowRun.objects.get(parent=parent)) == ("exports", 5)


def test_rows_that_an_event_starts_have_the_lane_of_their_code(work):
    seen = []

    def by_status(event):
        seen.append(connection.in_atomic_block)
        return 10 * len(event.entity.status)

    @event_workflow("reservation_confirmed", name="lanes:caused", queue="reports", priority=by_status)
    class Caused:
        Context = Word

        @step(start=True)
        def begin(self):
            return complete()

    @on_event("reservation_confirmed", name="lanes:heard", queue="mail", priority=by_status)
    def heard(event):
        pass

    @on_event_created("reservation_confirmed", name="lanes:noted", priority=-3)
    def noted(event):
        pass

    @agent("lanes:spawned", spawn_on="reservation_confirmed", queue="care", priority=by_status)
    class Spawned:
        Context = Word

        @handler("reservation_confirmed")
        def answer(self):
            leave(f"answered in {get_run().queue}")

    Reservation.objects.create(status="confirmed")
    assert lane_of(WorkflowRun.objects.get()) == ("reports", 90)
    assert lane_of(CallbackExecution.objects.get(callback="lanes:heard")) == ("mail", 90)
    assert lane_of(CallbackExecution.objects.get(callback="lanes:noted")) == ("", -3)
    assert lane_of(AgentRun.objects.get()) == ("care", 90)
    assert seen == [False] * 3, "no transaction is open while user code runs, and each is called once"


def test_a_planned_run_has_its_lane_from_the_save_that_plans_it(clock, work):
    @event_workflow("checkin_due", offset=-HOUR, name="lanes:planned", queue="reports", priority=lambda event: 4)
    class Planned:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("planned")
            return complete()

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 2 * HOUR)
    assert lane_of(WorkflowRun.objects.get()) == ("reports", 4)
    stay.status = "pending"
    stay.save()
    stay.status = "confirmed"
    stay.save()
    assert lane_of(WorkflowRun.objects.get()) == ("reports", 4), "planned again after it was withdrawn"
    work(clock.now + HOUR)
    assert effects() == ["planned"]


def test_a_function_that_fails_for_an_event_is_reported_and_costs_only_the_order():
    def broken(event):
        Reservation.objects.filter(no_such_field=1)

    @on_event("reservation_confirmed", name="lanes:heard", priority=broken)
    def heard(event):
        leave("heard")

    @event_workflow("reservation_confirmed", name="lanes:caused", priority=lambda event: "high")
    class Caused:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("caused")
            return complete()

    with time_machine() as machine:
        Reservation.objects.create(status="confirmed")
        machine.process()
        assert sorted(type(error).__name__ for error in machine.errors) == ["DefinitionError", "FieldError"]
    assert sorted(effects()) == ["caused", "heard"]
    assert set(CallbackExecution.objects.values_list("priority", flat=True)) == {0}


def test_a_function_that_breaks_its_query_does_not_break_the_save_that_plans_the_run(clock):
    def broken(event):
        with connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")

    @event_workflow("checkin_due", offset=-HOUR, name="lanes:planned", priority=broken)
    class Planned:
        Context = Word

        @step(start=True)
        def begin(self):
            raise NotImplementedError

    with transaction.atomic():
        Reservation.objects.create(status="confirmed", checkin_at=clock.now + 2 * HOUR)
        assert Reservation.objects.count() == 1
    assert lane_of(WorkflowRun.objects.get()) == ("", 0)


def test_a_function_of_the_event_is_not_called_where_there_is_no_event():
    @event_workflow("reservation_confirmed", name="lanes:caused", queue="reports", priority=lambda event: event.pk)
    class Caused:
        Context = Word

        @step(start=True)
        def begin(self):
            return complete()

    @agent("lanes:spawned", queue="care", priority=lambda event: 3)
    class Spawned:
        Context = Word

        @handler("reservation_confirmed")
        def answer(self):
            raise NotImplementedError

    assert lane_of(engine.start("lanes:caused")) == ("reports", 0)
    assert lane_of(AgentManager.spawn("lanes:spawned", word="x")) == ("care", 0)
    Reservation.objects.create(status="confirmed")
    event = Event.objects.get(event_name="reservation_confirmed")
    assert lane_of(AgentManager.spawn("lanes:spawned", event=event)) == ("care", 3)


def test_a_row_for_several_events_has_the_lane_of_its_code(clock, work):
    window = {"debounce": Debounce(MINUTE), "queue": "reports", "priority": 3}

    @on_event("reservation_confirmed", name="lanes:heard", **window)
    def heard(events):
        leave(f"heard {len(events)}")

    @event_workflow("reservation_confirmed", name="lanes:caused", **window)
    class Caused:
        Context = Word

        @classmethod
        def create_context(cls, events):
            return cls.Context(word=str(len(events)))

        @step(start=True)
        def begin(self):
            leave(f"caused {self.context.word}")
            return complete()

    for _ in range(2):
        Reservation.objects.create(status="confirmed")
    assert lane_of(CallbackExecution.objects.get()) == ("reports", 3)
    assert lane_of(WorkflowRun.objects.get()) == ("reports", 3)
    work(clock.now + 2 * MINUTE)
    assert sorted(effects()) == ["caused 2", "heard 2"]
    for declare in (on_event, event_workflow):
        with pytest.raises(DefinitionError, match="priority= must be a number with debounce= or batch="):
            declare("reservation_confirmed", debounce=Debounce(MINUTE), priority=lambda event: 1)


def test_a_row_keeps_its_lane_to_its_end(work):
    leaving(queue="reports", priority=7)
    run = engine.start("lanes:leaves", word="x")
    leaving(queue="elsewhere")
    work()
    assert (status(run), lane_of(run)) == ("completed", ("reports", 7))


# -- which rows are due, and claimed -----------------------------------------------------------------------------------


def test_one_query_finds_when_each_lane_is_due(clock, django_assert_num_queries):
    leaving(queue="reports")
    expected = {}
    for queue, priority in [("", 0), ("", 5), ("", -5), ("a", 0), ("reports", 0), ("reports", 2), ("z", -100)]:
        start(queue, priority)
        start(queue, priority, ago=(1 + abs(priority)) * SECOND)
        expected[Lane(WorkflowRun, queue, priority)] = clock.now - (1 + abs(priority)) * SECOND
    finished = start("over", 9)
    WorkflowRun.objects.filter(pk=finished.pk).update(wake_at=None, status="completed")
    with django_assert_num_queries(1):
        assert due_times() == expected


def test_without_declared_lanes_there_is_no_look_for_them():
    leaving()
    start()
    with CaptureQueriesContext(connection) as queries:
        assert due_times() == {Lane(WorkflowRun): WorkflowRun.objects.get().wake_at}
    assert "RECURSIVE" not in queries[0]["sql"]
    assert "GROUP BY" not in queries[0]["sql"]


def test_a_claim_takes_rows_of_one_lane(clock):
    leaving(queue="reports")
    rows = {each: start(*each) for each in [("", 0), ("", 5), ("reports", 0), ("reports", 5)]}
    for (queue, priority), run in rows.items():
        assert claim(WorkflowRun, clock.now, 10, None, queue, priority) == [run]
    assert due_times() == {Lane(WorkflowRun, *each): clock.now + 10 * SECOND for each in rows}, "leased, in their lanes"


@pytest.mark.exact_times
def test_the_lane_that_has_waited_longest_by_its_priority_goes_first(clock, work):
    leaving(queue="reports")
    start("", 0, ago=9 * MINUTE)
    start("", 10, ago=5 * MINUTE)  # counts as ten minutes
    start("reports", -2, ago=8 * MINUTE)  # counts as seven
    start("", 20)  # counts as ten, and is the higher one
    work()
    assert effects() == [" 20", " 10", " 0", "reports -2"]


def test_nothing_starves_behind_a_stream_of_higher_priority(clock, work):
    leaving(queue="reports")
    low = start("", -1)
    for _ in range(10):
        start("", 1)
        work()
        if status(low) == "completed":
            break
        clock.tick(20 * SECOND)
    assert status(low) == "completed"


def test_a_worker_performs_the_queues_that_it_was_given(clock):
    leaving(queue="reports")
    runs = {queue: start(queue) for queue in ("", "reports", "mail")}
    Reservation.objects.create(status="confirmed")
    assert drain(queues=["reports"]) == 1
    assert [status(run) for run in runs.values()] == ["running", "completed", "running"]
    assert drain(except_queues=["mail"]) == 1
    assert [status(run) for run in runs.values()] == ["completed", "completed", "running"]
    assert drain(queues=["default", "mail"]) == 1
    assert status(runs["mail"]) == "completed"


def test_a_lost_row_stays_in_its_lane(clock, work):
    leaving(queue="reports", priority=3)
    run = engine.start("lanes:leaves", word="again")
    assert claim(WorkflowRun, clock.now, 1, None, "reports", 3) == [run]
    work(clock.now + 11 * SECOND)
    assert (status(run), lane_of(run), effects()) == ("completed", ("reports", 3), ["again"])


def test_rows_of_a_lane_that_no_code_declares_any_longer_are_found(work):
    leaving(queue="reports", priority=3)
    run = engine.start("lanes:leaves", word="x")
    lanes.reset()  # the next release
    leaving()
    assert work() == 0
    assert reconcile() >= 1
    assert work() == 1
    assert status(run) == "completed"
    reconcile()
    assert not lanes.are_used(WorkflowRun), "and there are none left"


@pytest.mark.exact_times
def test_a_slow_scan_remembers_where_each_lane_begins(clock, monkeypatch):
    leaving(queue="reports", priority=2)
    start("reports", 2, ago=HOUR)
    start("mail", 0, ago=2 * HOUR)
    monkeypatch.setattr(due, "SLOW_SCAN_SECONDS", -1.0)
    due.reset()
    try:
        for _ in range(2):
            found = due.next_due()
        assert found[Lane(WorkflowRun, "mail")] == clock.now - 2 * HOUR
        assert due.scan_start(WorkflowRun, "reports", 2) == clock.now - HOUR
        assert due.scan_start(WorkflowRun, "mail") == clock.now - 2 * HOUR
        with CaptureQueriesContext(connection) as queries:
            assert {lane: at for lane, at in due.next_due().items() if lane.model is WorkflowRun} == {
                Lane(WorkflowRun, "mail"): clock.now - 2 * HOUR,
                Lane(WorkflowRun, "reports", 2): clock.now - HOUR,
            }
        assert "RECURSIVE" not in queries[0]["sql"]
        assert "GROUP BY" not in queries[0]["sql"]
        drain(heartbeat=True)
        assert not WorkflowRun.objects.filter(status="running").exists()
    finally:
        due.reset()


# -- plans, on every database ------------------------------------------------------------------------------------------

TABLE = WorkflowRun._meta.db_table


def many(doublings: int, **columns) -> None:
    """Insert 2 ** ``doublings`` runs, as fast as the database can."""
    WorkflowRun.objects.create(name="many", current_step="begin", **columns)
    names = ", ".join(
        connection.ops.quote_name(field.column) for field in WorkflowRun._meta.concrete_fields if not field.primary_key
    )
    with connection.cursor() as cursor:
        for _ in range(doublings):
            cursor.execute(f"INSERT INTO {TABLE} ({names}) SELECT {names} FROM {TABLE} WHERE name = 'many'")
        analyze = {"postgresql": "VACUUM ANALYZE {}", "sqlite": "ANALYZE {}", "mysql": "ANALYZE TABLE {}"}
        cursor.execute(analyze[connection.vendor].format(TABLE))
    WorkflowRun.objects.filter(name="many").update(name="others")


def plan_of(work) -> str:
    with CaptureQueriesContext(connection) as queries:
        work()
    sql = next(each["sql"] for each in queries if TABLE in each["sql"])
    how = {"postgresql": "EXPLAIN ", "sqlite": "EXPLAIN QUERY PLAN ", "mysql": "EXPLAIN "}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(how + sql)
        return "\n".join(str(row) for row in cursor.fetchall())


def test_claims_and_looks_use_the_indexes_however_many_rows_other_lanes_have(clock):
    leaving(queue="reports")
    many(13, queue="reports", wake_at=clock.now - HOUR)
    many(13, queue="", status="completed", finished_at=clock.now)
    start("", 0)
    start("reports", 5)
    index = "automation_run_wake" if connection.vendor == "mysql" else "automation_run_lanes"
    found = [
        (plan_of(lambda: claim(WorkflowRun, clock.now, 5)), "automation_run_wake"),
        (plan_of(lambda: claim(WorkflowRun, clock.now, 5, None, "reports", 5)), index),
        (plan_of(lambda: claim(WorkflowRun, clock.now, 5, None, "reports", 0)), index),
        (plan_of(due_times), index),
    ]
    for plan, used in found:
        assert used in plan, plan
        for scan in (f"Seq Scan on {TABLE}", f"SCAN {TABLE}"):
            lines = [line for line in plan.splitlines() if scan in line]
            # The first step into the index is a scan that ends at its first row.
            assert all("COVERING INDEX automation_run_lanes" in line for line in lines), plan
    assert "(queue,priority)>(?,?)" in found[-1][0] or connection.vendor != "sqlite"
