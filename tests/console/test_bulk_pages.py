"""Actions on many rows from the admin: a confirmation with a reason, a bulk action, its page; and who may do it."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core import signing
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, fail, step, wait, workflow
from django_ai.automation.console import bulk_pages
from django_ai.automation.console.problems import all_problems, problems
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, BulkAction, MutedProblem
from django_ai.automation.workflows.admin import WorkflowRunAdmin
from django_ai.automation.workflows.models import WorkflowRun

pytestmark = pytest.mark.django_db(transaction=True)

RUNS = "admin:automation_workflows_workflowrun_changelist"
PROBLEMS = "admin:automation_queues_mutedproblem_changelist"
CONFIRM = "admin:automation_queues_bulkaction_confirm"
START = "admin:automation_queues_bulkaction_start"
MUTE = "admin:automation_queues_mutedproblem_mute"
OPERATOR = (
    "view_workflowrun",
    "cancel_workflowrun",
    "resume_workflowrun",
    "view_bulkaction",
    "cancel_bulkaction",
    "view_mutedproblem",
    "add_mutedproblem",
    "delete_mutedproblem",
)


@pytest.fixture
def remind(monkeypatch):
    monkeypatch.setattr(bulk_pages, "MAX_DIRECT_ROWS", 2)

    @workflow("remind")
    class Remind:
        class Context(BaseModel):
            why: str = ""

        @step(start=True, retry=Retry(max_attempts=1))
        def begin(self):
            if self.context.why:
                return fail(self.context.why)
            return wait("reply", then=self.end)

        @step()
        def end(self):
            return complete()


def started(count: int, why: str = "") -> list[WorkflowRun]:
    runs = [engine.start("remind", why=why) for _ in range(count)]
    drain()
    return runs


def sign_in(client, *permissions: str, name: str = "ann") -> User:
    user = User.objects.create_user(name, password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


def token_in(page: str) -> str:
    return html.unescape(re.findall(r'name="token" value="([^"]*)"', page)[0])


def cancel_all(client, query: str = "", **more):
    given = {"action": "cancel", "select_across": "1", "index": "0", "_selected_action": ["1"], **more}
    return client.post(reverse(RUNS) + query, given)


def text_of(answer) -> str:
    content = answer.content.decode()
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", content[content.index('id="content"') :])).split())


def test_all_rows_of_a_list_are_cancelled_after_a_confirmation(client, remind):
    user = sign_in(client, *OPERATOR)
    started(4)
    failed = started(1, "no bed")
    page = cancel_all(client, "?status__exact=suspended&name=remind")
    text = text_of(page)
    assert page.status_code == 200
    assert "Concerned: 4 (workflow runs)." in text
    assert "status = suspended" in text
    assert "name = remind" in text
    assert "This cannot be undone." in text
    assert not BulkAction.objects.exists()
    given = {"token": token_in(page.content.decode()), "verb": "cancel", "reason": " "}
    assert "Say why" in text_of(client.post(reverse(START), given))
    answer = client.post(reverse(START), {**given, "reason": "The season is over."}, follow=True)
    bulk = BulkAction.objects.get()
    assert answer.redirect_chain[0][0] == reverse("admin:automation_queues_bulkaction_change", args=[bulk.pk])
    assert "0 of 4" in text_of(answer)
    entry = LogEntry.objects.get()
    assert (entry.user, entry.object_id, entry.change_message) == (user, str(bulk.pk), "cancel: The season is over.")
    drain()
    text = text_of(client.get(answer.redirect_chain[0][0]))
    assert "4 of 4" in text
    assert "4 done, 0 refused, 0 failed, 0 remaining" in text
    assert "ann" in text
    assert {run.error for run in engine.runs("remind", status="cancelled")} == {"Cancelled by ann: The season is over."}
    failed[0].refresh_from_db()
    assert failed[0].status == "failed"


def test_few_rows_are_changed_at_once(client, remind):
    sign_in(client, *OPERATOR)
    started(2, "no bed")
    assert cancel_all(client, action="resume").status_code == 302
    assert not engine.runs("remind", status="failed").exists()


def test_one_row_is_cancelled_at_once(client, remind):
    sign_in(client, *OPERATOR)
    started(1)
    assert cancel_all(client).status_code == 302
    assert engine.runs("remind", status="cancelled").count() == 1


@pytest.mark.parametrize(("action", "is_parked_again"), [("resume", True), ("cancel", False)])
def test_only_what_is_resumed_may_be_parked_again_for_its_code(client, remind, action, is_parked_again):
    sign_in(client, *OPERATOR)
    (run,) = started(1)
    WorkflowRun.objects.filter(pk=run.pk).update(name="gone", status="running", wake_at=run.created_at)
    drain()
    answer = client.post(reverse(RUNS), {"action": action, "_selected_action": [str(run.pk)]}, follow=True)
    assert ("because their code was missing" in answer.content.decode()) is is_parked_again


@pytest.mark.parametrize("across", ["0", "1"])
def test_two_rows_are_cancelled_after_a_confirmation_and_without_a_worker(client, remind, across):
    user = sign_in(client, *OPERATOR)
    runs = started(2)
    page = cancel_all(client, select_across=across, _selected_action=[str(run.pk) for run in runs], reason="Snow.")
    text = text_of(page)
    assert "Concerned: 2 (workflow runs)." in text
    assert "This cannot be undone." in text
    assert "Workers do it in the background" not in text
    assert ">Snow.</textarea>" in page.content.decode()
    assert not engine.runs("remind", status="cancelled").exists()
    given = {"token": token_in(page.content.decode()), "verb": "cancel", "reason": " "}
    assert "Say why" in text_of(client.post(reverse(START), given))
    answer = client.post(reverse(START), {**given, "reason": "Snow."}, follow=True)
    assert answer.redirect_chain[0][0] == reverse(RUNS)
    assert "Cancelled: 2." in answer.content.decode()
    assert {run.error for run in engine.runs("remind", status="cancelled")} == {"Cancelled by ann: Snow."}
    assert {entry.user for entry in LogEntry.objects.all()} == {user}
    assert not BulkAction.objects.exists()
    again = client.post(reverse(START), {**given, "reason": "Snow."}, follow=True)
    assert "has already finished" in again.content.decode()


@pytest.mark.parametrize("hidden", [1, 3])
def test_rows_that_the_list_hides_from_the_user_are_not_concerned(client, remind, monkeypatch, hidden):
    sign_in(client, *OPERATOR)
    runs = started(6)
    shown = WorkflowRunAdmin.get_queryset
    last = runs[-hidden].pk
    monkeypatch.setattr(WorkflowRunAdmin, "get_queryset", lambda *args: shown(*args).filter(pk__lt=last))
    page = cancel_all(client, select_across="0", _selected_action=[*(str(run.pk) for run in runs), "²"])
    assert f"Concerned: {6 - hidden} (" in text_of(page)
    given = {"token": token_in(page.content.decode()), "verb": "cancel", "reason": "x"}
    client.post(reverse(START), given)
    drain()
    assert engine.runs("remind", status="cancelled").count() == 6 - hidden


def test_selected_rows_beyond_a_few_are_named_by_their_keys(client, remind):
    sign_in(client, *OPERATOR)
    runs = started(5)
    keys = [str(run.pk) for run in runs[:3]]
    page = cancel_all(client, select_across="0", _selected_action=keys)
    assert "Concerned: 3 (" in text_of(page)
    given = {"token": token_in(page.content.decode()), "verb": "cancel", "reason": "x"}
    client.post(reverse(START), given)
    drain()
    assert engine.runs("remind", status="cancelled").count() == 3


def test_what_a_search_finds_is_named_by_its_keys(client, remind, monkeypatch):
    sign_in(client, *OPERATOR)
    runs = started(3)
    page = cancel_all(client, "?q=remind")
    assert "id = " + ", ".join(sorted(str(run.pk) for run in runs)) in text_of(page)
    assert "Concerned: 3 (" in text_of(page)


def test_a_viewer_gets_no_button_and_a_403(client, remind):
    sign_in(client, *OPERATOR)
    started(4, "no bed")
    page = client.get(reverse(PROBLEMS)).content.decode()
    token = token_in(page)
    sign_in(client, "view_workflowrun", "view_bulkaction", "view_mutedproblem", name="bob")
    page = client.get(reverse(PROBLEMS)).content.decode()
    assert "no bed" in page
    assert 'name="token"' not in page
    assert 'value="resume"' not in page
    forged = signing.dumps({"kind": "workflow", "filter": {}, "user": "1"}, salt="other")
    bob = str(User.objects.get(username="bob").pk)
    own = signing.dumps({"kind": "workflow", "filter": {}, "user": bob}, salt=bulk_pages.SALT)
    for url in (CONFIRM, START, MUTE):
        for each in (token, forged, own, ""):
            given = {"token": each, "verb": "resume", "reason": "x", "for": "ever"}
            assert client.post(reverse(url), given).status_code == 403, (url, each)
        assert client.get(reverse(url)).status_code == 405
    assert "Concerned" not in cancel_all(client).content.decode(), "a viewer has no actions"
    assert not BulkAction.objects.exists()
    assert not MutedProblem.objects.exists()
    client.logout()
    assert client.post(reverse(START), {"token": token}).status_code == 302


def test_a_verb_needs_its_own_permission(client, remind):
    sign_in(client, *[each for each in OPERATOR if each != "cancel_workflowrun"])
    started(4, "no bed")
    token = token_in(client.get(reverse(PROBLEMS)).content.decode())
    given = {"token": token, "verb": "cancel", "reason": "x"}
    assert client.post(reverse(START), given).status_code == 403
    assert client.post(reverse(START), {**given, "verb": "resume"}).status_code == 302
    bulk = BulkAction.objects.get()
    sign_in(client, "view_bulkaction", name="bob")
    act = reverse("admin:automation_queues_bulkaction_act", args=[bulk.pk])
    assert client.post(act, {"action": "cancel"}).status_code == 403


def test_an_old_page_says_so(client, remind, monkeypatch):
    sign_in(client, *OPERATOR)
    started(3)
    token = token_in(cancel_all(client).content.decode())
    monkeypatch.setattr(bulk_pages, "MAX_AGE_SECONDS", -1)
    answer = client.post(reverse(START), {"token": token, "verb": "cancel", "reason": "x"}, follow=True)
    assert "This page was too old." in answer.content.decode()


def test_a_bulk_action_is_stopped_on_its_page(client, remind):
    sign_in(client, *OPERATOR)
    started(3)
    bulk = engine.bulk("cancel", name="remind")
    page = client.get(reverse("admin:automation_queues_bulkaction_change", args=[bulk.pk])).content.decode()
    assert 'value="cancel"' in page
    act = reverse("admin:automation_queues_bulkaction_act", args=[bulk.pk])
    client.post(act, {"action": "cancel", "reason": "Wrong one."})
    drain()
    bulk.refresh_from_db()
    assert (bulk.status, bulk.error) == ("cancelled", "Cancelled by ann: Wrong one.")
    assert engine.runs("remind").unfinished().count() == 3
    assert Action.objects.get(key=str(bulk.pk), done="Cancelled").actor_name == "ann"
    listed = client.get(reverse("admin:automation_queues_bulkaction_changelist")).content.decode()
    assert "<progress" in listed
    page = client.get(reverse("admin:automation_queues_bulkaction_change", args=[bulk.pk])).content.decode()
    assert 'value="cancel"' not in page


def test_all_rows_of_a_problem_are_resumed(client, remind):
    sign_in(client, *OPERATOR)
    started(3, "no bed 12")
    started(2, "no bed 13")
    started(1, "no breakfast")
    page = client.get(reverse(PROBLEMS)).content.decode()
    assert "Cancel these" not in page, "what has failed cannot be cancelled"
    answer = client.post(reverse(CONFIRM), {"token": token_in(page), "verb": "resume"})
    assert "Concerned: 5 (" in text_of(answer)
    assert "no bed 13" in text_of(answer)
    WorkflowRun.objects.update(data={"why": ""})
    given = {"token": token_in(answer.content.decode()), "verb": "resume", "reason": "Beds came."}
    client.post(reverse(START), given)
    drain()
    assert engine.runs("remind", status="suspended").count() == 5
    assert [(each.error, each.count) for each in problems()] == [("no breakfast", 1)]


def test_a_problem_is_muted_and_unmuted(client, remind, clock):
    sign_in(client, *OPERATOR)
    started(2, "no bed 12")
    started(1, "no breakfast")
    token = token_in(client.get(reverse(PROBLEMS)).content.decode())
    form = client.post(reverse(MUTE), {"token": token})
    assert "remind (failed): no bed 12" in text_of(form)
    given = {"token": token_in(form.content.decode()), "for": "day"}
    assert "Say why" in text_of(client.post(reverse(MUTE), {**given, "reason": ""}))
    answer = client.post(reverse(MUTE), {**given, "reason": "The hotel is full."}, follow=True)
    page = answer.content.decode()
    assert page.index("no breakfast") < page.index('class="automation-muted"') < page.index("no bed 12")
    assert "by ann. The hotel is full." in text_of(answer)
    muted = MutedProblem.objects.get()
    assert muted.until == clock() + timedelta(days=1)
    assert Action.objects.get(done="Muted").reason == "The hotel is full."
    found = [(each.error, each.muted is not None) for each in all_problems(clock())]
    assert found == [("no bed 12", True), ("no breakfast", False)]
    assert [each.error for each in problems()] == ["no breakfast"]
    clock.tick(timedelta(days=1, seconds=1))
    assert len(problems()) == 2
    assert "no bed 12" in client.get(reverse(PROBLEMS)).content.decode()
    act = reverse("admin:automation_queues_mutedproblem_act", args=[muted.pk])
    client.post(act, {"action": "unmute"})
    assert not MutedProblem.objects.exists()
    assert Action.objects.filter(done="Unmuted").count() == 1


def test_a_mute_that_comes_too_late_mutes_nothing_else(client, remind):
    sign_in(client, *OPERATOR)
    (run,) = started(1, "no bed 12")
    token = token_in(client.get(reverse(PROBLEMS)).content.decode())
    WorkflowRun.objects.filter(pk=run.pk).update(error="no breakfast")
    given = {"token": token, "for": "ever", "reason": "x"}
    answer = client.post(reverse(MUTE), given, follow=True)
    assert "The row has changed." in answer.content.decode()
    assert not MutedProblem.objects.exists()


def test_pages_take_few_queries(client, remind):
    sign_in(client, *OPERATOR)
    started(30, "no bed")
    for number in range(3):
        engine.bulk("resume", name="remind", reason=str(number))
    urls = [
        reverse("admin:automation_queues_bulkaction_changelist"),
        reverse("admin:automation_queues_bulkaction_change", args=[BulkAction.objects.latest("pk").pk]),
        reverse(PROBLEMS),
    ]
    for url in urls:
        with CaptureQueriesContext(connection) as queries:
            assert client.get(url).status_code == 200
        assert len(queries) <= 30, url
    with CaptureQueriesContext(connection) as queries:
        answer = client.post(reverse(RUNS), {"action": "resume", "select_across": "1", "_selected_action": ["1"]})
    assert answer.status_code == 200
    assert "style=" not in answer.content.decode()[answer.content.decode().index('id="content"') :]
    assert len(queries) <= 30
