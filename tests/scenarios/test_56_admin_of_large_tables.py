"""The admin on large tables. A page reads a limited number of rows, and each action is logged."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from django_ai.automation import engine, on_event
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event, EventClaim
from django_ai.automation.queues import admin_lists
from django_ai.automation.queues.admin import MAX_MESSAGES, RowAdmin
from django_ai.automation.workflows.models import Signal, StepExecution, WorkflowRun
from tests.apps.story.models import Probe

pytestmark = pytest.mark.django_db

MANY = 300
MAX_QUERIES = 30
LISTS = [Event, CallbackExecution, EventClaim, WorkflowRun, Signal, AgentRun, HandlerExecution]


@pytest.fixture
def operator(client):
    user = User.objects.create_superuser("root", password="x")
    client.force_login(user)
    return user


def changelist(model: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def change(row: Any) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


def an_event(**values: Any) -> Event:
    return Event.objects.create(
        entity_type="story.probe", entity_id="1", event_name="probe_ready", declared_as="probe_ready", **values
    )


def executions(event: Event, count: int) -> None:
    CallbackExecution.objects.bulk_create(
        CallbackExecution(event=event, callback=f"shop.call_{n}", status="completed", unique_key=f"{n:032}")
        for n in range(count)
    )


def page_of(client: Any, url: str) -> tuple[str, list[str]]:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        response = client.get(url)
    assert response.status_code == 200
    return response.content.decode(), [each["sql"] for each in queries]


def test_56_the_page_of_an_event_shows_the_newest_executions(client, operator):
    event = an_event(status="processed")
    executions(event, MANY)
    text, queries = page_of(client, change(event))
    assert f"shop.call_{MANY - 1}" in text
    assert text.count("shop.call_") < 8 * admin_lists.MAX_INLINE_ROWS
    assert f"shop.call_{MANY - 1 - admin_lists.MAX_INLINE_ROWS}<" not in text
    assert len(queries) <= MAX_QUERIES


def test_56_the_page_of_a_run_shows_its_newest_steps(client, operator):
    run = WorkflowRun.objects.create(name="endless", current_step="turn")
    StepExecution.objects.bulk_create(
        StepExecution(run=run, step=f"turn_{n}", visit=n, attempt=1, finished=timezone.now(), outcome="goto")
        for n in range(MANY)
    )
    text, queries = page_of(client, change(run))
    assert f"turn_{MANY - 1}" in text
    assert f"turn_{MANY - 1 - admin_lists.MAX_INLINE_ROWS}<" not in text
    assert len(queries) <= MAX_QUERIES


def test_56_the_page_of_an_agent_reads_its_mailbox_with_its_events_at_once(client, operator):
    run = AgentRun.objects.create(name="keeper", status="active", started_at=timezone.now())
    events = [an_event(status="processed") for _ in range(20)]
    HandlerExecution.objects.bulk_create(
        HandlerExecution(
            run=run, event=event, handler="note", status="completed", due_at=timezone.now(), unique_key=f"{n:032}"
        )
        for n, event in enumerate(events)
    )
    _, queries = page_of(client, change(run))
    assert len(queries) <= MAX_QUERIES


@pytest.mark.parametrize("model", LISTS, ids=lambda model: model.__name__)
def test_56_no_list_asks_the_table_for_its_names_or_counts_all_of_it(client, operator, model, monkeypatch):
    monkeypatch.setattr(admin_lists, "MAX_COUNTED_ROWS", 7)
    executions(an_event(status="processed"), 20)
    WorkflowRun.objects.bulk_create(WorkflowRun(name="many") for _ in range(20))
    _, queries = page_of(client, changelist(model))
    ours = [sql for sql in queries if model._meta.db_table in sql]
    assert ours
    assert [sql for sql in ours if "DISTINCT" in sql.upper()] == []
    assert [sql for sql in ours if "COUNT(" in sql.upper()] == []


def test_56_a_list_counts_up_to_its_limit(client, operator, monkeypatch):
    monkeypatch.setattr(admin_lists, "MAX_COUNTED_ROWS", 7)
    WorkflowRun.objects.bulk_create(WorkflowRun(name="many") for _ in range(20))
    assert client.get(changelist(WorkflowRun)).context["cl"].result_count == 7


def test_56_a_list_goes_on_with_older_rows_by_their_key(client, operator, monkeypatch):
    monkeypatch.setattr(admin_lists, "MAX_COUNTED_ROWS", 7)
    monkeypatch.setattr(RowAdmin, "list_per_page", 4)
    made = WorkflowRun.objects.bulk_create(WorkflowRun(name="many", status="failed") for _ in range(20))
    seen, url = [], changelist(WorkflowRun) + "?status__exact=failed"
    while url:
        listed = client.get(url).context["cl"]
        for page in range(2, listed.paginator.num_pages + 1):
            seen += [row.pk for row in listed.result_list]
            listed = client.get(url, {"status__exact": "failed", **listed.filter_params, "p": page}).context["cl"]
        seen += [row.pk for row in listed.result_list]
        url = changelist(WorkflowRun) + listed.older_url if listed.older_url else ""
    assert seen == sorted((row.pk for row in made), reverse=True)


def test_56_filters_offer_what_the_code_declares(client, operator):
    an_event(status="pending")
    text, _ = page_of(client, changelist(Event))
    assert "declared_as=probe_due" in text
    found = client.get(changelist(Event), {"declared_as": "probe_due"}).context["cl"].result_count
    assert found == 0
    assert client.get(changelist(Event), {"declared_as": "probe_ready"}).context["cl"].result_count == 1


def test_56_a_search_compares_exactly(client, operator):
    run = WorkflowRun.objects.create(name="ops.charge", entity_type="story.probe", entity_id="AB-12")
    WorkflowRun.objects.create(name="ops.charge", entity_type="story.probe", entity_id="AB-123")

    def found(term: str) -> list[int]:
        return [row.pk for row in client.get(changelist(WorkflowRun), {"q": term}).context["cl"].result_list]

    assert found("AB-12") == [run.pk]
    assert found(str(run.pk)) == [run.pk]
    assert len(found("ops.charge")) == 2
    assert found("99999999999999999999999999") == []


@pytest.mark.parametrize("model", LISTS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("term", ["a word", "4711", "99999999999999999999999999"])
def test_56_every_list_takes_every_search(client, operator, model, term):
    assert client.get(changelist(model), {"q": term}).context["cl"].result_count == 0


def test_56_a_callback_is_found_by_its_name_or_its_entity(client, operator):
    @on_event("probe_ready", name="shop.call_1")
    def call(event):
        pass

    executions(an_event(status="processed"), 3)
    found = client.get(changelist(CallbackExecution), {"q": "shop.call_1"}).context["cl"].result_list
    assert [row.callback for row in found] == ["shop.call_1"]
    assert len(client.get(changelist(CallbackExecution), {"q": "1"}).context["cl"].result_list) >= 3
    assert client.get(changelist(CallbackExecution), {"q": "shop.call_2"}).context["cl"].result_list == []


def test_56_a_claim_is_found_by_the_number_of_its_owner(client, operator):
    claim = EventClaim.objects.create(event_name="due", key="k", unique_key="1", owner_kind="workflow", owner_id=4711)
    assert list(client.get(changelist(EventClaim), {"q": "4711"}).context["cl"].result_list) == [claim]


@pytest.mark.parametrize("wake_at", [None, timezone.now() + timedelta(days=1)])
def test_56_rows_that_wait_for_nothing_are_asked_together(client, operator, wake_at):
    runs = (WorkflowRun(name="stuck", status="suspended", wake_at=wake_at) for _ in range(30))
    WorkflowRun.objects.bulk_create(runs)
    _, queries = page_of(client, changelist(WorkflowRun))
    assert len(queries) < 12


def test_56_the_owners_of_claims_are_read_together(client, operator):
    for number in range(30):
        run = WorkflowRun.objects.create(name="owner")
        EventClaim.objects.create(
            event_name="probe_ready", key="k", unique_key=f"{number:032}", owner_kind="workflow", owner_id=run.pk
        )
    text, queries = page_of(client, changelist(EventClaim))
    assert f"owner #{run.pk}" in text
    assert len(queries) < 12


def test_56_each_action_leaves_an_entry_in_the_history(client, operator):
    runs = [WorkflowRun.objects.create(name="held", status="parked", error="a reason") for _ in range(3)]
    client.post(changelist(WorkflowRun), {"action": "resume", "_selected_action": [run.pk for run in runs]})
    entries = LogEntry.objects.filter(user=operator)
    assert sorted(entry.object_id for entry in entries) == sorted(str(run.pk) for run in runs)
    assert {entry.get_change_message() for entry in entries} == {"Resumed by an action."}
    history = reverse("admin:automation_workflows_workflowrun_history", args=[runs[0].pk])
    assert "Resumed." in client.get(history).content.decode()


def test_56_an_event_that_is_cancelled_says_by_whom(client, operator):
    event = an_event(status="pending", at=timezone.now() + timedelta(days=1))
    client.post(changelist(Event), {"action": "cancel", "_selected_action": [event.pk]})
    assert LogEntry.objects.get().user == operator
    event.refresh_from_db()
    assert event.status == "cancelled"


def test_56_what_is_refused_is_summed_up_and_not_logged(client, operator):
    runs = [WorkflowRun.objects.create(name="over", status="completed") for _ in range(12)]
    chosen = {"action": "resume", "_selected_action": [run.pk for run in runs]}
    text = client.post(changelist(WorkflowRun), chosen, follow=True).content.decode()
    assert text.count("only a parked or failed run can be resumed") == MAX_MESSAGES
    assert "7 more were refused" in text
    one = {"action": "cancel", "_selected_action": [runs[0].pk]}
    text = client.post(changelist(WorkflowRun), one, follow=True).content.decode()
    assert "has already finished" in text
    assert not LogEntry.objects.exists()


def test_56_a_page_says_first_what_matters_and_when_to_the_second(client, operator):
    @on_event("probe_ready", name="shop.greet")
    def greet(event):
        pass

    Probe.objects.create(name="x")
    run = engine.start("story:listen")
    WorkflowRun.objects.filter(pk=run.pk).update(created_at=timezone.now().replace(microsecond=0))
    run.refresh_from_db()
    text, _ = page_of(client, change(run))
    assert text.index("field-name") < text.index("field-lease")
    assert text.index("field-waits_for") < text.index("field-lease")
    assert f"{timezone.localtime(run.created_at):%Y-%m-%d %H:%M:%S}" in text
