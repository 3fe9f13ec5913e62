"""The page that starts a workflow by hand: its form, what it refuses, who may use it, and what it leaves behind."""

from __future__ import annotations

import html
import re
from datetime import date, timedelta
from decimal import Decimal
from urllib.parse import urlencode

import pytest
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth.models import Permission, User
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel, Field

from django_ai.automation import (
    Concurrency,
    acting_as,
    complete,
    engine,
    event_workflow,
    step,
    workflow,
)
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.automation_command import automation

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/automation_workflows/workflowrun/"
PAGE = f"{LIST}start/"
START = ("view_workflowrun", "start_workflowrun")


class Room(BaseModel):
    floor: int
    name: str = "Blue"


@pytest.fixture(autouse=True)
def booking():
    @workflow("booking", deadline=timedelta(hours=2))
    class Book:
        """Books a room.

        Not shown.
        """

        class Context(BaseModel):
            guest: str
            nights: int = Field(default=1, ge=1, description="how long")
            arrival: date | None = None
            price: Decimal = Decimal("9.90")
            room: Room = Room(floor=2)
            others: list[Room] = Field(default_factory=list)
            note: str = Field(default="", alias="remark")

        @step(start=True)
        def begin(self):
            return complete()


def sign_in(client, *permissions: str) -> User:
    user = User.objects.create_user("ann", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return user


def address(name: str = "booking") -> str:
    return f"{PAGE}?{urlencode({'workflow': name})}"


def text_of(answer) -> str:
    page = answer.content.decode()
    shown = page[page.index('id="content"') :]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown)).split())


def post(client, name: str = "booking", *, reason: str = "By phone.", **values):
    return client.post(address(name), {"reason": reason, **values})


def refused(answer) -> str:
    assert answer.status_code == 422
    assert not LogEntry.objects.exists()
    assert not Action.objects.exists()
    return text_of(answer)


# -- the form ----------------------------------------------------------------------------------------------------------


def test_the_form_has_an_input_for_each_field_and_says_what_will_happen(client):
    sign_in(client, *START)
    answer = client.get(address())
    assert answer.status_code == 200
    page, text = answer.content.decode(), text_of(answer)
    assert "Books a room." in text
    assert "Not shown." not in text
    assert "A new run of “booking”, version 1, begins with the step “begin”." in text
    assert "It fails if it has not ended 2 h after its start." in text
    assert "str. Required." in text
    assert "int: how long. Default: 1." in text
    assert 'As JSON: {"floor": int, "name": str}' in text
    assert 'As JSON: [{"floor": int, "name": str}]' in text
    assert re.search(r"<textarea[^>]* name=\"field-room\"|<textarea name=\"field-room\"", page)
    assert 'name="field-remark"' in page
    assert 'name="field-note"' not in page
    for name in ("payload", "key", "reason"):
        assert f'name="{name}"' in page


def test_a_run_is_started_as_the_user_with_the_reason(client):
    user = sign_in(client, *START)
    answer = post(
        client,
        **{
            "field-guest": "1234",
            "field-nights": "3",
            "field-arrival": "2030-01-07",
            "field-price": "10.10",
            "field-room": '{"floor": 4}',
            "field-others": '[{"floor": 1, "name": "Red"}]',
            "field-remark": "late",
        },
    )
    run = WorkflowRun.objects.get()
    assert answer.url == reverse("admin:automation_workflows_workflowrun_change", args=[run.pk])
    assert run.data == {
        "guest": "1234",
        "nights": 3,
        "arrival": "2030-01-07",
        "price": "10.10",
        "room": {"floor": 4, "name": "Blue"},
        "others": [{"floor": 1, "name": "Red"}],
        "note": "late",
    }
    assert run.caused_by == f"user:{user.pk}"
    action = Action.objects.get()
    assert (action.done, action.key, action.actor_name, action.reason) == ("Started", str(run.pk), "ann", "By phone.")
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.user_id, entry.object_id) == (ADDITION, user.pk, str(run.pk))
    assert entry.change_message == "Started by hand: By phone."
    shown = client.get(answer.url).content.decode()
    assert f"Started booking #{run.pk}" in shown
    assert "ann: Started: By phone." in shown
    drain()
    run.refresh_from_db()
    assert run.status == "completed"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "Field required"),
        ({"field-guest": "Ada", "field-nights": "0"}, "Input should be greater than or equal to 1"),
        ({"field-guest": "Ada", "field-room": '{"floor": "up"}'}, "floor: Input should be a valid integer"),
        ({"field-guest": "Ada", "field-room": "{floor"}, "This is not JSON"),
        ({"payload": "{"}, "This is not JSON"),
        ({"payload": "[" * 200_000}, "This is not JSON"),
        ({"field-guest": "Ada", "field-others": "[" * 200_000}, "This is not JSON"),
        ({"payload": "[]"}, "must be an object in braces"),
        ({"field-guest": "Ada", "payload": '{"guest": "Eve"}'}, "Given twice: guest."),
        ({"payload": '{"guest": "Ada", "nigths": 2}'}, "has no field 'nigths'. Did you mean 'nights'?"),
        ({"payload": '{"key": "a"}'}, "No field of a Context can be called key."),
        ({"field-guest": "Ada", "reason": ""}, "This field is required."),
    ],
    ids=lambda each: str(each)[:60],
)
def test_what_does_not_fit_is_said_at_its_field(client, values, said):
    sign_in(client, *START)
    assert said in refused(post(client, **values))
    assert not WorkflowRun.objects.exists()


def test_an_error_stands_beside_the_input_of_its_field(client):
    sign_in(client, *START)
    page = post(client, **{"field-guest": "Ada", "field-nights": "0"}).content.decode()
    row = page[page.index("form-row errors") :]
    assert row.index("greater than or equal to 1") < row.index('name="field-nights"') < row.index("form-row", 10)
    assert 'value="Ada"' in page


def test_an_empty_string_is_given_as_json(client):
    sign_in(client, *START)
    post(client, payload='{"guest": ""}')
    assert WorkflowRun.objects.get().data["guest"] == ""


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_starts_one_run(client):
    sign_in(client, *START)
    assert post(client, **{"field-guest": "Ada", "key": "order:1"}).status_code == 302
    run = WorkflowRun.objects.get()
    assert engine.runs("booking", key="order:1").get() == run
    answer = post(client, **{"field-guest": "Ada", "key": "order:1"})
    assert answer.status_code == 422
    assert f"{run} was started with the key 'order:1' and is running." in text_of(answer)
    assert WorkflowRun.objects.count() == Action.objects.count() == LogEntry.objects.count() == 1


# -- forms that are sent twice -----------------------------------------------------------------------------------------


def test_a_form_that_is_sent_twice_starts_one_run(client):
    sign_in(client, *START)
    once = re.search(r'<input type="hidden" name="once" value="(\w+)"', client.get(address()).content.decode())
    given = {"field-guest": "Ada", "once": once[1]}
    first, second = post(client, **given), post(client, **given)
    run = WorkflowRun.objects.get()
    assert first.url == second.url == reverse("admin:automation_workflows_workflowrun_change", args=[run.pk])
    assert f"This form has started {run} before." in client.get(second.url).content.decode()
    assert Action.objects.count() == LogEntry.objects.count() == 1
    post(client, **{**given, "field-nights": "2"})
    assert WorkflowRun.objects.count() == 2, "the same form with other values, as after Back"
    other = re.search(r'name="once" value="(\w+)"', client.get(address()).content.decode())
    post(client, **{**given, "once": other[1]})
    assert WorkflowRun.objects.count() == 3


# -- create_context ----------------------------------------------------------------------------------------------------


def declare_created() -> None:
    @workflow("created")
    class Created:
        class Context(BaseModel):
            guest: str
            nights: int = 1

        @classmethod
        def create_context(cls, guest_id: int, *, nights: int = 2, event=None):
            if guest_id > 9:
                raise LookupError(f"There is no guest {guest_id}.")
            return cls.Context(guest=f"guest {guest_id}", nights=nights)

        @step(start=True)
        def begin(self):
            return complete()


def test_the_arguments_of_create_context_are_asked_for(client):
    declare_created()
    sign_in(client, *START)
    page = client.get(address("created")).content.decode()
    assert 'name="field-guest_id"' in page
    assert "Default: 2." in page
    assert 'name="field-event"' not in page
    assert 'name="field-guest"' not in page
    post(client, "created", **{"field-guest_id": "3"})
    assert WorkflowRun.objects.get().data == {"guest": "guest 3", "nights": 2}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"field-guest_id": "12"}, "LookupError: There is no guest 12."),
        ({}, "missing 1 required positional argument: 'guest_id'"),
        ({"field-guest_id": "3", "field-nights": "many"}, "nights"),
        ({"field-guest_id": "3", "payload": '{"more": 1}'}, "unexpected keyword argument 'more'"),
    ],
    ids=str,
)
def test_what_create_context_raises_is_said(client, values, said):
    declare_created()
    sign_in(client, *START)
    assert said in refused(post(client, "created", **values))
    assert not WorkflowRun.objects.exists()


# -- workflows of other kinds ------------------------------------------------------------------------------------------


def declare_empty(decorate) -> None:
    @decorate
    class Empty:
        class Context(BaseModel):
            entity_id: int = 0

        @step(start=True)
        def begin(self):
            return complete()


def test_an_event_workflow_of_a_templated_name_is_started_without_its_event(client):
    declare_empty(event_workflow("{kind}_paid", offset=timedelta(days=2), name='remind <"{kind}" & co>'))
    sign_in(client, *START)
    name = 'remind <"{kind}" & co>'
    answer = client.get(address(name))
    assert "As a rule “{kind}_paid” starts it. This run has no event" in text_of(answer)
    assert post(client, name).status_code == 302
    drain()
    run = WorkflowRun.objects.get()
    assert (run.name, run.status, run.event_id, run.planned) == (name, "completed", None, False)


def test_the_newest_version_is_started(client):
    declare_empty(workflow("many", version="1"))
    declare_empty(workflow("many", version="2"))
    sign_in(client, *START)
    assert "version 2" in text_of(client.get(address("many")))
    post(client, "many")
    assert WorkflowRun.objects.get().version == "2"


@pytest.mark.parametrize("target", [{"workflow": "booking"}, {"queue": "default"}, {}])
def test_a_run_of_what_is_paused_is_created_and_waits(client, target):
    sign_in(client, *START)
    assert "It is paused" not in text_of(client.get(address()))
    engine.pause(**(target or {"everything": True}))
    assert "It is paused: the run is created, and begins when the pause ends." in text_of(client.get(address()))
    assert post(client, **{"field-guest": "Ada"}).status_code == 302
    drain()
    assert WorkflowRun.objects.get().status == "running"


def test_limits_are_named(client):
    declare_empty(workflow("limited", concurrency=Concurrency(1)))
    sign_in(client, *START)
    assert "Its limits count: it may have to wait for its turn." in text_of(client.get(address("limited")))


def test_an_unknown_workflow_is_refused_with_the_nearest_name(client):
    sign_in(client, *START)
    for answer in (client.get(address("bookign")), post(client, "bookign", **{"field-guest": "Ada"})):
        assert answer.status_code == 404
        assert "No workflow is called 'bookign'. Did you mean 'booking'?" in text_of(answer)
    assert not WorkflowRun.objects.exists()


# -- the ways to it ----------------------------------------------------------------------------------------------------


def entry_page() -> str:
    return reverse("admin:automation_console_catalogue_entry") + "?kind=workflow&name=booking"


def test_the_list_of_runs_and_the_catalogue_lead_to_it(client):
    sign_in(client, *START, "view_catalogue")
    page = client.get(LIST).content.decode()
    assert f'href="{PAGE}"' in page
    assert '<option value="booking">' in client.get(PAGE).content.decode()
    assert f'href="{address()}"' in client.get(f"{LIST}?name=booking").content.decode()
    assert f'href="{address()}"' in client.get(entry_page()).content.decode()


def test_a_viewer_has_no_button_and_gets_403(client):
    sign_in(client, "view_workflowrun", "view_data_workflowrun", "view_catalogue", "edit_workflowrun")
    assert PAGE not in client.get(LIST).content.decode()
    assert PAGE not in client.get(entry_page()).content.decode()
    for path in (PAGE, address()):
        assert client.get(path).status_code == 403
        assert client.post(path, {"field-guest": "Ada", "reason": "x"}).status_code == 403
    assert not WorkflowRun.objects.exists()


def test_the_permission_to_start_alone_is_not_enough(client):
    sign_in(client, "start_workflowrun")
    assert post(client, **{"field-guest": "Ada"}).status_code == 403
    assert not WorkflowRun.objects.exists()


def test_a_visitor_is_sent_to_the_login(client):
    for answer in (client.get(address()), post(client, **{"field-guest": "Ada"})):
        assert answer.status_code == 302
        assert answer.url.startswith("/admin/login/?next=")
    assert not WorkflowRun.objects.exists()


def test_other_methods_are_refused(client):
    sign_in(client, *START)
    assert client.put(address()).status_code == 405


# -- the same as a command and a function ------------------------------------------------------------------------------


def test_the_command_and_the_function_leave_the_same_trace(client):
    user = sign_in(client, *START)
    post(client, **{"field-guest": "Ada"})
    who = f"user:{user.pk}"
    automation("start", "booking", "--set", "guest=Ada", "--actor", who, "--reason", "By phone.")
    automation("start", "booking", "--set", "guest=Ada", "--actor", who, "--reason", "By phone.", "--key", "a")
    with acting_as(user, "By phone."):
        engine.start("booking", guest="Ada")
        engine.start("booking", guest="Ada", key="b")
        engine.start("booking", guest="Ada", key="b")
    runs = WorkflowRun.objects.order_by("pk")
    assert [(each.data["guest"], each.caused_by) for each in runs] == [("Ada", who)] * 5
    found = Action.objects.order_by("pk").values_list("done", "key", "actor", "reason")
    assert list(found) == [("Started", str(each.pk), who, "By phone.") for each in runs]


def test_a_start_without_a_reason_names_the_actor_as_the_cause_only(client):
    user = User.objects.create_user("bob")
    with acting_as(user):
        run = engine.start("booking", guest="Ada", key=str(timezone.now()))
    assert run.caused_by == f"user:{user.pk}"
    assert not Action.objects.exists()
