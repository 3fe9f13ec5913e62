"""The overview: problems by their error, what is due and planned, workers, pauses; one page with few queries."""

from __future__ import annotations

import html
import io
import re
import shlex
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, sleep, step, workflow
from django_ai.automation.console import problems as problems_module
from django_ai.automation.console.desk import desk
from django_ai.automation.console.problems import problems
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.heartbeat import register_worker
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.lanes import is_look

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "admin:automation_console_overview_changelist"


@pytest.fixture
def refusing():
    @workflow("refusing")
    class Refusing:
        class Context(BaseModel):
            why: str = "it's the bank"

        @step(start=True, retry=Retry(max_attempts=1))
        def only(self):
            if self.context.why:
                raise ValueError(self.context.why)
            return complete()


class Ending:
    class Context(BaseModel):
        pass

    @step(start=True)
    def only(self):
        return complete()


def fail(count: int, why: str) -> None:
    for _ in range(count):
        engine.start("refusing", why=why)
    drain()


def sign_in(client, *permissions: str) -> None:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


def text(client) -> str:
    answer = client.get(reverse(PAGE))
    assert answer.status_code == 200
    page = answer.content.decode()
    shown = page[page.index('<div class="automation-story automation-desk">') :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown)).split())


def test_rows_with_one_error_are_one_problem(refusing):
    fail(3, "it's the bank")
    fail(1, "no such card")
    run = engine.start("refusing", why="")
    WorkflowRun.objects.filter(pk=run.pk).update(name="gone")
    drain()
    found = [(each.kind, each.name, each.state, each.count) for each in problems()]
    assert found[0] == ("workflow", "refusing", "failed", 3)
    assert sorted(found[1:]) == [("workflow", "gone", "parked", 1), ("workflow", "refusing", "failed", 1)]
    first = problems()[0]
    assert first.error == "ValueError: it's the bank"
    assert first.first_at <= first.last_at
    assert first.newest_pk == WorkflowRun.objects.filter(error__contains="bank").latest("pk").pk


def test_the_command_of_a_problem_resumes_its_rows_and_no_others(refusing):
    fail(3, "it's the bank")
    fail(1, "no such card")
    WorkflowRun.objects.update(data={"why": ""})
    script, name, *arguments = shlex.split(problems()[0].command)
    assert script == "manage.py"
    call_command(name, *arguments, stdout=io.StringIO())
    drain()
    assert WorkflowRun.objects.filter(status="completed").count() == 3
    assert [each.error for each in problems()] == ["ValueError: no such card"]


def test_only_the_newest_rows_are_read(refusing, monkeypatch):
    monkeypatch.setattr(problems_module, "MAX_ROWS", 2)
    fail(3, "no such card")
    (problem,) = problems()
    assert (problem.count, problem.is_capped) == (2, True)


def test_the_page_shows_problems_with_links(client, refusing):
    sign_in(client, "view_overview", "view_workflowrun")
    assert "Nothing is parked, and nothing has failed." in text(client)
    fail(2, "no such <card>")
    shown = text(client)
    assert "2 workflow run (failed) refusing ValueError: no such <card>" in shown
    page = client.get(reverse(PAGE)).content.decode()
    newest = WorkflowRun.objects.latest("pk")
    assert reverse("admin:automation_workflows_workflowrun_change", args=[newest.pk]) in page
    (rows,) = re.findall(r'href="([^"]*workflowrun/\?[^"]*)"', page)
    listed = client.get(html.unescape(rows)).content.decode()
    assert listed.count('class="field-status"') == 2
    assert "style=" not in page[page.index("automation-desk") :]


def test_the_page_shows_what_is_due_planned_and_paused(client, refusing, clock):
    @workflow("sleeper")
    class Sleeper:
        class Context(BaseModel):
            pass

        @step(start=True)
        def rest(self):
            return sleep(timedelta(minutes=30), then=self.end)

        @step
        def end(self):
            return complete()

    sign_in(client, "view_overview")
    engine.start("sleeper")
    drain()
    shown = text(client)
    assert "Nothing is due." in shown
    assert "Due in the next hour workflow runs: 1" in shown
    assert "No worker is alive" in shown or "Workers that are alive: 0." in shown
    register_worker("test")
    engine.pause(workflow="refusing")
    engine.start("refusing")
    engine.start("refusing")
    clock.tick(timedelta(minutes=2))
    shown = text(client)
    assert "Workers that are alive: 1." in shown
    assert "refusing" in shown[shown.index("Paused") :]


def test_what_is_planned_is_counted_in_each_lane_by_its_index(client, refusing, clock):
    """Without the conditions of the lane, the database would read the whole table."""
    workflow("reporting", queue="reports", priority=5)(type("Reporting", (Ending,), {}))
    now = clock()
    minutes = {"refusing": (30, 90, 20), "reporting": (40,)}
    for name, each in minutes.items():
        for number in each:
            run = engine.start(name)
            WorkflowRun.objects.filter(pk=run.pk).update(wake_at=now + timedelta(minutes=number))
    WorkflowRun.objects.filter(wake_at=now + timedelta(minutes=20)).update(lease="host:1:abc")
    with CaptureQueriesContext(connection) as queries:
        found = desk(now)
    assert found.planned == [("workflow runs", "2")]
    counts = [each["sql"] for each in queries if "wake_at >" in each["sql"] and "workflowrun" in each["sql"]]
    counts = [sql for sql in counts if not is_look(sql)]
    assert len(counts) == 2
    assert all("queue = " in sql and "priority = " in sql for sql in counts)


def test_problems_of_rows_that_the_user_may_not_view_are_left_out(client, refusing):
    fail(2, "secret")
    sign_in(client, "view_overview", "view_agentrun")
    assert "secret" not in text(client)


def test_who_may_not_view_the_overview_sees_nothing(client):
    sign_in(client, "view_workflowrun")
    assert client.get(reverse(PAGE)).status_code == 403
    client.logout()
    assert client.get(reverse(PAGE)).status_code == 302


def test_the_overview_takes_as_many_queries_with_many_rows(client, refusing):
    sign_in(client, "view_overview", "view_workflowrun")
    counts = []
    for count in (1, 50):
        fail(count, "no such card")
        text(client)
        with CaptureQueriesContext(connection) as queries:
            text(client)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 40
