"""A condition or payload that raises, in a save or when its event is due, is retried with backoff.

After the last attempt, the event is parked.
"""

from __future__ import annotations

import logging
import re
from datetime import timedelta

import pytest
from django.db import DatabaseError, OperationalError, connection
from pydantic import BaseModel

from django_ai.automation import Retry, complete, event_workflow, step
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Ticket
from tests.support.rows import effects, leave, use_up_attempts

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


class Flaky:
    """A project's function that raises ``failures`` times before it returns a result."""

    def __init__(self, result) -> None:
        self.result, self.failures = result, 0
        self.error: Exception = ConnectionError("the price service is away")
        self.answer = lambda entity: self.result

    def __call__(self, entity):
        if self.failures:
            self.failures -= 1
            raise self.error
        return self.answer(entity)


@pytest.fixture
def condition() -> Flaky:
    return Flaky(True)


@pytest.fixture
def payload() -> Flaky:
    return Flaky({"price": 3})


@pytest.fixture
def event(declare, clock, condition, payload) -> Event:
    """An event that is due now, with one callback at its date and one an hour later."""
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


@pytest.fixture
def planned(declare, clock, condition) -> WorkflowRun:
    """A planned run that is due now, an hour before the date of its event; its first step raises."""
    declare(Ticket, EventDefinition("ticket_due", condition, date_field="due_at"))

    @event_workflow("ticket_due", offset=-HOUR, default_retry=Retry(max_attempts=2))
    class Reminds:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            if not effects():
                leave("begun")
                raise LookupError
            return complete()

    Ticket.objects.create(due_at=clock() + 2 * HOUR)
    clock.tick(HOUR)
    return WorkflowRun.objects.get()


@pytest.mark.exact_times
def test_a_run_whose_condition_raises_once_begins_later(planned, clock, work, condition):
    condition.failures = 1
    work()
    planned.refresh_from_db()
    assert (planned.status, planned.failed_evaluations, planned.wake_at) == ("waiting", 1, clock() + SECOND)
    assert "the price service is away" in planned.error
    clock.tick(SECOND)
    work()
    planned.refresh_from_db()
    assert (planned.status, planned.attempt) == ("waiting", 1)  # the first attempt of its first step
    assert "LookupError" in planned.error


def test_a_run_whose_condition_goes_on_raising_is_parked(planned, work, condition):
    condition.failures = 5
    for _ in range(5):
        planned.refresh_from_db()
        work(planned.wake_at)
    planned.refresh_from_db()
    assert (planned.status, planned.wake_at, condition.failures) == ("parked", None, 0)
    assert "the price service is away" in planned.error


# -- inside save() -----------------------------------------------------------------------------------------------------


class _Lost(Exception):
    sqlstate = "08006"


@pytest.fixture
def closed(declare, clock) -> Flaky:
    """The condition of an immediate event: true if the ticket is closed."""
    flaky = Flaky(None)
    flaky.answer = lambda ticket: not ticket.open
    declare(Ticket, EventDefinition("ticket_closed", flaky))
    on_event("ticket_closed", name="closed")(lambda event: leave("closed"))
    return flaky


def saved(condition: Flaky, failures: int = 1, **values) -> tuple[Ticket, Event]:
    """Return a ticket whose condition raised in its first save, and its event."""
    condition.failures = failures
    ticket = Ticket.objects.create(**values)
    return ticket, Event.objects.get()


@pytest.mark.exact_times
@pytest.mark.parametrize(
    "error", [ConnectionError("is away"), OperationalError("is away"), ZeroDivisionError("is away")]
)
def test_what_raises_in_a_save_is_asked_again_by_a_worker(closed, clock, work, error):
    closed.error = error
    if isinstance(error, OperationalError):
        error.__cause__ = _Lost()  # as if the project lost the connection to another database
    _, event = saved(closed, open=False)
    assert (event.status, event.attempt, event.armed) == ("pending", 1, False)
    assert event.wake_at == clock() + SECOND
    assert "is away" in event.error
    work()
    assert effects() == []
    clock.tick(SECOND)
    work()
    event.refresh_from_db()
    assert (event.status, event.attempt, event.error, effects()) == ("processed", 0, "", ["closed"])


def test_the_worker_evaluates_what_the_database_holds(closed, clock, work):
    ticket, event = saved(closed, open=False)
    Ticket.objects.update(open=True)
    clock.tick(SECOND)
    work()
    event.refresh_from_db()
    assert (event.status, event.armed, event.attempt, event.error, event.wake_at) == ("pending", False, 0, "", None)
    ticket.save()
    work()
    assert effects() == ["closed"]


def test_what_goes_on_raising_after_a_save_is_parked(closed, work):
    _, event = saved(closed, 5, open=False)
    use_up_attempts(event, work)
    assert (event.status, event.attempt, closed.failures) == ("parked", 0, 0)
    assert "is away" in event.error


@pytest.mark.exact_times
def test_saves_that_raise_do_not_put_off_the_worker(closed, clock, work):
    ticket, event = saved(closed, 3, open=False)
    clock.tick(SECOND / 2)
    ticket.save()
    event.refresh_from_db()
    assert (event.attempt, event.wake_at) == (1, clock() + SECOND / 2)
    clock.tick(SECOND / 2)
    work()
    event.refresh_from_db()
    assert (event.attempt, event.wake_at) == (2, clock() + 2 * SECOND)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_save_that_does_not_raise_answers_it(closed, clock, work, is_open):
    ticket, event = saved(closed)
    ticket.open = is_open
    ticket.save()
    event.refresh_from_db()
    assert (event.attempt, event.error) == (0, "")
    assert event.status == ("pending" if is_open else "processed")
    clock.tick(SECOND)
    work()
    assert effects() == ([] if is_open else ["closed"])


@pytest.mark.exact_times
def test_a_date_of_which_a_condition_raised_is_met(declare, clock, work, condition):
    declare(Ticket, EventDefinition("ticket_due", condition, date_field="due_at"))
    on_event("ticket_due", name="due")(lambda event: leave("due"))
    ticket, event = saved(condition, due_at=clock() + HOUR)
    assert (event.attempt, event.wake_at) == (1, clock() + SECOND)
    clock.tick(SECOND)
    work()
    event.refresh_from_db()
    assert (event.attempt, event.armed, event.wake_at) == (0, True, ticket.due_at)
    condition.failures = 1
    ticket.due_at += HOUR
    ticket.save()
    event.refresh_from_db()
    assert (event.attempt, event.at, event.wake_at) == (1, ticket.due_at, clock() + SECOND)
    clock.tick(2 * HOUR)
    work()
    assert effects() == ["due"]


def test_a_definition_that_is_seen_first_while_its_condition_raises_does_not_occur_for_the_past(declare, closed):
    """A retry could not tell whether the condition was already true before this save."""
    declare(Ticket)
    ticket = Ticket.objects.create(open=False)
    declare(Ticket, EventDefinition("ticket_closed", closed))
    closed.failures = 1
    ticket.save()
    assert Event.objects.get().status == "parked"


def test_a_deletion_cannot_be_asked_again(declare, condition, work):
    declare(Ticket, EventDefinition("ticket_gone", condition, trigger="delete"))
    ticket = Ticket.objects.create()
    condition.failures = 1
    ticket.delete()
    event = Event.objects.get()
    assert (event.status, event.attempt, event.wake_at) == ("parked", 0, None)
    assert "is not retried: the entity no longer exists" in event.error


def test_a_lost_connection_of_our_own_is_the_savers(closed):
    """A lost connection aborts the transaction, so ``save()`` raises the error."""

    def asks_in_vain(ticket):
        with pytest.raises(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")
        raise OperationalError("server closed the connection") from _Lost()

    closed.answer = asks_in_vain
    with pytest.raises(OperationalError, match="server closed"):
        Ticket.objects.create()
    assert not Ticket.objects.exists()


# -- logging -----------------------------------------------------------------------------------------------------------

EVIL = "away\x1b[2J\nevent 'x' occurred"
SAID = re.compile(r"event '(?P<name>\w*)' of app\.ticket \S+ failed after \d+\.\d{3} s: (?P<error>.*)")


@pytest.fixture
def said(caplog):
    """Return a function that reads the logged failures, oldest first, as pairs of event name and error."""
    caplog.set_level(logging.INFO, "django_ai.automation")

    def read():
        warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        caplog.clear()
        return [SAID.fullmatch(each).group("name", "error") for each in warnings]

    return read


@pytest.mark.parametrize("asked", ["condition", "namespace"])
def test_what_raises_is_logged_in_the_save_and_at_each_attempt(asked, declare, work, said, caplog):
    flaky = Flaky("north")
    flaky.error, flaky.failures = ConnectionError(EVIL), 5
    declare(Ticket, EventDefinition("boom", **{asked: flaky}))
    Ticket.objects.create()
    line = ("boom", "ConnectionError: away\\x1b[2J\\nevent 'x' occurred")
    assert said() == [line]
    event = Event.objects.get()
    for _ in range(4):
        event.refresh_from_db()
        assert event.status == "pending"
        work(event.wake_at)
        event.refresh_from_db()
        if event.status == "parked":
            assert [each.levelname for each in caplog.records] == ["WARNING", "ERROR"]
        assert said() == [line]
    assert (event.status, flaky.failures) == ("parked", 0)


def test_a_payload_that_raises_is_logged_at_each_attempt(event, work, payload, said, caplog):
    payload.failures = 5
    use_up_attempts(event, work)
    assert [each.levelname for each in caplog.records] == ["WARNING"] * 5 + ["ERROR"]
    assert said() == [("ticket_due", "ConnectionError: the price service is away")] * 5


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_save_that_raises_again_is_logged_though_it_writes_nothing(closed, work, said, is_listed):
    ticket, event = saved(closed, 9)
    use_up_attempts(event, work)
    assert len(said()) == 5
    ticket.save(update_fields=["title"] if is_listed else None)
    assert said() == [("ticket_closed", "ConnectionError: the price service is away")]
    event.refresh_from_db()
    assert event.status == "parked"


def test_a_reconciliation_does_not_log_what_it_does_not_write(declare, condition, work, clock, said):
    declare(Ticket, EventDefinition("ticket_due", condition, date_field="due_at"))
    _, event = saved(condition, 99, due_at=clock() + HOUR)
    use_up_attempts(event, work)
    assert len(said()) == 5
    reconcile_dates(clock())
    assert said() == []


def test_an_old_row_whose_condition_raises_is_logged(declare, closed, said):
    declare(Ticket)
    ticket = Ticket.objects.create(open=False)
    declare(Ticket, EventDefinition("ticket_closed", closed))
    closed.failures = 1
    ticket.save()
    assert len(said()) == 1


def test_what_a_fixture_makes_raise_is_not_logged(closed, said):
    closed.failures = 1
    Ticket(open=False).save_base(raw=True)
    assert (said(), closed.failures) == ([], 0)


@pytest.mark.parametrize("name", ["condition", "payload"])
def test_what_a_deletion_makes_raise_is_logged_once(name, declare, condition, payload, request, said):
    declare(Ticket, EventDefinition("ticket_gone", condition, trigger="delete", payload=payload))
    ticket = Ticket.objects.create()
    request.getfixturevalue(name).failures = 1
    ticket.delete()
    assert said() == [("ticket_gone", "ConnectionError: the price service is away")]


def test_a_condition_that_raises_for_a_planned_run_is_logged(planned, work, condition, caplog):
    condition.failures = 1
    work()
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert str(planned) in caplog.text
    assert "the price service is away" in caplog.text
