"""Waits for a signal: which run it wakes, and with which payload; no signal is lost or consumed twice."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation.exceptions import DefinitionError, NotStorableError
from django_ai.automation.workflows.core import complete, engine, get_wake, sleep, step, wait, workflow
from django_ai.automation.workflows.models import Signal, Wait, WorkflowRun
from tests.support.rows import effects, status
from tests.support.waiting_runs import begin, told, waiter

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


def test_a_signal_wakes_who_waits_for_it_and_only_those(work):
    waiter()
    waiter("deaf", lambda self: wait("gong"))
    one, two, deaf = begin(work), begin(work), begin(work, "deaf")
    assert (one.status, one.waits.get().channel, one.wake_at) == ("suspended", "bell", None)
    engine.signal("bell")
    assert status(one) == "suspended"  # sending only stores the signal; a worker delivers it
    work()
    assert [status(one), status(two), status(deaf)] == ["completed", "completed", "suspended"]
    assert effects() == ["signal", "signal"]


def test_the_payload_merges_where_the_context_has_the_field(work):
    waiter()
    run = begin(work)
    engine.signal("bell", {"n": 5, "unknown": "x", "text": "ding"})
    work()
    run.refresh_from_db()
    assert (run.data["n"], run.data["text"]) == (5, "ding")
    assert "unknown" not in run.data
    assert effects() == ["signal {'n': 5, 'text': 'ding', 'unknown': 'x'}"]


def test_the_payload_is_validated(work):
    waiter()
    run = begin(work)
    engine.signal("bell", {"n": "7"})
    work()
    run.refresh_from_db()
    assert run.data["n"] == 7


def test_a_payload_that_does_not_fit_parks_the_run_and_nobody_else(work):
    waiter()

    @workflow("lenient")
    class Lenient:
        class Context(BaseModel):
            n: str = ""

        @step(start=True)
        def first(self):
            return complete() if get_wake().reason == "signal" else wait("bell")

    strict, lenient = begin(work), begin(work, "lenient")
    engine.signal("bell", {"n": "many"})
    work()
    assert (status(strict), status(lenient)) == ("parked", "completed")
    assert "many" in strict.error
    assert "'bell'" in strict.error


def test_a_broadcast_before_the_start_wakes_nobody(work):
    waiter()
    engine.signal("bell")
    work()
    assert begin(work).status == "suspended"


def test_a_broadcast_before_the_waiting_step_began_is_heard(clock, work):
    """A run receives every signal that was sent since its creation and that it has not consumed."""

    @workflow("two steps")
    class TwoSteps:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            return complete() if get_wake().reason == "signal" else wait("bell")

    run = begin(work, "two steps")
    engine.signal("bell")
    work()
    clock.tick(HOUR)
    work()
    assert status(run) == "completed"


def test_a_signal_while_the_step_that_will_wait_is_running_is_not_lost(work):
    def outcome(self):
        engine.signal("bell", {"n": 1})
        return wait("bell")

    waiter(outcome=outcome)
    assert status(begin(work)) == "completed"
    assert effects() == ["signal {'n': 1}"]


def test_a_signal_that_is_rolled_back_was_never_sent(work):
    waiter()
    run = begin(work)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        engine.signal("bell")
        raise ZeroDivisionError
    work()
    assert (status(run), Signal.objects.count()) == ("suspended", 0)


def test_a_signal_to_one_run_wakes_only_that(work):
    waiter()
    one, two = begin(work), begin(work)
    engine.signal("bell", {"n": 1}, run=one)
    work()
    assert [status(one), status(two)] == ["completed", "suspended"]
    engine.signal("bell", run=two.pk)
    work()
    assert status(two) == "completed"


def test_a_signal_to_one_run_is_kept_until_it_waits_for_it(clock, work):
    @workflow("sleeper")
    class Sleeper:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            if get_wake().reason != "signal":
                return wait("bell")
            told()
            return complete() if self.context.n == 2 else wait("bell")

    run = begin(work, "sleeper")
    for n in (1, 2):
        engine.signal("bell", {"n": n}, run=run)
    engine.signal("gong", run=run)
    work()
    assert status(run) == "waiting"
    clock.tick(HOUR)
    work()
    assert status(run) == "completed"
    assert effects() == ["signal {'n': 1}", "signal {'n': 2}"]
    assert Signal.objects.filter(consumed_at=None).get().name == "gong"


def test_each_signal_is_consumed_at_most_once(work):
    waiter(again=True)
    run = begin(work)
    for n in (1, 2, 3):
        engine.signal("bell", {"n": n})
        work()
        work()
    assert effects() == ["signal {'n': 1}", "signal {'n': 2}", "signal {'n': 3}"]
    assert status(run) == "suspended"


@pytest.mark.exact_times
def test_a_signal_that_was_taken_before_its_delivery_is_not_delivered_again(clock, work):
    """The run consumes a signal that is not delivered yet; the later delivery does not end its next wait."""

    def outcome(self):
        if not Signal.objects.exists():
            engine.signal("bell", {"n": 1})
            Signal.objects.update(wake_at=clock() + 5 * SECOND)  # its delivery is late
        return wait("bell")

    waiter(outcome=outcome, again=True)
    run = begin(work)
    assert (run.status, effects()) == ("suspended", ["signal {'n': 1}"])
    clock.tick(5 * SECOND)
    work()
    assert Signal.objects.get().delivered_at == clock()
    assert (status(run), effects()) == ("suspended", ["signal {'n': 1}"])


def test_a_payload_is_merged_once_though_the_step_is_tried_again(clock, work):
    @workflow("tripping")
    class Stumble:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        def first(self):
            if get_wake().reason == "first":
                return wait("bell")
            assert get_wake().payload == {"n": 10}
            self.context.n += 1
            if self.context.n < 13:
                raise RuntimeError
            return complete()

    run = begin(work, "tripping")
    engine.signal("bell", {"n": 10})
    for _ in range(4):
        work()
        clock.tick(10 * SECOND)
    assert (status(run), run.data["n"]) == ("completed", 13)


def test_a_step_may_wait_for_one_thing_after_the_other(work):
    @workflow("in turn")
    class InTurn:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        def first(self):
            return wait("bell", then=self.second)

        @step()
        def second(self):
            return wait("gong", then=self.third)

        @step()
        def third(self):
            return complete()

    run = begin(work, "in turn")
    for name, current in (("knock", "first"), ("bell", "second"), ("bell", "second")):
        engine.signal(name)
        work()
        run.refresh_from_db()
        assert (run.status, run.current_step) == ("suspended", current)
    engine.signal("gong")
    work()
    assert status(run) == "completed"


@pytest.mark.parametrize("name", ["", None, 5, "x" * 201])
def test_a_signal_has_a_name(name):
    with pytest.raises(DefinitionError):
        engine.signal(name)


@pytest.mark.parametrize("payload", ["text", [1], 5])
def test_a_payload_is_a_dict(payload):
    with pytest.raises(DefinitionError, match="must be a dict"):
        engine.signal("bell", payload)


def test_a_payload_that_cannot_be_stored_is_refused():
    with pytest.raises(NotStorableError, match="'bell'"):
        engine.signal("bell", {"n": float("inf")})
    assert not Signal.objects.exists()


@pytest.mark.slow
def test_many_who_wait_are_woken_in_a_few_statements(work):
    waiter()
    template = begin(work)
    values = {
        field.attname: getattr(template, field.attname)
        for field in WorkflowRun._meta.concrete_fields
        if field.attname != "id"
    }
    WorkflowRun.objects.bulk_create([WorkflowRun(**values) for _ in range(499)])
    waits = template.waits.values("visit", "channel", "key", "then", "on_timeout").get()
    others = WorkflowRun.objects.exclude(pk=template.pk)
    Wait.objects.bulk_create([Wait(run=run, **waits) for run in others])
    signal = engine.signal("bell")
    with CaptureQueriesContext(connection) as queries:
        from django_ai.automation.queues.claim import claim
        from django_ai.automation.workflows.delivery import deliver

        (mine,) = claim(Signal, signal.wake_at, 1)
        deliver(mine, lambda: signal.wake_at)
    # Where UPDATE returns no rows, a claim is a transaction of two statements.
    few = 11 if connection.vendor == "mysql" else 8
    assert len(queries) <= few, [query["sql"][:100] for query in queries]
    assert WorkflowRun.objects.filter(status="running", wake_reason="signal").count() == 500
    assert not Wait.objects.exists()
