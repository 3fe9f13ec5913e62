"""``GiveUp``, ``retry_on``, ``give_up_on`` and ``jitter``: the same for steps, callbacks and handlers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    GiveUp,
    Retry,
    engine,
    on_event,
    on_fail,
    step,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution
from tests.apps.front_desk.models import Booking
from tests.support.front_desk import book
from tests.support.retries import STARTS, Service, Tried, a_handler
from tests.support.rows import effects, leave, status

pytestmark = pytest.mark.django_db(transaction=True)

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture(params=STARTS)
def tried(request) -> Callable[..., Tried]:
    """``tried(function, retry)``: start a step, callback or handler that calls ``function``."""
    return STARTS[request.param]


# -- GiveUp ------------------------------------------------------------------------------------------------------------


def test_give_up_fails_at_once_with_the_reason(tried, clock, work):
    service = Service(clock, GiveUp("The card was stolen."))
    found = tried(service, Retry(max_attempts=9))
    work()
    assert (found.row.status, found.row.attempt, len(service.times)) == ("failed", 1, 1)
    assert found.row.error.startswith("GiveUp: The card was stolen.\n\nTraceback")
    assert found.row.error.rstrip().endswith("GiveUp: The card was stolen.")
    assert effects() == []


def test_on_fail_is_called_and_the_context_is_kept(work):
    @workflow("stolen")
    class Stolen:
        class Context(BaseModel):
            cents: int = 0

        @step(start=True)
        def charge(self):
            self.context.cents = 500
            raise GiveUp("The card was stolen.")

        @on_fail
        def failed(self, error):
            leave(f"{self.context.cents} {error.splitlines()[0]}")

    run = engine.start("stolen")
    work()
    assert (status(run), effects()) == ("failed", ["500 GiveUp: The card was stolen."])


def test_an_agent_stays_active_after_a_handler_has_given_up(work):
    a_handler(give_up, Retry())
    work()
    assert HandlerExecution.objects.get().status == "failed"
    assert AgentRun.objects.get().status == "active"


def give_up() -> None:
    raise GiveUp("no")


# -- retry_on, give_up_on, jitter --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "attempts"),
    [
        ({"retry_on": (ConnectionError, TimeoutError)}, ConnectionResetError(), 3),
        ({"retry_on": (ConnectionError, TimeoutError)}, ValueError(), 1),
        ({"give_up_on": LookupError}, KeyError("x"), 1),
        ({"give_up_on": LookupError}, ValueError(), 3),
        ({"retry_on": OSError, "give_up_on": FileNotFoundError}, FileNotFoundError(), 1),
    ],
)
def test_the_class_of_the_error_decides(tried, clock, work, options, error, attempts):
    service = Service(clock, *([error] * 9))
    found = tried(service, Retry(max_attempts=3, **options))
    for _ in range(4):
        work()
        clock.tick(MINUTE)
    assert (found.row.status, found.row.attempt, len(service.times)) == ("failed", attempts, attempts)


@pytest.mark.exact_times
def test_the_pause_has_the_jitter_of_the_row_and_the_attempt(tried, clock, work):
    service = Service(clock, *([ValueError()] * 9))
    retry = Retry(max_attempts=3, base_delay=MINUTE, jitter=0.5)
    found = tried(service, retry)
    for attempt in (1, 2):
        work()
        pause = found.due_at - clock.now
        assert pause == retry.delay(attempt, found.row.idempotency_key)
        assert MINUTE * attempt / 2 <= pause <= MINUTE * attempt
        clock.tick(pause)
    work()
    assert found.row.status == "failed"


def test_jitter_spreads_the_retries_of_rows_that_failed_together(clock, work):
    def fails(event):
        raise ConnectionError

    on_event("booking_created", name="fails", retry=Retry(base_delay=HOUR, jitter=1))(fails)
    for _ in range(10):
        book()
    work()
    times = set(CallbackExecution.objects.values_list("wake_at", flat=True))
    assert len(times) == Booking.objects.count() == 10
    assert all(clock.now <= each <= clock.now + HOUR for each in times)
