"""``run.wait()``: with workers, with the inline runtime, with the time machine; and where it would never end."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connections, transaction
from django.utils import timezone

from django_ai.automation import Retry, on_event
from django_ai.automation.exceptions import (
    DefinitionError,
    EndlessWaitError,
    RunTimeoutError,
    RunUnfinishedError,
    UnknownRunError,
)
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import InlineNotifier
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows.core import complete, engine, goto, sleep, wait
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave
from tests.support.time_machine import NOON
from tests.support.workflows import flow

real_time = pytest.mark.django_db(transaction=True)

DAY, SECOND, MOMENT = timedelta(days=1), timedelta(seconds=1), timedelta(milliseconds=30)


# -- with workers ------------------------------------------------------------------------------------------------------


@real_time
def test_it_waits_for_a_worker():
    flow(lambda self: goto(self.second), second=lambda self: complete(text="done"))
    started = engine.start("flow")

    def worker():
        try:
            drain()
        finally:
            connections.close_all()

    thread = threading.Thread(target=worker)
    thread.start()
    try:
        assert started.wait(timedelta(seconds=30)).result().text == "done"
        assert started.status == "completed"
    finally:
        thread.join()


@real_time
def test_a_run_that_has_ended_is_not_waited_for(work):
    flow(lambda self: complete())
    started = engine.start("flow")
    work()
    assert started.wait() is started
    with transaction.atomic():
        assert started.wait(timedelta(0)).status == "completed"


@real_time
def test_a_timeout_says_what_the_run_waits_for(work):
    flow(lambda self: wait("bell"))
    started = engine.start("flow")
    work()
    with pytest.raises(
        RunTimeoutError, match=r"flow #\d+ has not ended within 0:00:00.03.*: it is suspended and waits for the signal"
    ) as error:
        started.wait(MOMENT)
    assert error.value.run is started
    assert isinstance(error.value, TimeoutError)
    assert isinstance(error.value, RunUnfinishedError)


@real_time
def test_a_run_that_was_rolled_back_is_unknown():
    flow(lambda self: complete())
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        started = engine.start("flow")
        raise ZeroDivisionError
    with pytest.raises(UnknownRunError, match="its transaction was rolled back"):
        started.wait(MOMENT)


@pytest.mark.parametrize("timeout", [5, -SECOND, "soon"])
def test_a_timeout_is_a_timedelta(timeout):
    with pytest.raises(DefinitionError, match="must be a timedelta of zero or more"):
        WorkflowRun(pk=1).wait(timeout)


# -- where it would never end ------------------------------------------------------------------------------------------


@real_time
def test_inside_the_transaction_that_starts_the_run():
    flow(lambda self: complete())
    with transaction.atomic():
        started = engine.start("flow")
        with pytest.raises(EndlessWaitError, match=r"wait\(\) of flow #\d+ was called inside a transaction"):
            started.wait(MOMENT)


@real_time
@pytest.mark.parametrize("atomic", [True, False])
def test_inside_a_step_or_a_callback(atomic, work):
    def first(self):
        engine.start("other").wait(MOMENT)

    first.__name__ = "first"
    flow(lambda self: complete(), "other", version=2)
    flow(first, retry=Retry(max_attempts=1))
    started = engine.start("flow")
    caught = []

    @on_event("reservation_confirmed", name="waits", atomic=atomic)
    def waits(event):
        try:
            started.wait(MOMENT)
        except EndlessWaitError as error:
            caught.append(str(error))

    work()
    started.refresh_from_db()
    assert "EndlessWaitError: wait() of other #" in started.error
    assert "Return run_subflow(...)" in started.error
    Reservation.objects.create(status="confirmed")
    work()
    assert len(caught) == 1


# -- the inline runtime ------------------------------------------------------------------------------------------------


@real_time
def test_the_inline_runtime_performs_while_it_waits(settings):
    engine.set_notifier(InlineNotifier())
    try:
        flow(
            lambda self: sleep(timedelta(milliseconds=50), then=self.second), second=lambda self: complete(text="awake")
        )
        started = engine.start("flow")
        assert started.wait(timedelta(seconds=30)).result().text == "awake"
    finally:
        engine.set_notifier(None)


# -- the time machine --------------------------------------------------------------------------------------------------


@pytest.fixture(
    params=[
        pytest.param("commits", marks=pytest.mark.django_db(transaction=True)),
        pytest.param("never commits", marks=pytest.mark.django_db),
    ]
)
def machine(request):
    with time_machine(NOON, raise_errors=True) as found:
        yield found


def test_the_time_machine_moves_until_the_run_has_ended(machine):
    flow(lambda self: sleep(3 * DAY, then=self.second), second=lambda self: complete(text="awake"))
    started, before = engine.start("flow"), machine.now
    assert started.wait().result().text == "awake"
    assert machine.now == before + 3 * DAY


def test_the_time_machine_stops_at_the_timeout(machine):
    flow(lambda self: sleep(3 * DAY, then=self.second), second=lambda self: complete())
    started, before = engine.start("flow"), machine.now
    with pytest.raises(
        RunTimeoutError, match="has not ended within 1 day, 0:00:00: it is waiting and waits for its timer"
    ):
        started.wait(DAY)
    assert machine.now == before + DAY
    started.wait(2 * DAY)
    assert timezone.now() == before + 3 * DAY


def test_the_time_machine_ends_where_nothing_is_due(machine):
    flow(lambda self: wait("bell"))
    started, before = engine.start("flow"), machine.now
    with pytest.raises(RunTimeoutError, match="has not ended: it is suspended and waits for the signal 'bell'"):
        started.wait()
    assert machine.now == before


def test_the_time_machine_ends_after_a_year_of_other_work(machine):
    def first(self):
        leave("again")
        return sleep(30 * DAY)

    flow(first, "forever")
    flow(lambda self: wait("bell"), version=2)
    engine.start("forever")
    with pytest.raises(RunTimeoutError):
        engine.start("flow").wait()
    assert len(effects()) == 13


def test_the_time_machine_waits_in_real_time_no_more(machine):
    flow(lambda self: complete())
    with transaction.atomic():
        assert engine.start("flow").wait(DAY).status == "completed"
