"""The admin of schedules: staff adds and changes its own, and pauses or fires any."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import complete, schedule, step, workflow
from django_ai.automation.events.models import Event, Schedule
from django_ai.automation.events.schedules.rows import ensure_rows

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "admin:automation_events_schedule_changelist"
ADD = "admin:automation_events_schedule_add"
CHANGE = "admin:automation_events_schedule_change"
GIVEN = {
    "name": "by staff",
    "target": "sweep_rooms",
    "cron": "0 6 * * *",
    "every": "",
    "timezone": "Europe/Berlin",
    "arguments": "{}",
    "catch_up": "1",
    "catch_up_within": "",
    "overlap": "allow",
}


@pytest.fixture(autouse=True)
def declared() -> None:
    @workflow("sweep_rooms")
    class SweepRooms:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    schedule(timedelta(hours=1), name="hourly")(lambda: None)
    ensure_rows(timezone.now())


@pytest.fixture
def staff(client):
    client.force_login(User.objects.create_superuser("root", password="x"))
    return client


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{}", "Context requires &#x27;floor&#x27;."),
        ('{"floors": 1}', "Context has no field &#x27;floors&#x27;. Did you mean &#x27;floor&#x27;?"),
        ('{"floor": 1}', ""),
    ],
)
def test_arguments_with_which_a_workflow_cannot_start_are_refused(staff, arguments, message):
    @workflow("sweep_floor")
    class SweepFloor:
        class Context(BaseModel):
            floor: int

        @step(start=True)
        def first(self):
            return complete()

    answer = staff.post(reverse(ADD), {**GIVEN, "target": "sweep_floor", "arguments": arguments}, follow=True)
    assert message in answer.text
    assert Schedule.objects.filter(target="sweep_floor").exists() == (not message)


def act(client, action: str, *rows: Schedule):
    pks = [row.pk for row in rows]
    return client.post(reverse(LIST), {"action": action, "_selected_action": pks}, follow=True)


def test_staff_adds_a_schedule_and_changes_it(staff):
    page = staff.get(reverse(ADD)).content.decode()
    assert "sweep_rooms" in page
    assert "Europe/Berlin" in page
    assert staff.post(reverse(ADD), GIVEN).status_code == 302
    row = Schedule.objects.get(name="by staff")
    assert row.wake_at is not None
    assert row.wake_at > timezone.now()
    assert staff.post(reverse(CHANGE, args=[row.pk]), {**GIVEN, "cron": "", "every": "00:05:00"}).status_code == 302
    row.refresh_from_db()
    assert timedelta(0) < row.wake_at - timezone.now() <= timedelta(minutes=5)
    assert "every 0:05:00" in staff.get(reverse(LIST)).content.decode()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("cron", "0 25 * * *", "no cron expression"), ("target", "swep_rooms", "Select a valid choice")],
)
def test_what_is_wrong_is_refused_with_the_reason(staff, field, value, message):
    page = staff.post(reverse(ADD), {**GIVEN, field: value}).content.decode()
    assert message in page
    assert not Schedule.objects.filter(name="by staff").exists()


def test_a_schedule_of_the_code_is_shown_and_not_changed(staff):
    row = Schedule.objects.get(name="hourly")
    page = staff.get(reverse(CHANGE, args=[row.pk])).content.decode()
    assert 'name="cron"' not in page
    assert staff.post(reverse(CHANGE, args=[row.pk]), GIVEN).status_code == 403


def test_actions_pause_unpause_and_fire(staff):
    row = Schedule.objects.get(name="hourly")
    act(staff, "pause", row)
    row.refresh_from_db()
    assert (row.wake_at, row.paused_at is None) == (None, False)
    act(staff, "unpause", row)
    row.refresh_from_db()
    assert (row.wake_at is None, row.paused_at) == (False, None)
    act(staff, "fire", row)
    assert Event.objects.filter(event_name__startswith="schedule:").count() == 1


def test_who_may_only_view_can_do_nothing(client):
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    ours = Permission.objects.get(codename="view_schedule", content_type__app_label="automation_events")
    user.user_permissions.add(ours)
    client.force_login(user)
    row = Schedule.objects.get(name="hourly")
    assert client.get(reverse(LIST)).status_code == 200
    act(client, "fire", row)
    act(client, "pause", row)
    row.refresh_from_db()
    assert (row.paused_at, Event.objects.count()) == (None, 0)
    assert client.post(reverse(ADD), GIVEN).status_code == 403
