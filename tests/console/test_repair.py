"""The page that repairs a run: an edited Context, another step, a fork; and the buttons that shorten a wait."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from pydantic import BaseModel, Field

from django_ai.automation import Retry, complete, engine, goto, sleep, step, wait, workflow
from django_ai.automation.console.repair import RepairForm
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action
from django_ai.automation.workflows.models import WorkflowRun

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def charging():
    @workflow("charging")
    class Charging:
        class Context(BaseModel):
            guest: str = "Ada"
            cents: int = Field(default=100, ge=1)

        @step(start=True)
        def price(self):
            return goto(self.charge)

        @step(retry=Retry(max_attempts=1))
        def charge(self):
            if self.context.guest == "Bob":
                raise ValueError("the card was refused")
            return wait("desk:answer", timeout=timedelta(hours=4), then=self.book, on_timeout=self.give_up)

        @step
        def book(self):
            return complete()

        @step
        def give_up(self):
            return complete()

    return Charging


@pytest.fixture
def failed(charging) -> WorkflowRun:
    run = engine.start("charging", guest="Bob")
    drain()
    run.refresh_from_db()
    assert run.status == "failed"
    return run


def sign_in(client, *permissions: str) -> User:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


ALL = ("view_workflowrun", "view_data_workflowrun", "edit_workflowrun", "resume_workflowrun")


def address(run, kind="repair") -> str:
    return reverse(f"admin:automation_workflows_workflowrun_{kind}", args=[run.pk])


def post(client, run, verb: str, data: object, **fields):
    context = data if isinstance(data, str) else json.dumps(data)
    given = {"context": context, "step": "", "reason": "", "seen": seen(run), verb: "", **fields}
    return client.post(address(run), given, follow=True)


def seen(run) -> str:
    """Return the mark of the Context that the page has shown."""
    run.refresh_from_db()
    return RepairForm(run).initial["seen"]


def test_an_edited_context_lets_the_run_complete(client, failed):
    sign_in(client, *ALL)
    page = client.get(address(failed, "change")).content.decode()
    assert f'href="{address(failed)}"' in page
    form = client.get(address(failed)).content.decode()
    assert "&quot;guest&quot;: &quot;Bob&quot;" in form
    answer = post(client, failed, "resume", {"guest": "Eve", "cents": 100}, reason="Wrong guest.")
    assert answer.redirect_chain[0][0] == address(failed, "change")
    drain()
    failed.refresh_from_db()
    assert (failed.status, failed.data) == ("suspended", {"guest": "Eve", "cents": 100})
    written = [entry.change_message for entry in LogEntry.objects.order_by("pk")]
    assert written == ["Edited its Context: guest. Wrong guest.", "Resumed. Wrong guest."]
    done = Action.objects.order_by("pk").values_list("done", "actor_name", "reason")
    assert list(done) == [("Edited", "ann", "Wrong guest."), ("Resumed", "ann", "Wrong guest.")]
    assert "Its Context was edited" in client.get(address(failed, "change")).content.decode()


def test_a_run_is_resumed_at_another_step(client, failed):
    sign_in(client, *ALL)
    post(client, failed, "resume", {"guest": "Bob", "cents": 100}, step="book")
    drain()
    failed.refresh_from_db()
    assert failed.status == "completed"


def test_a_fork_has_the_edited_context_and_the_old_run_stays(client, failed):
    sign_in(client, *ALL)
    answer = post(client, failed, "fork", {"guest": "Eve", "cents": 7}, step="book")
    fork = WorkflowRun.objects.exclude(pk=failed.pk).get()
    assert answer.redirect_chain[0][0] == address(fork, "change")
    drain()
    fork.refresh_from_db()
    failed.refresh_from_db()
    assert (fork.status, fork.data["cents"], failed.status, failed.data["guest"]) == ("completed", 7, "failed", "Bob")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ("{", "This is not JSON"),
        ("[1]", "must be an object"),
        ({"guest": "Eve"}, "Fields cannot be removed: cents."),
        ({"guest": "Eve", "cents": 0}, "cents: "),
        ({"guest": "Eve", "cents": "many"}, "cents: "),
        ({"guest": "Eve", "cents": 5, "gest": 1}, "gest: "),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["save", "resume", "fork"])
def test_wrong_values_are_named_and_nothing_is_done(client, failed, data, shown, verb):
    sign_in(client, *ALL)
    answer = post(client, failed, verb, data)
    assert answer.status_code == 422
    assert shown in answer.content.decode()
    run = WorkflowRun.objects.get()
    assert (run.status, run.data, run.seq) == ("failed", failed.data, failed.seq)
    assert not LogEntry.objects.exists()


def test_a_run_is_rewound_to_an_earlier_visit(client, failed):
    sign_in(client, *ALL)
    form = client.get(address(failed)).content.decode()
    assert '<option value="1">1: price, ' in form
    chosen = post(client, failed, "rewind", failed.data)
    assert chosen.status_code == 422
    assert "Choose the visit to which the run is rewound." in chosen.content.decode()
    answer = post(client, failed, "rewind", failed.data, visit="1", reason="A bug was mended.")
    assert answer.redirect_chain[0][0] == address(failed, "change")
    assert "It was rewound" in answer.content.decode()
    drain()
    failed.refresh_from_db()
    assert (failed.status, failed.visit) == ("failed", 4)
    assert LogEntry.objects.latest("pk").change_message == "Rewound to visit 1. A bug was mended."


@pytest.mark.parametrize("verb", ["save", "resume", "fork"])
def test_a_context_that_has_changed_since_the_page_was_opened_is_not_overwritten(client, failed, verb):
    sign_in(client, *ALL)
    mark = seen(failed)
    assert mark in client.get(address(failed)).content.decode()
    WorkflowRun.objects.filter(pk=failed.pk).update(data={"guest": "Bob", "cents": 250})
    answer = post(client, failed, verb, {"guest": "Eve", "cents": 100}, seen=mark)
    assert answer.status_code == 422
    assert "The Context has changed since this page was opened." in answer.content.decode()
    run = WorkflowRun.objects.get()
    assert (run.status, run.data) == ("failed", {"guest": "Bob", "cents": 250})


def test_a_save_is_undone_if_the_resume_is_refused(client, charging):
    sign_in(client, *ALL)
    run = engine.start("charging")
    drain()
    answer = post(client, run, "resume", {"guest": "Eve", "cents": 100})
    assert answer.status_code == 422
    assert "charging #" in answer.content.decode()
    run.refresh_from_db()
    assert (run.status, run.data["guest"]) == ("suspended", "Ada")
    assert not LogEntry.objects.exists()


def test_nothing_changed_is_said(client, failed):
    sign_in(client, *ALL)
    assert "Nothing was changed." in post(client, failed, "save", failed.data).content.decode()


@pytest.mark.parametrize("missing", ALL)
def test_each_permission_is_needed(client, failed, missing):
    sign_in(client, *[name for name in ALL if name != missing])
    may_edit = missing == "resume_workflowrun"
    assert client.get(address(failed)).status_code == (200 if may_edit else 403)
    assert post(client, failed, "resume", {"guest": "Eve", "cents": 100}).status_code == 403
    assert post(client, failed, "rewind", failed.data).status_code == 403
    assert post(client, failed, "none", {"guest": "Eve", "cents": 100}).status_code == 403
    assert post(client, failed, "save", {"guest": "Eve", "cents": 100}).status_code == (200 if may_edit else 403)
    page = client.get(address(failed, "change"))
    assert page.status_code == (403 if missing == "view_workflowrun" else 200)
    assert (f'href="{address(failed)}"' in page.content.decode()) == may_edit


def test_the_form_opens_when_the_code_is_gone(client, failed):
    WorkflowRun.objects.filter(pk=failed.pk).update(name="gone")
    sign_in(client, *ALL)
    assert client.get(address(failed)).status_code == 200
    answer = post(client, failed, "save", {"guest": "Eve", "cents": 100})
    assert answer.status_code == 422
    assert "gone" in answer.content.decode()


def test_a_wait_is_skipped_by_a_button(client, charging):
    sign_in(client, *ALL)
    run = engine.start("charging")
    drain()
    assert 'value="skip_wait"' in client.get(address(run, "change")).content.decode()
    client.post(address(run, "act"), {"action": "skip_wait"})
    drain()
    run.refresh_from_db()
    assert (run.status, run.current_step) == ("completed", "give_up")
    page = client.get(address(run, "change")).content.decode()
    assert "Skipped its wait, by hand" in page
    assert "by ann." in page


def test_a_backoff_is_ended_by_a_button(client):
    tried = []

    @workflow("flaky")
    class Flaky:
        class Context(BaseModel):
            pass

        @step(start=True, retry=Retry(base_delay=timedelta(hours=1)))
        def only(self):
            tried.append(1)
            if len(tried) == 1:
                raise ValueError("not yet")
            return complete()

    sign_in(client, *ALL)
    run = engine.start("flaky")
    drain()
    page = client.get(address(run, "change")).content.decode()
    assert 'value="try_now"' in page
    assert 'value="skip_wait"' not in page
    client.post(address(run, "act"), {"action": "try_now"})
    drain()
    run.refresh_from_db()
    assert (run.status, len(tried)) == ("completed", 2)


def test_a_sleep_is_skipped_by_a_button(client):
    @workflow("sleeper")
    class Sleeper:
        class Context(BaseModel):
            pass

        @step(start=True)
        def rest(self):
            return sleep(timedelta(days=1), then=self.end)

        @step
        def end(self):
            return complete()

    sign_in(client, *ALL)
    run = engine.start("sleeper")
    drain()
    client.post(address(run, "act"), {"action": "skip_wait"})
    drain()
    run.refresh_from_db()
    assert run.status == "completed"
