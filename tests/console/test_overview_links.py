"""From the overview to what can be done: the group among the problems, the entity of a row, and who has leased it."""

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

from django_ai.automation import Retry, engine, event_workflow, fail, on_event, step, workflow
from django_ai.automation.console.problems import problems
from django_ai.automation.db.database_clock import DatabaseNow
from django_ai.automation.queues.claim import claim, claim_rows, new_token
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import MutedProblem, Worker
from django_ai.automation.queues.wakeable import leased_at
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = reverse("admin:automation_console_overview_changelist")
PROBLEMS = reverse("admin:automation_queues_mutedproblem_changelist")
VIEW = ("view_overview", "view_workflowrun", "view_callbackexecution", "view_mutedproblem", "view_event")
OPERATOR = (*VIEW, "resume_workflowrun", "add_mutedproblem")


class Reason(BaseModel):
    why: str = ""


class Charging:
    Context = Reason

    @step(start=True, retry=Retry(max_attempts=1))
    def pay(self):
        return fail(self.context.why)


@pytest.fixture(autouse=True)
def charging():
    workflow("charging")(type("Charging", (Charging,), {}))


def sign_in(client, *permissions: str) -> User:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


def page_of(client, address: str = PAGE) -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    page = answer.content.decode()
    return page[page.index('class="automation-story') :]


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def group_links(page: str) -> list[str]:
    return [html.unescape(each) for each in re.findall(rf'href="({PROBLEMS}\?problem=[^"]*)"', page)]


def fail_for(*reasons: str) -> None:
    for each in reasons:
        engine.start("charging", why=each)
    drain()


# -- problems ----------------------------------------------------------------------------------------------------------


def test_each_problem_leads_to_its_group_with_the_buttons(client):
    fail_for("no such card", "no such card", "the till is closed")
    sign_in(client, *OPERATOR)
    page = page_of(client)
    links = group_links(page)
    assert links == [f"{PROBLEMS}?problem={each.key}" for each in problems()]
    assert text_of(page).count("Resume, cancel or mute") == 2
    group = page_of(client, links[0])
    assert "no such card" in group
    assert "the till is closed" not in group
    assert re.search(r'<button[^>]*name="verb" value="resume"', group)
    assert "formaction" in group
    assert f'href="{PROBLEMS}"' in group
    assert "the till is closed" in page_of(client, PROBLEMS)


def test_a_muted_group_is_shown_by_its_link_and_a_gone_one_says_so(client):
    fail_for("no such card")
    sign_in(client, *OPERATOR)
    (link,) = group_links(page_of(client))
    engine.mute(WorkflowRun.objects.get(), reason="The bank knows.")
    assert group_links(page_of(client)) == []
    assert "The bank knows." in text_of(page_of(client, link))
    WorkflowRun.objects.all().delete()
    assert "The bank knows." in text_of(page_of(client, link))
    MutedProblem.objects.all().delete()
    assert "No row has this problem any more." in text_of(page_of(client, link))


def test_a_viewer_is_led_to_the_group_without_a_button(client):
    fail_for("no such card")
    sign_in(client, *VIEW)
    page = page_of(client)
    (link,) = group_links(page)
    assert "Show among the problems" in text_of(page)
    assert "Resume, cancel or mute" not in text_of(page)
    assert "<button" not in page_of(client, link)


def test_who_may_not_view_problems_has_no_link(client):
    fail_for("no such card")
    sign_in(client, "view_overview", "view_workflowrun")
    page = page_of(client)
    assert "no such card" in page
    assert group_links(page) == []
    assert client.get(PROBLEMS).status_code == 403


def test_a_group_of_rows_that_the_user_may_not_view_is_not_shown(client):
    fail_for("a secret")
    sign_in(client, "view_overview", "view_mutedproblem", "view_agentrun")
    assert "a secret" not in page_of(client, f"{PROBLEMS}?problem={problems()[0].key}")


# -- entities ----------------------------------------------------------------------------------------------------------


def entity_page(entity) -> str:
    return reverse("admin:automation_console_overview_entity", args=[entity._meta.label_lower, entity.pk])


def refuse_reservations() -> Reservation:
    @event_workflow("reservation_confirmed", name="welcome")
    class Welcome:
        class Context(BaseModel):
            entity_id: int

        @step(start=True, retry=Retry(max_attempts=1))
        def begin(self):
            return fail("no key")

    @on_event("reservation_confirmed", name="greet", retry=Retry(max_attempts=1))
    def greet(event):
        raise ValueError("no address")

    stay = Reservation.objects.create(status="confirmed")
    drain()
    return stay


def test_the_newest_row_of_a_problem_names_its_entity(client):
    stay = refuse_reservations()
    sign_in(client, *VIEW, "view_reservation")
    page = page_of(client)
    assert page.count(f'href="{entity_page(stay)}"') == 2
    assert f"the newest is about reservation {stay.pk}" in text_of(page)
    assert client.get(entity_page(stay)).status_code == 200


def test_an_entity_that_the_user_may_not_view_is_no_link(client):
    stay = refuse_reservations()
    sign_in(client, *VIEW)
    page = page_of(client)
    assert f"the newest is about reservation {stay.pk}" in text_of(page)
    assert entity_page(stay) not in page


def test_an_entity_whose_model_was_removed_is_named(client):
    stay = refuse_reservations()
    WorkflowRun.objects.update(entity_type="gone.guest")
    sign_in(client, *VIEW)
    assert f"the newest is about gone.guest {stay.pk}" in text_of(page_of(client))


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_lease_says_when_it_began(clock):
    now = clock()
    found = leased_at(new_token(now))
    assert found is not None
    assert abs(found - now) <= timedelta(milliseconds=1)
    for unknown in ("", "host:1:abc", "host:1:xyz-abc", f"host:1:{'f' * 40}-abc", new_token()):
        assert leased_at(unknown) is None
    assert len(new_token(now).replace(new_token(now).rpartition(":")[0], "h" * 60 + ":4194304")) <= 100


def test_both_ways_to_claim_keep_the_moment(clock):
    runs = [engine.start("charging"), engine.start("charging")]
    for row in (*claim_rows(WorkflowRun, [runs[0].pk], clock()), *claim(WorkflowRun, clock(), 1)):
        row.refresh_from_db()
        assert row.leased_at is not None
        assert abs(row.leased_at - clock()) <= timedelta(milliseconds=1)


def test_the_pages_say_since_when_and_until_when_a_worker_has_leased_rows(client, clock):
    runs = [engine.start("charging") for _ in range(2)]
    first = clock()
    (one,) = claim_rows(WorkflowRun, [runs[0].pk], first)
    second = clock.tick(timedelta(seconds=3))
    claim_rows(WorkflowRun, [runs[1].pk], second)
    WorkflowRun.objects.filter(pk=one.pk).update(entity_type="app.reservation", entity_id="7")
    host, _, pid = one.holder.rpartition(":")
    moments = {"started_at": DatabaseNow(), "seen_at": DatabaseNow()}
    worker = Worker.objects.create(name="w", host=host, pid=int(pid), runtime="test", **moments)
    sign_in(client, *VIEW, "view_worker", "view_reservation")
    since, until = (f"{timezone.localtime(each):%Y-%m-%d %H:%M:%S}" for each in (first, one.wake_at))
    shown = text_of(page_of(client)).replace("( ", "(").replace(" )", ")")
    assert f"2 since {since}, until {until} : workflow run #{one.pk} (reservation 7)" in shown
    listed = client.get(reverse("admin:automation_queues_worker_changelist")).content.decode()
    assert f"2 since {since}, until {until}: " in listed
    story = text_of(page_of(client, reverse("admin:automation_queues_worker_change", args=[worker.pk])))
    assert since in story[story.index("What it has leased now") :]


# -- queries -----------------------------------------------------------------------------------------------------------


def test_the_overview_takes_as_many_queries_with_many_problems_and_entities(client):
    refuse_reservations()
    fail_for("no such card")
    sign_in(client, *OPERATOR, "view_reservation", "view_agentrun", "view_worker")
    page_of(client)
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            page_of(client)
        counts.append(len(queries))
        fail_for(*("a" * number for number in range(1, 9)))
        refuse_reservations()
    assert counts[0] == counts[1] <= 30
