"""``automation list``, ``show``, ``problems`` and ``plan``: what is read, as lines and as JSON."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import agent, engine, handler, on_event
from django_ai.automation.agents.manager import AgentManager
from django_ai.automation.events import claims
from django_ai.automation.events.models import Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Guest, Reservation
from tests.support.automation_command import automation

pytestmark = pytest.mark.django_db(transaction=True)


def reservation(**fields) -> Reservation:
    return Reservation.objects.create(guest=Guest.objects.create(name="Ada"), status="confirmed", **fields)


# -- list --------------------------------------------------------------------------------------------------------------


def test_rows_are_listed_with_what_they_wait_for(waiting, failed):
    answer = automation("list", "workflow")
    first, second = answer.out.splitlines()[1:]
    assert first.split()[0] == str(failed.pk)
    assert "the card was \\x1b[31mrefused" in first
    assert "desk:answer" in second
    assert answer.code == 0
    assert "\x1b" not in answer.out


def test_the_list_as_json_names_the_next_page(waiting, failed):
    first = automation("list", "runs", "--limit", 1, "--json").document
    assert [(each["pk"], each["status"]) for each in first["rows"]] == [(failed.pk, "failed")]
    assert first["next"] == failed.pk
    second = automation("list", "workflow", "--after", failed.pk, "--json").document
    assert [each["pk"] for each in second["rows"]] == [waiting.pk]
    assert second["next"] is None
    assert "there are more" not in automation("list", "workflow").out.lower()
    assert f"--after {failed.pk}" in automation("list", "workflow", "--limit", 1).out


def test_the_filters_of_a_list(waiting, failed):
    stay = reservation()
    run = engine.start("charging")
    WorkflowRun.objects.filter(pk=run.pk).update(entity_type="app.reservation", entity_id=str(stay.pk))

    def pks(*filters):
        return {each["pk"] for each in automation("list", "workflow", *filters, "--json").document["rows"]}

    assert pks("--status", "failed") == {failed.pk}
    assert pks("--status", "failed", "--status", "suspended") == {failed.pk, waiting.pk}
    assert pks("--entity", f"app.Reservation:{stay.pk}") == {run.pk}
    assert pks("--name", "charging") == {run.pk, failed.pk, waiting.pk}
    assert pks("--since", "2001-01-01") == {run.pk, failed.pk, waiting.pk}
    assert pks("--since", "2999-01-01") == set()
    assert (
        automation("list", "workflow", "--since", "2999-01-01").out
        == "PK  WORKFLOW  STATUS  ENTITY  DUE  WAITS FOR\nNone.\n"
    )


@pytest.mark.parametrize(
    "kind", ["workflow", "agent", "event", "callback", "handler", "signal", "schedule", "claim", "write"]
)
def test_each_kind_is_listed(kind, waiting, caring):
    run = AgentManager.spawn("caring")
    claims.hold("reservation_confirmed", match={"note": "secret-note"}, owner=run)
    engine.signal("desk:answer", {"a": 1}, run=waiting)
    reservation()
    answer = automation("list", kind, "--json")
    assert answer.code == 0
    assert answer.document["kind"] == kind
    assert "secret-note" not in answer.out
    for each in answer.document["rows"]:
        shown = automation("show", kind, each["pk"], "--json")
        assert shown.document["pk"] == each["pk"]
        assert "secret-note" not in shown.out


def test_a_list_needs_few_queries(charging, caring):
    for _ in range(12):
        engine.start("charging")
        AgentManager.spawn("caring")
    drain()
    for kind in ("workflow", "agent"):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            automation("list", kind)
        assert len(queries) < 8


def test_the_names_that_the_code_declares(charging, caring):
    assert "charging\n" in automation("list", "workflow", "--declared").out
    assert "caring" in automation("list", "agents", "--declared", "--json").document["names"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "workfloww"], "There is no kind 'workfloww'. Did you mean 'workflow'?"),
        (["list", "workflow", "--name", "chargign"], "Did you mean 'charging'?"),
        (["list", "workflow", "--status", "faild"], "There is no status 'faild'. Did you mean 'failed'?"),
        (["list", "claim", "--status", "failed"], "Rows of the kind 'claim' have no status."),
        (["list", "schedule", "--entity", "app.Guest:1"], "belong to no entity"),
        (["list", "workflow", "--entity", "app.Reservatoin:1"], "Did you mean 'app.Reservation'?"),
        (["list", "workflow", "--entity", "Reservation"], "as in shop.Order:12"),
        (["list", "workflow", "--entity", "app.Reservation:x"], "'x' is no primary key"),
        (["list", "workflow", "--since", "monday"], "--since 'monday' is not an ISO date"),
        (["list", "workflow", "--limit", "0"], "--limit=0 must be at least 1."),
        (["problems", "workflw"], "Did you mean 'workflow'?"),
        (["plan", "--hours", "-1"], "--hours=-1 must be positive."),
        (["plan", "--limit", "0"], "--limit=0 must be at least 1."),
        (["plan", "--hours", "1", "--until", "2999-01-01"], "Give --until or --hours"),
        (["plan", "--until", "2001-01-01"], "before it begins"),
        (["plan", "--entity", "app.Guest:1", "--hours", "1"], "leave --from, --until and --hours out"),
    ],
)
def test_what_does_not_exist_is_exit_code_2_with_the_nearest_name(charging, arguments, said):
    answer = automation(*arguments)
    assert answer.code == 2
    assert said in answer.err
    assert answer.out == ""


# -- show --------------------------------------------------------------------------------------------------------------


def test_the_story_of_a_failed_run(failed):
    answer = automation("show", "workflow", failed.pk)
    assert answer.out.startswith(f"✕ charging #{failed.pk}: Failed\n")
    assert "ValueError: the card was \\x1b[31mrefused" in answer.out
    assert "conftest.py" in answer.out  # the frame of the project
    assert "charge" in answer.out
    assert "\x1b" not in answer.out
    assert "Bob" not in answer.out
    assert "--data shows it." in answer.out
    whole = automation("show", "run", failed.pk, "--data", "--frames").out
    assert '"guest": "Bob"' in whole
    assert "Traceback (most recent call last)" in whole


def test_the_story_as_json(failed, waiting):
    story = automation("show", "workflow", failed.pk, "--json").document
    assert (story["kind"], story["pk"], story["tone"]) == ("workflow", failed.pk, "bad")
    assert story["failure"]["summary"] == "ValueError: the card was \\x1b[31mrefused"
    assert [each["title"] for each in story["past"]][-1] == "Created"
    assert "data" not in story
    assert "text" not in story["failure"]
    story = automation("show", "workflow", waiting.pk, "--json", "--data", "--frames").document
    assert story["data"] == {"guest": "Ada", "cents": 100}
    assert story["planned"]
    assert story["failure"] is None


def test_a_context_with_control_characters_does_not_reach_the_terminal(charging):
    run = engine.start("charging", guest="\x1b[2J\x9b31m")
    for arguments in ([], ["--json"]):
        out = automation("show", "workflow", run.pk, "--data", *arguments).out
        assert "2J" in out
        assert not {"\x1b", "\x9b"} & set(out)


def test_the_payload_of_an_event_is_shown_only_on_request():
    stay = reservation(docs=True)
    event = Event.objects.get(event_name="guest_docs_uploaded", entity_id=str(stay.pk))
    drain()
    assert "docs_ready" not in automation("show", "event", event.pk).out
    assert "docs_ready" in automation("show", "event", event.pk, "--data").out


def test_a_row_that_does_not_exist_is_exit_code_1(charging):
    answer = automation("show", "workflow", 4711)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "There is no workflow with the primary key 4711.\n"


# -- problems ----------------------------------------------------------------------------------------------------------


def test_problems_are_grouped_with_the_command_that_resumes_them(charging):
    assert automation("problems", "--check").code == 0
    assert "nothing has failed" in automation("problems").out
    for _ in range(3):
        engine.start("charging", guest="Bob")
    drain()
    answer = automation("problems")
    assert answer.out.startswith("3 workflow charging, failed: ValueError: the card was")
    assert "automation_resume workflow --failed --name 'charging' --reason '" in answer.out
    assert "\x1b" not in answer.out
    (problem,) = automation("problems", "workflows", "--json").document["problems"]
    assert (problem["count"], problem["state"], problem["name"]) == (3, "failed", "charging")
    assert automation("problems", "agent", "--json").document == {"problems": []}
    checked = automation("problems", "--check", "--json")
    assert (checked.code, len(checked.document["problems"]), checked.err) == (1, 1, "1 problem(s).\n")


# -- plan --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reminding():
    @on_event("checkin_due", offset=timedelta(hours=-3), name="remind")
    def remind(event):
        pass

    @on_event("checkin_due", name="welcome")
    def welcome(event):
        pass


def test_what_is_planned_in_a_period(reminding, waiting):
    now = timezone.now()
    reservation(checkin_at=now + timedelta(hours=30))
    found = automation("plan", "--json").document
    assert [(each["kind"], each["name"]) for each in found["planned"]] == [("workflow", "charging")]
    found = automation("plan", "--hours", 48, "--json").document["planned"]
    assert [each["kind"] for each in found] == ["workflow", "event", "event"]
    assert "notifies callback remind" in found[1]["reason"]
    assert "notifies callback welcome" in found[2]["reason"]
    tomorrow = (now + timedelta(hours=28)).isoformat()
    (only,) = automation("plan", "--from", tomorrow, "--hours", 4, "--json").document["planned"]
    assert "welcome" in only["reason"]
    assert "3 hours before 'checkin_due'" in automation("plan", "--hours", 48).out
    cut = automation("plan", "--hours", 48, "--limit", 1)
    assert "There is more than --limit 1." in cut.out


def test_what_is_planned_for_an_entity(reminding):
    stay = reservation(checkin_at=timezone.now() + timedelta(hours=30))
    given = f"app.Reservation:{stay.pk}"
    found = automation("plan", "--entity", given, "--json").document["planned"]
    assert [(each["kind"], each["name"]) for each in found] == [
        ("callback", "remind"),
        ("event", "checkin_due"),
        ("callback", "welcome"),
    ]
    assert "checkin_due" in automation("plan", "--entity", given).out
    Reservation.objects.all().delete()
    gone = automation("plan", "--entity", given)
    assert (gone.code, gone.out) == (1, "")
    assert "does not exist" in gone.err


def test_nothing_of_this_is_written_down_as_an_action(failed):
    automation("list", "workflow")
    automation("show", "workflow", failed.pk)
    automation("problems")
    automation("plan")
    assert not Action.objects.exists()


# -- why ---------------------------------------------------------------------------------------------------------------


def test_why_a_subscriber_did_not_act(reminding):
    stay = Reservation.objects.create(checkin_at=timezone.now() + timedelta(hours=30))
    given = f"app.Reservation:{stay.pk}"
    answer = automation("why", given, "remind")
    assert answer.code == 0
    assert "callback remind on checkin_due" in answer.out
    (only,) = automation("why", given, "remind", "--json").document["answers"]
    assert (only["subscriber"], only["event"]) == ("remind", "checkin_due")
    assert any(each["holds"] is False for each in only["conditions"])
    event = Event.objects.get(event_name="checkin_due")
    assert automation("why", f"event:{event.pk}", "welcome", "--json").document["answers"]
    assert {each["subscriber"] for each in automation("why", given, "--json").document["answers"]} >= {"remind"}
    stay.delete()
    gone = automation("why", given)
    assert (gone.code, "was deleted. Ask about one of its events, such as event:" in gone.err) == (1, True)


def test_the_values_that_why_compares_are_shown_only_on_request(caring):
    @agent("picky", match={"note": "{{ ctx.guest }}"})
    class Picky:
        class Context(BaseModel):
            guest: str = "secret-note"

        @handler("reservation_confirmed")
        def greet(self, run):
            pass

    AgentManager.spawn("picky")
    stay = reservation(note="other-note")
    given = ("why", f"app.Reservation:{stay.pk}", "picky.greet")
    for arguments in (given, (*given, "--json")):
        assert "secret-note" not in automation(*arguments).out
        assert "secret-note" in automation(*arguments, "--data").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["why", "event:4711"], 1, "There is no event with the primary key 4711."),
        (["why", "schedule:nightyl"], 2, "There is no schedule 'nightyl'."),
        (["why", "app.Reservation:4711"], 1, "There is no app.reservation 4711, and no event of it."),
        (["why", "app.Reservation:4711", "--limit", "0"], 2, "--limit=0 must be at least 1."),
    ],
)
def test_what_why_cannot_answer(reminding, arguments, code, said):
    answer = automation(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err


# -- graph -------------------------------------------------------------------------------------------------------------


def test_a_workflow_is_drawn(charging):
    answer = automation("graph", "charging")
    assert "flowchart TD" in answer.out
    assert "give_up" in answer.out
    assert automation("graph", "charging", "--format", "svg").out.startswith("<svg")
    assert automation("graph", "charging", "--format", "dot").out.startswith("digraph {")
    document = automation("graph", "charging", "--kind", "workflow", "--json").document
    assert document["graph"].startswith("%% ")
    for wrong in (["chargign"], ["charging", "--kind", "workfloww"]):
        answer = automation("graph", *wrong)
        assert (answer.code, answer.out) == (2, "")
        assert "Did you mean" in answer.err
    assert automation("graph", "charging", "--of-version", "99").code == 1
