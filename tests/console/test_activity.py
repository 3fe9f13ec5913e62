"""The overview: what was done by minute, as a picture and a table, what waits, who works, what is slow or fails."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import Concurrency, Retry, complete, engine, on_event, sleep, step, wait, workflow
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.console import activity as activity_module
from django_ai.automation.console import desk as desk_module
from django_ai.automation.console.activity import Activity, Counts, activity
from django_ai.automation.console.chart import chart
from django_ai.automation.console.desk import desk
from django_ai.automation.console.kinds import kinds
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.heartbeat import register_worker
from django_ai.automation.queues.lane_counts import count_lanes, leased_rows
from django_ai.automation.queues.lanes import Lane
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Reservation
from tests.support.marks import not_on

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "admin:automation_console_overview_changelist"
NOW = datetime(2030, 1, 7, 12, 30, 30, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


class Nothing(BaseModel):
    pass


def ended(ago: timedelta, status: str = "completed", *, late: bool = False, **values) -> WorkflowRun:
    """Insert a run that has ended this long before ``NOW``."""
    at = NOW - ago
    started = at - timedelta(seconds=1)
    created = started - (5 * MINUTE if late else timedelta(0))
    times = {"created_at": created, "started_at": started, "finished_at": at}
    return WorkflowRun.objects.create(name="any", status=status, **{**times, **values})


def sign_in(client, *permissions: str) -> None:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


# -- by minute ---------------------------------------------------------------------------------------------------------


def test_what_has_ended_is_counted_by_minute():
    for ago in (timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=40), 23 * HOUR, 25 * HOUR):
        ended(ago)
    ended(timedelta(seconds=7), "failed", late=True)
    ended(timedelta(seconds=7), "cancelled")
    ended(timedelta(seconds=7), late=True, planned=True)  # it was created long before it was due
    found = activity(NOW)
    first, second = NOW.replace(second=0), NOW.replace(second=0) - MINUTE
    assert found.minutes[first] == Counts(done=3, failed=1, late=1)
    assert found.minutes[second] == Counts(done=1)
    assert found.total == Counts(done=5, failed=1, late=1)
    assert (found.since, found.is_cut) == (NOW - 24 * HOUR, False)


def test_calls_and_handled_events_are_counted_too():
    event = Event.objects.create(event_name="a", declared_as="a")
    times = {"started_at": NOW - MINUTE, "finished_at": NOW - MINUTE}
    CallbackExecution.objects.create(
        event=event, callback="c", status="failed", created_at=NOW - HOUR, unique_key="1", **times
    )
    agent = AgentRun.objects.create(name="a")
    HandlerExecution.objects.create(
        run=agent, event=event, handler="h", status="completed", due_at=NOW - MINUTE, unique_key="1", **times
    )
    assert activity(NOW).minutes == {(NOW - MINUTE).replace(second=0): Counts(done=1, failed=1, late=1)}


def test_what_is_too_much_to_count_makes_the_picture_begin_later(monkeypatch):
    monkeypatch.setattr(activity_module, "MAX_ROWS", 3)
    for ago in (MINUTE, 2 * MINUTE, 3 * MINUTE, 4 * MINUTE):
        ended(ago)
    found = activity(NOW)
    assert found.is_cut
    assert found.since == NOW.replace(second=0) - 2 * MINUTE
    assert found.total.done == 2
    assert "13:28" in chart(found).note  # in the time zone of the project


def test_rows_of_one_hour_are_one_line_and_empty_hours_are_shown():
    minutes = {NOW.replace(second=0): Counts(1, 2, 3), NOW.replace(minute=5, second=0): Counts(1, 0, 0)}
    lines = chart(Activity(NOW - 24 * HOUR, NOW, minutes)).hours
    assert len(lines) == 25
    assert (lines[0].hour, lines[0].done, lines[0].failed, lines[0].late) == ("Mon 13:00", "2", "2", "3")
    assert lines[1].done == "0"


def test_the_picture_has_a_bar_for_each_minute_and_words_that_say_the_same():
    minutes = {
        NOW.replace(second=0): Counts(done=4),
        NOW.replace(second=0) - MINUTE: Counts(done=2, failed=1, late=1),
        NOW.replace(second=0) - 24 * HOUR: Counts(done=1),
    }
    drawn = chart(Activity(NOW - 24 * HOUR, NOW, minutes))
    bars = re.findall(r"M(\d+) ([\d.]+)h1v(-?[\d.]+)h-1z", drawn.done)
    assert bars == [("0", "80", "-20"), ("1438", "80", "-40"), ("1439", "80", "-80")]
    assert drawn.failed == "M1438 80h1v40h-1z"
    assert drawn.late == ""  # no room below a bar of the full height: the table has it
    assert drawn.summary == "The last 24 hours: 7 done, 1 failed, 1 started late."
    assert drawn.peak == "Most in one minute: 4, at 13:30."
    assert [tick.label for tick in drawn.ticks] == [
        "15:00",
        "18:00",
        "21:00",
        "00:00",
        "03:00",
        "06:00",
        "09:00",
        "12:00",
    ]
    assert chart(Activity(NOW - 24 * HOUR, NOW)).peak == "Nothing has ended."


# -- lanes, waiting, workers -------------------------------------------------------------------------------------------


def test_lanes_are_counted_with_one_query_up_to_the_limit():
    for minutes, lease in ((-1, None), (-1, None), (5, None), (5, "host:1:x"), (90, None)):
        WorkflowRun.objects.create(name="a", wake_at=NOW + minutes * MINUTE, lease=lease)
    WorkflowRun.objects.create(name="a", wake_at=NOW - MINUTE, queue="reports", priority=5)
    lanes = [Lane(WorkflowRun), Lane(WorkflowRun, "reports", 5), Lane(Event)]
    with CaptureQueriesContext(connection) as queries:
        found = count_lanes(lanes, NOW, NOW + HOUR, 10)
    assert [(each.due, each.soon, each.later) for each in found] == [(2, 1, 1), (1, 0, 0), (0, 0, 0)]
    assert len(queries) == 1
    assert count_lanes(lanes, NOW, NOW + HOUR, 1)[0].due == 1
    assert count_lanes([], NOW, NOW + HOUR, 1) == []


def test_leased_rows_are_found_by_their_index():
    row = WorkflowRun.objects.create(name="a", wake_at=NOW + timedelta(seconds=20), lease="host:7:abc")
    WorkflowRun.objects.create(name="a", wake_at=NOW + timedelta(seconds=20))
    WorkflowRun.objects.create(name="a", wake_at=NOW - timedelta(seconds=20), lease="dead:7:abc")
    (found,) = leased_rows([Lane(WorkflowRun), Lane(Event)], NOW, 10)
    assert (found.model, found.pk, found.holder) == (WorkflowRun, row.pk, "host:7")
    assert (found.since, found.until) == (None, row.wake_at)
    assert leased_rows([], NOW, 10) == []


def test_the_page_shows_what_waits_and_who_works(client, work):
    @workflow("waits", concurrency=Concurrency(1))
    class Waits:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return wait("bell", then=self.rest)

        @step()
        def rest(self):
            return sleep(timedelta(days=2), then=self.end)

        @step()
        def end(self):
            return complete()

    sign_in(client, "view_overview", "view_workflowrun", "view_worker")
    engine.start("waits")
    second = engine.start("waits")
    work()
    engine.signal("bell", run=second)
    work()
    register_worker("test")
    third = engine.start("waits")
    WorkflowRun.objects.filter(pk=third.pk).update(lease="web:9:abc", wake_at=timezone.now() + timedelta(seconds=20))
    page = client.get(reverse(PAGE)).content.decode()
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "for a signal, an event or a child: 1" in text
    assert "for a time after the next hour: 1" in text
    assert f'<a href="{reverse("admin:automation_workflows_workflowrun_change", args=[third.pk])}"' in page
    assert f'<a href="{reverse("admin:automation_queues_worker_changelist")}">Workers</a>' in page
    assert "web:9" in text
    assert 'role="img" aria-labelledby="automation-activity-text"' in page


def test_links_and_names_of_what_the_user_may_not_view_are_left_out(client, work):
    @workflow("secretive", default_retry=Retry(max_attempts=1))
    class Secretive:
        Context = Nothing

        @step(start=True)
        def hidden(self):
            raise ValueError

    sign_in(client, "view_overview")
    engine.start("secretive")
    work()
    held = WorkflowRun.objects.create(name="held", lease="web:9:abc", wake_at=timezone.now() + timedelta(seconds=20))
    page = client.get(reverse(PAGE)).content.decode()
    assert "secretive" not in page
    assert f"workflow run #{held.pk}" in page
    assert reverse("admin:automation_workflows_workflowrun_change", args=[held.pk]) not in page


# -- slow and failing --------------------------------------------------------------------------------------------------


def test_the_slowest_and_those_that_fail_most_often_come_first(work):
    @workflow("mixed", default_retry=Retry(max_attempts=1))
    class Mixed:
        class Context(BaseModel):
            ok: bool = True

        @step(start=True)
        def only(self):
            if not self.context.ok:
                raise ValueError
            return complete()

    @on_event("document_uploaded", name="calls")
    def calls(event):
        pass

    for ok in (True, True, False):
        engine.start("mixed", ok=ok)
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    (execution,) = CallbackExecution.objects.all()
    CallbackExecution.objects.filter(pk=execution.pk).update(
        started_at=execution.finished_at - 5 * MINUTE, finished_at=execution.finished_at
    )
    found = kinds([WorkflowRun, CallbackExecution, AgentRun])
    assert (found.slow[0].name, found.slow[0].median_text) == ("calls", "5 min")
    assert [(each.name, each.failed_text) for each in found.failing] == [("mixed.only", "1 of 3")]
    assert kinds([]).slow == []


# -- cost --------------------------------------------------------------------------------------------------------------


def test_the_page_takes_few_queries_however_many_rows_there_are(client, work):
    sign_in(client, "view_overview", "view_workflowrun", "view_callbackexecution", "view_agentrun", "view_worker")
    client.get(reverse(PAGE))
    counts = []
    for number in (1, 30):
        for _ in range(number):
            ended(MINUTE)
            ended(MINUTE, "failed", error="ValueError: no")
        with CaptureQueriesContext(connection) as queries:
            client.get(reverse(PAGE))
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 30


def test_counts_stop_at_their_limit(monkeypatch):
    monkeypatch.setattr(desk_module, "MAX_COUNTED_ROWS", 2)
    for _ in range(3):
        WorkflowRun.objects.create(name="a", wake_at=NOW - MINUTE)
    assert desk(NOW).due[0].count == "2+"


@not_on("mysql")
def test_what_has_ended_is_found_by_its_index():
    WorkflowRun.objects.bulk_create([WorkflowRun(name="a", created_at=NOW) for _ in range(500)])
    ended(MINUTE)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("ANALYZE automation_workflows_workflowrun")
        rows = WorkflowRun.objects.filter(finished_at__gte=NOW - HOUR).order_by("-finished_at")[:10]
        assert "automation_run_ended" in rows.explain()
