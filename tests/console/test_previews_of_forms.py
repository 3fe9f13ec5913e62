"""What saving a form of the admin would set off: of an entity that is added, and of the rows in inlines."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import EventDefinition, complete, event_workflow, on_event, step
from django_ai.automation.console.preview import Preview, preview
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.captured.models import Cabinet, WatchedSlot
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.reservations.models import Chore, Effect, Room, Suite, Ticket, VipStay
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls("tests.support.entity_admin")]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ADD = "desk:desk_booking_add"
CHANGE = "desk:desk_booking_change"
FRAGMENT = {"X-Requested-With": "automation-preview"}


@pytest.fixture(autouse=True)
def automations(clock):
    @event_workflow("stay_due", offset=-2 * HOUR, name="remind")
    class Remind:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def send(self):
            return complete()

    on_event("stay_due", name="warn", offset=-HOUR)(leave)
    on_event("booking_confirmed", name="greet")(leave)
    on_event("message_received", name="read")(leave)


@pytest.fixture
def guest() -> Person:
    return Person.objects.create(name="Ada")


def sign_in(client, *permissions: str) -> None:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


@pytest.fixture
def root(client) -> User:
    user = User.objects.create_superuser("root", password="x")
    client.force_login(user)
    return user


def counts(found: Preview) -> tuple[int, int, int, list[str]]:
    return found.moved, found.planned, found.cancelled, found.fired


def writes(queries) -> list[str]:
    """Return what was sent besides reads, and the ends of the transactions in which functions of a definition read."""
    reading = {"SELECT", "BEGIN", "COMMIT", "SAVEPOINT", "RELEASE"}
    return [each["sql"] for each in queries if each["sql"].split()[0] not in reading]


def occurred() -> list[str]:
    return sorted(Event.objects.occurred().values_list("event_name", flat=True))


# -- an entity that has no row yet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "timers"),
    [
        ({}, 0),
        ({"status": "confirmed"}, 0),
        ({"starts_at": DAY}, 3),
        ({"starts_at": -HOUR}, 2),  # the date itself is past: it fires, and its offsets are overdue
        ({"starts_at": DAY, "status": "cancelled"}, 0),
    ],
    ids=str,
)
def test_saving_a_new_row_does_what_was_promised(clock, work, guest, values, timers):
    moments = {name: clock() + each for name, each in values.items() if isinstance(each, timedelta)}
    booking = Booking(guest=guest, **{**values, **moments})
    with CaptureQueriesContext(connection) as queries:
        promised = preview(booking, timezone.now())
    assert writes(queries) == []
    assert booking.pk is None
    assert booking._state.adding
    assert counts(promised)[:3] == (0, timers, 0)
    booking.save()
    work()
    assert occurred() == sorted(promised.fired)
    is_pending = Event.objects.filter(event_name="stay_due", status="pending", armed=True, at__isnull=False).exists()
    assert (WorkflowRun.objects.filter(name="remind").exists(), is_pending) == (timers > 0, timers == 3)


def test_a_condition_that_follows_a_relation_of_a_new_row_finds_nothing(clock, guest, declare):
    declare(Booking, EventDefinition("quiet", lambda booking: not booking.message_set.exists()))
    Message.objects.create(sender=guest, booking=Booking.objects.create(guest=guest))
    found = preview(Booking(guest=guest), timezone.now())
    assert "quiet" in found.fired
    assert "cannot be evaluated" not in str(found.lines)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Ticket(open=False),
        lambda: Room(number="12", is_clean=True),
        lambda: Suite(number="13", is_clean=True),
        lambda: Chore(done=True),
        lambda: Cabinet(number="14", is_clean=True),
        lambda: WatchedSlot(name="a"),
        lambda: VipStay(note="here", status="confirmed"),
    ],
    ids=["uuid", "string", "child", "abstract", "captured child", "generated", "proxy"],
)
def test_keys_of_all_kinds_are_previewed_and_saved_alike(work, make):
    row = make()
    promised = preview(row, timezone.now())
    assert "cannot be evaluated" not in str(promised.lines)
    row.save()
    work()
    assert promised.fired
    assert occurred() == sorted(promised.fired)


def test_times_that_a_save_sets_count(declare, monkeypatch):
    monkeypatch.setattr(Effect, "events", [], raising=False)
    declare(Effect, EventDefinition("effected", date_field="at"))
    assert preview(Effect(name="a"), timezone.now()).fired == ["effected"]


def test_a_row_that_was_deleted_meanwhile_has_no_preview(guest):
    booking = Booking.objects.create(guest=guest)
    Booking.objects.filter(pk=booking.pk).delete()
    assert preview(booking, timezone.now()).is_empty


# -- forms -------------------------------------------------------------------------------------------------------------


def posted(booking_or_guest, *messages: dict, **values) -> dict[str, str]:
    """Return what the form of a booking posts, with rows of its inline."""
    booking = booking_or_guest if isinstance(booking_or_guest, Booking) else Booking(guest=booking_or_guest)
    form = {"guest": booking.guest_id, "status": booking.status, "note": booking.note}
    for name in ("starts_at", "ends_at"):
        moment = timezone.localtime(values.pop(name, timezone.now().replace(microsecond=0) + DAY))
        form |= {f"{name}_0": f"{moment:%Y-%m-%d}", f"{name}_1": f"{moment:%H:%M:%S}"}
    stored = sum("id" in each for each in messages)
    form |= {"message_set-TOTAL_FORMS": len(messages), "message_set-INITIAL_FORMS": stored}
    for number, message in enumerate(messages):
        row = {"status": "new", "urgency": 0, "booking": booking.pk or "", **message}
        form |= {f"message_set-{number}-{name}": value for name, value in row.items()}
    return {name: str(value) for name, value in {**form, **values}.items()}


def of_message(message: Message, **values) -> dict:
    row = {"id": message.pk, "sender": message.sender_id, "text": message.text, "urgency": message.urgency}
    return {**row, "status": message.status, **values}


def text_of(answer) -> str:
    assert answer.status_code == 200
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())).split())


def previewed(client, form: dict[str, str], booking: Booking | None = None) -> str:
    page = "desk:desk_booking_add_preview" if booking is None else "desk:desk_booking_preview"
    with CaptureQueriesContext(connection) as queries:
        answer = client.post(reverse(page, args=[booking.pk] if booking else []), form, headers=FRAGMENT)
    assert writes(queries) == []
    return text_of(answer)


def saved(client, form: dict[str, str], booking: Booking | None = None) -> None:
    page = reverse(ADD) if booking is None else reverse(CHANGE, args=[booking.pk])
    assert client.post(page, form).status_code == 302


def test_the_form_that_adds_is_previewed_and_not_saved(client, root, work, guest):
    form = posted(guest, status="confirmed")
    text = previewed(client, form)
    assert "Saving will set 4 timers, fire “booking_created”, fire “booking_confirmed”." in text
    assert "“booking_confirmed” occurs: greet" in text
    work()
    assert (Booking.objects.count(), Event.objects.count(), effects()) == (0, 0, [])
    saved(client, form)
    work()
    assert {"booking_created", "booking_confirmed"} <= set(occurred())


def test_the_form_that_adds_has_the_button(client, root):
    page = client.get(reverse(ADD)).content.decode()
    assert f'formaction="{reverse("desk:desk_booking_add_preview")}"' in page
    assert "What will saving do?" in page
    assert "automation_console/preview.js" in page
    assert "automation-box" not in page


def test_without_the_script_the_answer_is_a_page(client, root, guest):
    answer = client.post(reverse("desk:desk_booking_add_preview"), posted(guest))
    assert "<html" in answer.content.decode()
    assert "Saving will set 4 timers" in text_of(answer)


def test_who_may_not_add_or_view_events_gets_403(client, guest):
    page = reverse("desk:desk_booking_add_preview")
    answer = client.post(page, posted(guest))
    assert answer.status_code == 302
    assert "/login/" in answer.url
    sign_in(client, "view_booking", "change_booking", "view_event")
    assert client.post(page, posted(guest)).status_code == 403
    User.objects.all().delete()
    sign_in(client, "view_booking", "add_booking")
    assert client.post(page, posted(guest)).status_code == 403
    assert "automation-preview" not in client.get(reverse(ADD)).content.decode()


def test_only_a_post_is_answered(client, root):
    assert client.get(reverse("desk:desk_booking_add_preview")).status_code == 405


# -- inlines -----------------------------------------------------------------------------------------------------------


def test_new_rows_of_inlines_count(client, root, work, guest):
    booking = Booking.objects.create(guest=guest)
    work()
    form = posted(booking, {"sender": guest.pk, "text": "Early?"}, {"sender": guest.pk, "text": "Late?"})
    text = previewed(client, form, booking)
    assert "fire “message_received” 2 times" in text
    assert "message (new): “message_received” occurs: read" in text
    assert not Message.objects.exists()
    saved(client, form, booking)
    work()
    assert occurred().count("message_received") == 2


def test_rows_of_inlines_that_are_not_changed_do_not_count(client, root, work, guest):
    booking = Booking.objects.create(guest=guest)
    message = Message.objects.create(sender=guest, booking=booking, text="Early?")
    work()
    form = posted(booking, of_message(message), starts_at=timezone.now(), ends_at=timezone.now())
    assert "message" not in previewed(client, form, booking)


def test_a_changed_row_of_an_inline_sees_the_unsaved_values_of_the_entity(client, root, work, guest, declare):
    declare(Message, EventDefinition("urgent", lambda each: each.urgency > 5 and each.booking.status == "confirmed"))
    booking = Booking.objects.create(guest=guest)
    message = Message.objects.create(sender=guest, booking=booking)
    work()
    form = posted(booking, of_message(message, urgency=9), status="confirmed")
    text = previewed(client, form, booking)
    assert f"message {message.pk}: “urgent” occurs" in text
    assert "fire “urgent”" in text
    assert "urgent" not in previewed(client, posted(booking, of_message(message, urgency=9)), booking)
    saved(client, form, booking)
    work()
    assert "urgent" in occurred()


def test_an_added_entity_and_its_inlines_are_previewed_together(client, root, work, guest, declare):
    of_confirmed = EventDefinition("of_confirmed", lambda each: each.booking.status == "confirmed")
    declare(Message, EventDefinition("message_received"), of_confirmed)
    form = posted(guest, {"sender": guest.pk, "text": "Early?"}, status="confirmed")
    text = previewed(client, form)
    for name in ("booking_created", "booking_confirmed", "message_received", "of_confirmed"):
        assert f"fire “{name}”" in text
    assert not Booking.objects.exists()
    saved(client, form)
    work()
    assert {"booking_created", "booking_confirmed", "message_received", "of_confirmed"} <= set(occurred())


def test_a_condition_of_the_entity_reads_the_inlines_as_they_are_stored(client, root, work, guest, declare):
    """So does saving: the entity is saved before its inlines."""
    declare(Booking, EventDefinition("spoken", lambda each: each.message_set.exists()))
    booking = Booking.objects.create(guest=guest)
    form = posted(booking, {"sender": guest.pk, "text": "Early?"}, status="confirmed")
    assert "spoken" not in previewed(client, form, booking)
    saved(client, form, booking)
    work()
    assert "spoken" not in occurred()


def test_deleted_rows_of_inlines_are_named_only(client, root, work, guest):
    booking = Booking.objects.create(guest=guest)
    message = Message.objects.create(sender=guest, booking=booking)
    work()
    text = previewed(client, posted(booking, of_message(message, DELETE="on")), booking)
    assert f"message {message.pk} is deleted: what follows from that is not shown" in text
    assert Message.objects.exists()


def test_errors_of_inlines_are_named(client, root, guest):
    booking = Booking.objects.create(guest=guest)
    text = previewed(client, posted(booking, {"text": "Early?"}, status=""), booking)
    assert "The form has errors." in text
    assert "status: This field is required." in text
    assert "message 1: sender: This field is required." in text
