"""The agenda: what is planned today, tomorrow and in the next days."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import complete, event_workflow, on_event, step
from django_ai.automation.console.agenda import planned_between
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def reminding():
    @event_workflow("checkin_due", offset=timedelta(hours=-2), name="reminder")
    class Reminder:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def send(self):
            return complete()

    @on_event("checkin_due", name="greet", offset=timedelta(hours=1))
    def greet(event):
        pass


def sign_in(client, *permissions: str) -> None:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


def shown(client, period: str = "") -> str:
    answer = client.get(reverse("admin:automation_console_agenda_changelist"), {"period": period} if period else {})
    assert answer.status_code == 200
    page = answer.content.decode()
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("automation-agenda") :])).split())


def expect(clock, **ahead: float) -> Reservation:
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + timedelta(**ahead))
    drain()
    return stay


ALL = ("view_agenda", "view_event", "view_workflowrun", "view_callbackexecution")


def test_each_period_has_what_is_planned_in_it(clock, client):
    sign_in(client, *ALL)
    assert "Nothing is planned." in shown(client)
    first, second = expect(clock, hours=5), expect(clock, days=1)
    today = shown(client)
    assert f"2030-01-07 16:00:00 CET reminder workflow run app.reservation {first.pk}" in today
    assert f"checkin_due event app.reservation {first.pk}" in today
    assert "notifies callback greet" in today
    assert f"app.reservation {second.pk}" not in today
    tomorrow = shown(client, "tomorrow")
    assert "2030-01-08 11:00:00 CET reminder" in tomorrow
    assert f"app.reservation {first.pk}" not in tomorrow
    assert all(f"app.reservation {stay.pk}" in shown(client, "week") for stay in (first, second))
    assert shown(client, "yesterday").partition(" as of ")[0] == today.partition(" as of ")[0]


def test_what_has_passed_is_listed_only_if_it_is_overdue(clock, client):
    sign_in(client, *ALL)
    late, called_off = expect(clock, hours=1), expect(clock, hours=1)
    called_off.status = "cancelled"
    called_off.save()
    drain()
    assert f"checkin_due event app.reservation {called_off.pk} its date" in shown(client), "it may become true again"
    clock.tick(timedelta(hours=1.5))
    page = shown(client)
    assert f"checkin_due event app.reservation {late.pk} its date" in page
    assert f"checkin_due event app.reservation {called_off.pk} its date" not in page
    assert f"app.reservation {called_off.pk} 1 hour after" in page


def test_rows_that_the_user_may_not_view_are_left_out(clock, client):
    expect(clock, hours=5)
    sign_in(client, "view_agenda", "view_event")
    assert "checkin_due" in shown(client)
    assert "reminder" not in shown(client)


def test_a_permission_of_its_own_is_needed(client):
    sign_in(client, "view_event", "view_overview")
    assert client.get(reverse("admin:automation_console_agenda_changelist")).status_code == 403


def test_the_number_of_queries_does_not_depend_on_what_is_planned(clock, client):
    sign_in(client, *ALL)
    counts = []
    for _ in range(2):
        for _ in range(3):
            expect(clock, hours=5)
        with CaptureQueriesContext(connection) as queries:
            shown(client)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 30


def test_rows_that_are_parked_for_code_do_not_take_the_place_of_others(clock):
    for _ in range(4):
        WorkflowRun.objects.create(
            name="gone", status="parked", parked_at=clock.now, wake_at=clock.now + timedelta(minutes=1)
        )
    planned = WorkflowRun.objects.create(name="reminder", wake_at=clock.now + timedelta(hours=1))
    found = planned_between(clock.now, clock.now + timedelta(hours=2), clock.now, limit=2)
    assert [(each.row, found.is_cut) for each in found.planned] == [(planned, False)]
