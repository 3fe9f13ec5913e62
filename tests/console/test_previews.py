"""What saving a form would set off: the same as saving it does, and nothing is written or called before."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import EventDefinition, complete, event_workflow, on_event, step
from django_ai.automation.console.preview import Preview, preview
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.captured.models import Parcel
from tests.apps.front_desk.models import Booking, Person
from tests.apps.reservations.models import Guest, Reservation
from tests.support.agents import counting_companion
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls("tests.support.entity_admin")]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def automations(clock):
    @event_workflow("checkin_due", offset=-2 * HOUR, name="remind")
    class Remind:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def send(self):
            return complete()

    on_event("checkin_due", name="warn", offset=-HOUR)(leave)
    on_event("reservation_confirmed", name="greet")(leave)


def book(clock, **values) -> Reservation:
    return Reservation.objects.create(**{"status": "confirmed", "checkin_at": clock() + DAY, **values})


def of(entity, **values) -> Preview:
    """Return the preview of changed values. Only reads are sent."""
    changed = type(entity).objects.get(pk=entity.pk)
    for name, value in values.items():
        setattr(changed, name, value)
    with CaptureQueriesContext(connection) as queries:
        found = preview(changed, timezone.now())
    assert {each["sql"].split()[0] for each in queries} <= {"SELECT"}
    assert len(queries) <= 8
    return found


def counts(found: Preview) -> tuple[int, int, int, list[str]]:
    return found.moved, found.planned, found.cancelled, found.fired


def test_nothing_changes(clock, work):
    stay = book(clock)
    work()
    found = of(stay, note="a window")
    assert found.is_empty
    assert found.sentence == "Saving moves no timer and fires nothing."


def test_a_date_that_moves_takes_its_offsets_along(clock, work):
    stay = book(clock)
    work()
    found = of(stay, checkin_at=stay.checkin_at + HOUR)
    assert counts(found) == (3, 0, 0, [])
    assert found.sentence == "Saving will move 3 timers."
    assert [each.text.split(":")[0] for each in found.lines] == [
        "event checkin_due",
        "workflow remind -2h",
        "callback warn -1h",
    ]


def test_a_condition_that_turns_true_sets_timers_and_fires(clock, work):
    stay = book(clock, status="asked")
    found = of(stay, status="confirmed")
    assert counts(found) == (0, 3, 0, ["reservation_confirmed"])
    assert found.sentence == "Saving will set 3 timers, fire “reservation_confirmed”."
    assert "“reservation_confirmed” occurs: greet" in [each.text for each in found.lines]
    assert found.to_dict()["planned"] == 3


def test_a_condition_that_turns_false_cancels_timers(clock, work):
    stay = book(clock)
    work()
    assert counts(of(stay, status="called off")) == (0, 0, 3, [])
    assert counts(of(stay, checkin_at=None)) == (0, 0, 3, [])


def test_a_date_in_the_past_fires_at_once(clock, work):
    stay = book(clock)
    work()
    assert of(stay, checkin_at=clock() - HOUR).fired == ["checkin_due"]


def test_a_transition_and_watched_fields_are_compared_with_the_stored_row(clock, work):
    on_event("parcel_shipped", name="ship")(leave)
    parcel = Parcel.objects.create()
    work()
    assert "parcel_shipped" in of(parcel, state="sent").fired
    assert "parcel_shipped" not in of(parcel, state="lost").fired
    assert "parcel_weighed" in of(parcel, weight=3).fired
    assert "parcel_weighed" not in of(parcel, code="x").fired


def test_handlers_count_only_where_an_agent_lives(clock, work):
    counting_companion()
    booking = Booking.objects.create(guest=Person.objects.create())
    assert "companion" not in str([each.text for each in of(booking, status="confirmed").lines])
    work()
    assert "companion.confirmed" in str([each.text for each in of(booking, status="confirmed").lines])


def test_a_run_that_has_started_is_not_moved(clock, work):
    stay = book(clock)
    work(clock.tick(DAY - HOUR - HOUR / 2))
    assert WorkflowRun.objects.get().status == "completed"
    found = of(stay, checkin_at=stay.checkin_at + HOUR / 4)
    assert [each.text.split(":")[0] for each in found.lines] == ["event checkin_due", "callback warn -1h"]


def test_a_condition_that_raises_is_named(clock, declare):
    declare(Reservation, EventDefinition("noted", lambda stay: bool(stay.note) and 1 / 0))
    stay = book(clock)
    found = of(stay, note="x")
    assert found.lines[0].text == "“noted” cannot be evaluated: ZeroDivisionError: division by zero"


def test_a_row_without_events_is_previewed_as_its_first_save(clock):
    (stay,) = Reservation.objects.bulk_create([Reservation(status="asked", checkin_at=clock() + DAY)])
    assert counts(of(stay, status="confirmed")) == (0, 3, 0, ["reservation_confirmed"])


@pytest.mark.parametrize(
    "values",
    [
        {"status": "called off"},
        {"checkin_at": None},
        {"note": "x"},
        {"docs": True},
        {"status": "confirmed", "docs": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("status", ["asked", "confirmed"])
def test_saving_does_what_was_promised(clock, work, status, values):
    stay = book(clock, status=status)
    work()
    promised = of(stay, **values)
    fired_before = set(Event.objects.occurred().values_list("pk", flat=True))
    for name, value in values.items():
        setattr(stay, name, value)
    stay.save()
    work()
    fired = Event.objects.occurred().exclude(pk__in=fired_before).values_list("event_name", flat=True)
    assert sorted(fired) == sorted(promised.fired)
    assert of(stay).is_empty


# -- in the admin ------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(client) -> User:
    user = User.objects.create_superuser("root", password="x")
    client.force_login(user)
    return user


def posted(client, stay, headers=None, **values):
    moment = timezone.localtime(stay.checkin_at)
    left = timezone.localtime(stay.checkin_at + DAY)
    form = {
        "guest": Guest.objects.create().pk,
        "status": stay.status,
        "checkin_at_0": f"{moment:%Y-%m-%d}",
        "checkin_at_1": f"{moment:%H:%M:%S}",
        "checkout_at_0": f"{left:%Y-%m-%d}",
        "checkout_at_1": f"{left:%H:%M:%S}",
        "note": stay.note,
    }
    page = reverse("desk:app_reservation_preview", args=[stay.pk])
    return client.post(page, {**form, **values}, headers=headers)


def text_of(answer) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())).split())


def test_the_form_is_previewed_and_not_saved(client, root, clock, work):
    stay = book(clock, status="asked", checkin_at=clock().replace(microsecond=0) + DAY)
    answer = posted(client, stay, status="confirmed")
    assert "Saving will set 4 timers, fire “reservation_confirmed”." in text_of(answer)
    assert "<html" in answer.content.decode()
    stay.refresh_from_db()
    work()
    assert (stay.status, effects(), CallbackExecution.objects.count()) == ("asked", [], 0)
    assert not Event.objects.occurred().exists()


def test_the_script_gets_a_fragment(client, root, clock):
    stay = book(clock, status="asked")
    answer = posted(client, stay, {"X-Requested-With": "automation-preview"}, status="confirmed")
    assert "Saving will set 4 timers" in text_of(answer)
    assert "<html" not in answer.content.decode()


def test_a_form_with_errors_says_so(client, root, clock):
    answer = posted(client, book(clock), checkin_at_0="tomorrow")
    assert "The form has errors." in text_of(answer)
    assert "checkin_at: Enter a valid date." in text_of(answer)


def test_only_a_post_is_answered(client, root, clock):
    assert client.get(reverse("desk:app_reservation_preview", args=[book(clock).pk])).status_code == 405
