"""A condition or payload that raises when its event is due is asked again with a backoff, then its event is parked."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.events.reconcile import reconcile_dates
from tests.app.models import Ticket
from tests.lifecycle.looking import effects, leave, use_up_attempts

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


class Flaky:
    """A function of the project that raises as often as it is told to."""

    def __init__(self, result) -> None:
        self.result, self.failures = result, 0

    def __call__(self, entity):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the price service is away")
        return self.result


@pytest.fixture
def condition() -> Flaky:
    return Flaky(True)


@pytest.fixture
def payload() -> Flaky:
    return Flaky({"price": 3})


@pytest.fixture
def event(declare, clock, condition, payload) -> Event:
    """An event that is due now, which a callback hears at its date and an hour later."""
    declare(Ticket, EventDefinition("ticket_due", condition, date_field="due_at", payload=payload))
    on_event("ticket_due", name="due")(lambda event: leave("due"))
    on_event("ticket_due", name="later", offset=HOUR)(lambda event: leave("later"))
    Ticket.objects.create(due_at=clock() + SECOND)
    clock.tick(SECOND)
    return Event.objects.get()


@pytest.mark.exact_times
@pytest.mark.parametrize("name", ["condition", "payload"])
def test_what_raises_once_is_asked_again(name, event, clock, work, request):
    request.getfixturevalue(name).failures = 2
    for attempt, delay in enumerate([SECOND, 2 * SECOND], 1):
        work()
        event.refresh_from_db()
        assert (event.status, event.attempt, event.wake_at) == ("pending", attempt, clock() + delay)
        assert "ConnectionError: the price service is away" in event.error
        assert event.waits_for(clock()).startswith("its next attempt")
        assert effects() == []
        clock.tick(delay)
    work()
    event.refresh_from_db()
    assert (event.status, event.attempt, event.error, event.payload["price"]) == ("processed", 0, "", 3)
    assert effects() == ["due"]


@pytest.mark.parametrize("name", ["condition", "payload"])
def test_what_goes_on_raising_is_parked_and_can_be_resumed(name, event, clock, work, request):
    flaky = request.getfixturevalue(name)
    flaky.failures = 5
    use_up_attempts(event, work)
    assert (event.status, event.attempt, flaky.failures) == ("parked", 0, 0)
    assert "the price service is away" in event.error
    event.resume()
    work()
    assert effects() == ["due"]


@pytest.mark.exact_times
def test_a_later_offset_is_tried_again_too(event, clock, work, condition):
    work()
    clock.tick(HOUR)
    condition.failures = 1
    work()
    event.refresh_from_db()
    assert (event.status, event.attempt, event.wake_at) == ("processed", 1, clock() + SECOND)
    clock.tick(SECOND)
    work()
    event.refresh_from_db()
    assert (event.attempt, event.error, effects()) == (0, "", ["due", "later"])


@pytest.mark.exact_times
def test_a_reconciliation_does_not_cut_the_backoff_short(event, clock, work, condition):
    condition.failures = 1
    work()
    reconcile_dates(clock())
    event.refresh_from_db()
    assert event.wake_at == clock() + SECOND


def test_what_is_refused_for_good_is_parked_at_once(event, work, payload):
    payload.result = "no dict"
    work()
    event.refresh_from_db()
    assert (event.status, event.wake_at) == ("parked", None)
    assert "must return a dict" in event.error
