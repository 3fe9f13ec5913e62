"""The forms of agents, events and runs: what they do, what they refuse, and who may open them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pydantic import BaseModel, Field

from django_ai.automation import FreeEvent, agent, complete, emit, engine, handler, on_event, step, wait, workflow
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.console.context_form import ContextForm
from django_ai.automation.events.models import Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action
from django_ai.automation.workflows.models import Signal

pytestmark = pytest.mark.django_db(transaction=True)

OPENED = "ticket.opened"
RUN = ("view_workflowrun", "signal_workflowrun")
EDIT = ("view_agentrun", "edit_agentrun", "view_data_agentrun")
REDELIVER = ("view_agentrun", "resume_handlerexecution", "view_handlerexecution")


def sign_in(client, *permissions: str) -> User:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


def address(row, kind="change") -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_{kind}", args=[row.pk])


def page_of(client, row, kind="change") -> str:
    answer = client.get(address(row, kind))
    assert answer.status_code == 200
    return answer.content.decode()


def done() -> list[tuple[str, str, str]]:
    return list(Action.objects.order_by("pk").values_list("done", "actor_name", "reason"))


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asking():
    @workflow("asking")
    class Asking:
        class Context(BaseModel):
            guest: str = "Ada"
            cents: int = Field(default=100, ge=1, description="what it costs")
            tags: list[str] = []

        @step(start=True)
        def ask(self):
            return wait("desk:answer", timeout=timedelta(hours=4), then=self.pay, on_timeout=self.pay)

        @step
        def pay(self):
            return wait("payment", then=self.end)

        @step
        def end(self):
            return complete(self.context.cents)

    run = engine.start("asking")
    drain()
    run.refresh_from_db()
    return run


def test_a_signal_with_a_payload_wakes_a_run(client, asking):
    sign_in(client, *RUN)
    assert f'href="{address(asking, "signal")}"' in page_of(client, asking)
    form = page_of(client, asking, "signal")
    assert 'value="desk:answer"' in form
    assert '<option value="payment">' in form
    assert "int: what it costs" in form
    assert "It waits for &#x27;desk:answer&#x27;." in form
    assert "What will happen" in form
    given = {
        "signal_name": "desk:answer",
        "field-guest": "1234",
        "field-cents": "7",
        "field-tags": '["vip"]',
        "payload": '{"note": "late"}',
        "reason": "By phone.",
    }
    answer = client.post(address(asking, "signal"), given, follow=True)
    assert answer.redirect_chain[0][0] == address(asking)
    assert "Sent the signal &#x27;desk:answer&#x27;." in answer.content.decode()
    signal = Signal.objects.get()
    assert signal.payload == {"note": "late", "guest": "1234", "cents": 7, "tags": ["vip"]}
    assert done() == [("Signalled", "ann", "By phone.")]
    assert LogEntry.objects.get().change_message == "Sent the signal 'desk:answer'. By phone."
    drain()
    asking.refresh_from_db()
    assert (asking.current_step, asking.data) == ("pay", {"guest": "1234", "cents": 7, "tags": ["vip"]})
    assert "ann: Signalled: By phone." in page_of(client, asking)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"signal_name": "desk:answr"}, "Did you mean &#x27;desk:answer&#x27;?"),
        ({"signal_name": ""}, "This field is required."),
        ({"field-cents": "0"}, "greater than or equal to 1"),
        ({"field-cents": "many"}, "valid integer"),
        ({"payload": '{"cents": "x"}'}, "valid integer"),
        ({"payload": "{"}, "This is not JSON"),
        ({"payload": "[1]"}, "must be an object"),
        ({"payload": '{"cents": 5}', "field-cents": "6"}, "Given twice: cents."),
    ],
    ids=str,
)
def test_a_signal_that_the_run_cannot_take_is_refused(client, asking, given, shown):
    sign_in(client, *RUN)
    answer = client.post(address(asking, "signal"), {"signal_name": "desk:answer", **given})
    assert answer.status_code == 422
    assert shown in answer.content.decode()
    assert not Signal.objects.exists()
    assert not LogEntry.objects.exists()
    assert done() == []


def test_a_run_that_receives_nothing_has_no_form(client, asking):
    sign_in(client, *RUN)
    engine.cancel(asking)
    assert address(asking, "signal") not in page_of(client, asking)
    answer = client.post(address(asking, "signal"), {"signal_name": "desk:answer"})
    assert answer.status_code == 422
    assert "receives nothing any more" in answer.content.decode()


def test_the_buttons_of_a_run_say_what_they_do(client, asking):
    sign_in(client, "view_workflowrun", "cancel_workflowrun", "pause_workflowrun")
    page = page_of(client, asking)
    assert "Its child runs end with it (0)." in page
    assert "nothing more begins until it is unpaused" in page
    client.post(address(asking, "act"), {"action": "pause", "reason": "Wait."})
    assert "What has become due meanwhile is performed at once." in page_of(client, asking)
    assert done() == [("Paused", "ann", "Wait.")]


# -- agents ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk():
    @agent("desk", spawn_on=OPENED)
    class Desk:
        class Context(BaseModel):
            ticket: int = 0
            level: int = Field(default=1, ge=1)

        @handler(OPENED, condition=lambda event: is_open)
        def take(self):
            self.context.level += 1

    global is_open
    is_open = False
    FreeEvent(OPENED)
    emit(OPENED, {"ticket": 7})
    drain()
    return AgentRun.objects.get()


is_open = False


def post_context(client, run, text: str, **given):
    run.refresh_from_db()
    values = {"context": text, "seen": ContextForm(run).initial["seen"], "reason": "", **given}
    return client.post(address(run, "edit"), values, follow=True)


def test_the_context_of_an_agent_is_edited(client, desk):
    sign_in(client, *EDIT)
    assert f'href="{address(desk, "edit")}"' in page_of(client, desk)
    form = page_of(client, desk, "edit")
    assert "&quot;ticket&quot;: 7" in form
    assert "Its routes follow" in form
    answer = post_context(client, desk, '{"ticket": 7, "level": 3}', reason="It is urgent.")
    assert answer.redirect_chain[0][0] == address(desk)
    desk.refresh_from_db()
    assert desk.data == {"ticket": 7, "level": 3}
    assert done() == [("Edited", "ann", "It is urgent.")]
    assert LogEntry.objects.get().change_message == "Edited the Context: level. It is urgent."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{", "This is not JSON"),
        ('{"level": 2}', "Fields cannot be removed: ticket."),
        ('{"ticket": 7, "level": 0}', "level: "),
        ('{"ticket": 7, "level": 1, "levelx": 2}', "Did you mean"),
        ('{"ticket": 7, "level": 1}', "Nothing was changed."),
    ],
    ids=str,
)
def test_a_context_that_the_agent_cannot_take_is_refused(client, desk, text, shown):
    sign_in(client, *EDIT)
    answer = post_context(client, desk, text)
    assert answer.status_code == 422
    assert shown in answer.content.decode()
    desk.refresh_from_db()
    assert desk.data == {"ticket": 7, "level": 1}
    assert done() == []


def test_a_context_of_an_agent_that_has_changed_is_not_overwritten(client, desk):
    sign_in(client, *EDIT)
    seen = ContextForm(desk).initial["seen"]
    AgentRun.objects.filter(pk=desk.pk).update(data={"ticket": 7, "level": 9})
    answer = post_context(client, desk, '{"ticket": 7, "level": 3}', seen=seen)
    assert answer.status_code == 422
    assert "The Context has changed since this page was opened." in answer.content.decode()


def test_one_event_is_redelivered_to_an_agent(client, desk):
    global is_open
    sign_in(client, *REDELIVER)
    execution = HandlerExecution.objects.get()
    assert execution.status == "skipped"
    assert f'href="{address(desk, "redeliver")}"' in page_of(client, desk)
    assert f'value="{execution.pk}"' in page_of(client, desk, "redeliver")
    is_open = True
    answer = client.post(address(desk, "redeliver"), {"execution": execution.pk, "reason": "Open now."}, follow=True)
    assert answer.redirect_chain[0][0] == address(desk)
    assert done() == [("Redelivered", "ann", "Open now.")]
    drain()
    execution.refresh_from_db()
    assert execution.status == "completed"
    answer = client.post(address(desk, "redeliver"), {"execution": execution.pk})
    assert answer.status_code == 422, "what has completed is no choice"
    assert "No event was skipped" in answer.content.decode()


def test_an_execution_is_redelivered_on_its_own_page(client, desk):
    sign_in(client, *REDELIVER)
    execution = HandlerExecution.objects.get()
    assert client.post(address(execution, "act"), {"action": "redeliver"}).status_code == 302
    execution.refresh_from_db()
    assert execution.status == "pending"
    assert done() == [("Redelivered", "ann", "")]


def test_the_buttons_of_an_agent_say_what_they_do_and_do_it(client, desk):
    sign_in(client, "view_agentrun", "complete_agentrun", "cancel_agentrun", "pause_agentrun")
    page = page_of(client, desk)
    assert 'value="complete"' in page
    assert 'value="cancel"' in page
    assert "What is left in its mailbox is cancelled (0), and its claims are released (0)." in page
    client.post(address(desk, "act"), {"action": "pause", "reason": "A"})
    client.post(address(desk, "act"), {"action": "complete", "reason": "B"})
    desk.refresh_from_db()
    assert desk.status == "completed"
    assert done() == [("Paused", "ann", "A"), ("Completed", "ann", "B")]
    page = page_of(client, desk)
    assert 'value="complete"' not in page
    assert address(desk, "edit") not in page


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(clock) -> Event:
    FreeEvent("delivery")

    @on_event("delivery", name="unload")
    def unload(event):
        pass

    emit("delivery", {}, key="parcel:7", at=clock.now + timedelta(days=1))
    drain()
    return Event.objects.get(event_name="delivery")


def test_an_event_occurs_now(client, clock, planned):
    sign_in(client, "view_event", "fire_event")
    page = page_of(client, planned)
    assert "It occurs now instead of on 2030-01-08 13:00:00 CET" in page
    client.post(address(planned, "act"), {"action": "fire_now", "reason": "It is here."})
    drain()
    planned.refresh_from_db()
    assert planned.status == "processed"
    assert done() == [("Fired", "ann", "It is here.")]
    assert 'value="fire_now"' not in page_of(client, planned)


def test_an_event_is_moved(client, clock, planned):
    sign_in(client, "view_event", "move_event")
    assert f'href="{address(planned, "move")}"' in page_of(client, planned)
    form = page_of(client, planned, "move")
    assert "New date and time in Europe/Berlin" in form
    assert "Its date is 2030-01-08 13:00:00 CET." in form
    assert 'type="date"' in form
    given = {"at_0": "2030-07-01", "at_1": "09:30", "reason": "A strike."}
    answer = client.post(address(planned, "move"), given, follow=True)
    assert "Moved to 2030-07-01 09:30:00 CEST." in answer.content.decode()
    planned.refresh_from_db()
    assert planned.at == datetime(2030, 7, 1, 7, 30, tzinfo=UTC)
    assert done() == [("Moved", "ann", "A strike.")]


@pytest.mark.parametrize(
    ("day", "hour", "shown"),
    [
        ("2030-03-31", "02:30", "interpreted in time zone"),  # the clock skips it
        ("2030-10-27", "02:30", "interpreted in time zone"),  # it comes twice
        ("2030-01-08", "13:00", "has this date already"),
        ("tomorrow", "13:00", "Enter a valid date."),
        ("", "", "This field is required."),
    ],
)
def test_a_date_that_is_none_is_refused(client, clock, planned, day, hour, shown):
    sign_in(client, "view_event", "move_event")
    answer = client.post(address(planned, "move"), {"at_0": day, "at_1": hour})
    assert answer.status_code == 422
    assert shown in answer.content.decode()
    assert done() == []


def test_an_event_is_cancelled(client, clock, planned):
    sign_in(client, "view_event", "cancel_event")
    assert "It never occurs" in page_of(client, planned)
    client.post(address(planned, "act"), {"action": "cancel", "reason": "Sent back."})
    planned.refresh_from_db()
    assert planned.status == "cancelled"
    assert done() == [("Cancelled", "ann", "Sent back.")]


# -- permissions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixture", "kind", "needed"),
    [
        ("asking", "signal", RUN),
        ("desk", "edit", EDIT),
        ("desk", "redeliver", REDELIVER[:2]),
        ("planned", "move", ("view_event", "move_event")),
    ],
)
def test_each_permission_of_a_form_is_needed(client, request, clock, fixture, kind, needed):
    row = request.getfixturevalue(fixture)
    user = sign_in(client, *needed)
    assert client.get(address(row, kind)).status_code == 200
    assert client.put(address(row, kind)).status_code == 405
    for missing in needed:
        user.user_permissions.set(Permission.objects.filter(codename__in=[each for each in needed if each != missing]))
        assert client.get(address(row, kind)).status_code == 403
        assert client.post(address(row, kind)).status_code == 403
        page = client.get(address(row))
        assert page.status_code == (403 if missing.startswith("view_") and "data" not in missing else 200)
        assert address(row, kind) not in page.content.decode()
    client.logout()
    assert client.post(address(row, kind)).status_code == 302  # to the login


@pytest.mark.parametrize(
    ("fixture", "actions"),
    [
        ("asking", ("cancel", "cancel_at_once", "pause", "skip_wait", "try_now")),
        ("desk", ("complete", "cancel", "pause")),
        ("planned", ("fire_now", "cancel")),
    ],
)
def test_a_viewer_has_no_button_and_may_not_post(client, request, clock, fixture, actions):
    row = request.getfixturevalue(fixture)
    sign_in(client, f"view_{row._meta.model_name}")
    page = page_of(client, row)
    assert "automation-deeds" not in page
    links = re.findall(r'automation-link"><a href="([^"]*)"', page)
    assert [link for link in links if not link.endswith("/why/")] == [], "a link to a form"
    before = (row.status, row.seq)
    for action in actions:
        assert client.post(address(row, "act"), {"action": action}).status_code == 403
    row.refresh_from_db()
    assert (row.status, row.seq) == before


def test_a_form_takes_few_queries_and_no_inline_script(client, desk):
    User.objects.create_superuser("root", password="x")
    client.force_login(User.objects.get())
    event = Event.objects.get()
    HandlerExecution.objects.bulk_create(
        HandlerExecution(
            run=desk, event=event, handler="take", status="skipped", due_at=event.occurred_at, unique_key=f"many {n}"
        )
        for n in range(200)
    )
    page_of(client, desk, "redeliver")
    with CaptureQueriesContext(connection) as queries:
        page = page_of(client, desk, "redeliver")
    assert len(queries) <= 10
    assert page.count('type="radio"') == 50
    content = page[page.index('<form method="post" class="automation-repair"') :]
    assert "style=" not in content[: content.index("</form>")]
    assert "<script" not in content[: content.index("</form>")]
