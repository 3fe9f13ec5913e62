"""The automations of an entity in the project's own admin: the box, the page, why, and who may see them."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.template import Context, Template
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import acting_as, complete, engine, event_workflow, on_event, step
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.reservations.models import Reservation
from tests.support.agents import counting_companion
from tests.support.rows import leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls("tests.support.entity_admin")]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
VIEW_ROWS = ("view_event", "view_workflowrun", "view_agentrun", "view_callbackexecution", "view_handlerexecution")


@pytest.fixture(autouse=True)
def automations(clock):
    @event_workflow("checkin_due", offset=-2 * HOUR, name="remind")
    class Remind:
        class Context(BaseModel):
            entity_id: int

        @step(start=True)
        def send(self):
            return complete()

    on_event("reservation_confirmed", name="greet")(leave)
    on_event("checkin_due", name="elsewhere", namespace="berlin")(leave)


@pytest.fixture
def stay(clock) -> Reservation:
    return Reservation.objects.create(status="confirmed", checkin_at=clock() + DAY)


def user_with(client, *permissions: str) -> User:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


@pytest.fixture
def root(client) -> User:
    user = User.objects.create_superuser("root", password="x")
    client.force_login(user)
    return user


def address(entity, kind: str) -> str:
    return reverse(f"desk:{entity._meta.app_label}_{entity._meta.model_name}_{kind}", args=[entity.pk])


def text_of(answer) -> str:
    assert answer.status_code == 200
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())).split())


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_has_what_happened_and_what_is_planned_in_one_line_of_time(client, root, stay, work):
    work()
    page = text_of(client.get(address(stay, "automations")))
    planned, past = page.index("What comes next"), page.index("What happened")
    assert "workflow remind" in page[planned:past]
    assert "event checkin_due" in page[planned:past]
    assert "callback greet" in page[past:]
    assert "Event reservation_confirmed occurred" in page[past:]
    others = page[page.index("Who has not acted") :]
    assert "did not act callback elsewhere checkin_due namespace: expected 'berlin'; found no namespace" in others


def test_a_run_that_was_cancelled_says_by_whom(client, root, stay, work):
    with acting_as("ann", "Called by phone."):
        engine.cancel(WorkflowRun.objects.get(), "Called by phone.")
    page = text_of(client.get(address(stay, "automations")))
    assert "workflow remind" in page[page.index("What happened") :]
    assert "ann: Cancelled: Called by phone." in page


def test_runs_that_no_event_has_started_are_listed(client, root, stay, work):
    run = engine.start("story:count", steps=1)
    WorkflowRun.objects.filter(pk=run.pk).update(entity_type="app.reservation", entity_id=str(stay.pk))
    work()
    assert f"Workflow {run}" in text_of(client.get(address(stay, "automations")))


def test_why_lists_the_conditions_of_the_chosen_subscriber(client, root, stay):
    Reservation.objects.update(status="asked")
    page = text_of(client.get(address(stay, "automations"), {"subscriber": "remind"}))
    assert "not yet condition true false" in page
    assert "yes date a value in 'checkin_at'" in page
    page = text_of(client.get(address(stay, "automations"), {"subscriber": "<b>nothing"}))
    assert "No subscriber to its events is called “<b>nothing”." in page


def test_an_event_has_a_table_of_its_subscribers_and_a_page_that_explains_them(client, root, stay, work):
    work()
    event = Event.objects.get(event_name="reservation_confirmed")
    row = reverse("admin:automation_events_event_change", args=[event.pk])
    page = text_of(client.get(row))
    assert "Subscribers State Subscriber Event Reason When ✓ ran callback greet" in page
    why = reverse("admin:automation_events_event_why", args=[event.pk])
    assert why in client.get(row).content.decode()
    assert "yes state pending or processed processed" in text_of(client.get(why, {"subscriber": "greet"}))


# -- permissions -------------------------------------------------------------------------------------------------------


def test_who_may_not_view_the_entity_or_events_is_refused(client, stay):
    page, row = address(stay, "automations"), address(stay, "change")
    user = user_with(client, "view_event", "view_workflowrun")
    assert client.get(page).status_code == 403
    user.user_permissions.set(Permission.objects.filter(codename="view_reservation"))
    assert client.get(page).status_code == 403
    form = client.get(row).content.decode()
    assert "automation-box" not in form
    assert page not in form
    client.logout()
    assert client.get(page).status_code == 302
    assert client.post(address(stay, "preview")).status_code == 302


def test_rows_of_a_kind_need_the_permission_to_view_it(client, stay, work):
    work()
    user_with(client, "view_reservation", "view_event", "view_callbackexecution")
    page = text_of(client.get(address(stay, "automations")))
    assert "callback greet" in page
    assert "remind" not in page
    page = text_of(client.get(address(stay, "automations"), {"subscriber": "remind"}))
    assert "No subscriber to its events is called “remind”." in page


def test_an_entity_that_the_admin_hides_has_no_page(client, root, stay):
    Reservation.objects.update(note="of others")
    assert client.get(address(stay, "automations")).status_code == 302
    assert client.post(address(stay, "preview")).status_code == 302


def test_values_of_contexts_need_the_permission_to_see_them(client, clock, work):
    counting_companion()
    guest = Person.objects.create(name="Ada")
    Booking.objects.create(guest=guest)
    work()
    for _ in range(40):
        Person.objects.create()
    message = Message.objects.create(sender=Person.objects.create())
    work()
    event = Event.objects.of(message).get()
    why = reverse("admin:automation_events_event_why", args=[event.pk])
    user = user_with(client, "view_event", "view_agentrun", "view_handlerexecution")
    page = text_of(client.get(why, {"subscriber": "companion.heard"}))
    assert "no match: sender_id hidden hidden" in page
    assert "the values differ" in page
    user.user_permissions.add(Permission.objects.get(codename="view_data_agentrun"))
    page = text_of(client.get(why, {"subscriber": "companion.heard"}))
    assert f"no match: sender_id {guest.pk} {message.sender_id}" in page


# -- the change form, and templates of the project ---------------------------------------------------------------------


def test_the_change_form_has_a_box_a_button_and_a_preview(client, root, stay):
    page = client.get(address(stay, "change"))
    form = page.content.decode()
    assert f'<a href="{address(stay, "automations")}">Automations</a>' in form
    assert "2 hours before 'checkin_due'" in form or "its date" in text_of(page)
    assert f'formaction="{address(stay, "preview")}"' in form
    assert "automation_console/preview.js" in form
    assert "<script>" not in form.split("</head>")[1], "no inline script"


def test_a_viewer_of_the_entity_gets_no_preview(client, stay):
    user_with(client, "view_reservation", *VIEW_ROWS)
    form = client.get(address(stay, "change")).content.decode()
    assert "automation-box" in form
    assert "formaction" not in form
    assert client.post(address(stay, "preview"), {"status": "x"}).status_code == 403


def test_a_template_of_the_project_draws_the_box(client, root, stay):
    request = RequestFactory().get("/")
    request.user = root
    template = Template("{% load automation_console %}{% automation_panel stay %}")
    drawn = template.render(Context({"stay": stay, "request": request}))
    assert "remind" in drawn
    page = reverse("admin:automation_console_overview_entity", args=["app.reservation", stay.pk])
    assert page in drawn
    assert "workflow remind" in text_of(client.get(page))
    request.user = User.objects.create_user("nobody")
    assert template.render(Context({"stay": stay, "request": request})).strip() == ""
    assert template.render(Context({"stay": stay})).strip() == ""


def test_the_page_of_any_entity_needs_its_permission(client, stay):
    page = reverse("admin:automation_console_overview_entity", args=["app.reservation", stay.pk])
    user = user_with(client, "view_event")
    assert client.get(page).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_reservation"))
    assert client.get(page).status_code == 200
    for label, key in (("app.reservation", 999), ("app.reservation", "x")):
        assert client.get(reverse("admin:automation_console_overview_entity", args=[label, key])).status_code == 403
    assert client.post(page).status_code == 405
    assert client.get(reverse("admin:automation_console_overview_entity", args=["no.model", 1])).status_code == 404


# -- cost --------------------------------------------------------------------------------------------------------------


def test_the_number_of_queries_does_not_grow_with_the_history(client, root, stay, work):
    def queries(page: str, **options: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert client.get(page, options).status_code == 200
        return len(captured)

    page = address(stay, "automations")
    work()
    queries(page)
    few, few_why, few_form = queries(page), queries(page, subscriber="greet"), queries(address(stay, "change"))
    for number in range(80):
        Event.objects.create(
            entity_type="app.reservation",
            entity_id=str(stay.pk),
            event_name="reservation_confirmed",
            declared_as="reservation_confirmed",
            status="processed",
            occurred_at=stay.checkin_at,
            position=number,
        )
    assert queries(page) <= few <= 28
    assert queries(page, subscriber="greet") <= few_why <= 20
    assert queries(address(stay, "change")) <= few_form <= 28
