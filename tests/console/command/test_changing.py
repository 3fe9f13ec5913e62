"""The verbs that change rows: what they do, what they refuse, what they print, and who they say did it."""

from __future__ import annotations

import os
import re
from datetime import timedelta

import pytest
from django.core.management import load_command_class
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import FreeEvent, Retry, complete, emit, engine, schedule, sleep, step, workflow
from django_ai.automation.agents.manager import AgentManager
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.console.commands.verbs import VERBS
from django_ai.automation.events import claims
from django_ai.automation.events.models import Event, Schedule
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, Pause
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Guest, Reservation
from tests.support.automation_command import automation

pytestmark = pytest.mark.django_db(transaction=True)


def status_of(run) -> str:
    run.refresh_from_db()
    return str(run.status)


def who() -> list[tuple[str, str, str]]:
    return list(Action.objects.order_by("pk").values_list("done", "actor", "reason"))


# -- start, spawn, signal ----------------------------------------------------------------------------------------------


def test_a_workflow_is_started_with_fields(charging):
    answer = automation("start", "charging", "--set", "guest=Eve", "cents=7", "--json", "--actor", "user:5")
    run = WorkflowRun.objects.get()
    assert answer.document == {"verb": "start", "workflow": "charging", "pk": run.pk, "started": True}
    assert (run.data, run.caused_by) == ({"guest": "Eve", "cents": 7}, "user:5")
    answer = automation("start", "charging", "--context", '{"guest": "Ann"}', "--set", "cents=8")
    assert answer.out == f"started: workflow {run.pk + 1}: charging #{run.pk + 1}\n"
    assert WorkflowRun.objects.latest("pk").data == {"guest": "Ann", "cents": 8}
    assert WorkflowRun.objects.latest("pk").caused_by.startswith("command:automation")


def test_a_workflow_is_started_once_for_a_key(charging):
    first = automation("start", "charging", "--key", "order:1", "--json").document
    again = automation("start", "charging", "--key", "order:1")
    assert again.code == 1
    assert "order:1" in again.err
    found = automation("start", "charging", "--key", "order:1", "--if-exists", "return", "--json").document
    assert (found["pk"], found["started"]) == (first["pk"], False)
    other = automation("start", "charging", "--key", "order:1", "--if-exists", "restart", "--json").document
    assert (other["pk"] != first["pk"], other["started"]) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["start", "chargign"], 2, "There is no workflow 'chargign'. Did you mean 'charging'?"),
        (["start", "charging", "--set", "cents=0"], 1, "cents: Input should be greater than or equal to 1"),
        (["start", "charging", "--set", "gest=Eve"], 1, "gest"),
        (["start", "charging", "--set", "guest"], 2, "'guest': write NAME=VALUE."),
        (["start", "charging", "--context", "{"], 2, "--context is not JSON"),
        (["start", "charging", "--context", "[]"], 2, "--context must be a JSON object"),
        (["start", "charging", "--actor", "no one"], 2, "--actor: "),
        (["spawn", "carign"], 2, "Did you mean 'caring'?"),
        (["spawn", "caring", "--set", "guest=[]"], 1, "guest: "),
        (["spawn", "caring", "--event", "4711"], 1, "There is no event with the primary key 4711."),
    ],
)
def test_what_cannot_be_started_is_said(charging, caring, arguments, code, said):
    answer = automation(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert not WorkflowRun.objects.exists()
    assert not AgentRun.objects.exists()


def test_an_agent_is_spawned(caring):
    answer = automation("spawn", "caring", "--set", "guest=Eve", "--json")
    assert AgentRun.objects.get(pk=answer.document["pk"]).data == {"guest": "Eve"}


def test_a_signal_reaches_one_run(waiting):
    answer = automation("signal", "desk:answer", "--set", "guest=Eve", "--run", waiting.pk, "--json")
    assert answer.document["warning"] == ""
    drain()
    assert status_of(waiting) == "completed"
    assert waiting.data["guest"] == "Eve"
    assert Signal.objects.get().caused_by.startswith("command:automation")


def test_a_signal_reaches_everyone(waiting):
    assert automation("signal", "desk:answer", "--payload", '{"cents": 5}', "--everyone").code == 0
    drain()
    assert status_of(waiting) == "completed"


def test_a_misspelt_signal_is_not_sent(waiting):
    for target in (["--run", waiting.pk], ["--everyone"]):
        answer = automation("signal", "desk:answr", *target)
        assert answer.code == 1 or target == ["--everyone"]  # other workflows of the tests compute names
        if answer.code:
            assert "The signal was not sent." in answer.err
            assert "Did you mean 'desk:answer'?" in answer.err
    assert not Signal.objects.filter(run=waiting).exists()
    assert automation("signal", "desk:answr", "--run", waiting.pk, "--anyway").code == 0
    assert Signal.objects.filter(run=waiting).count() == 1


# -- cancel, complete, resume, try-now ---------------------------------------------------------------------------------


def test_runs_are_cancelled_by_their_keys(waiting):
    answer = automation("cancel", "workflow", waiting.pk, 4711, "--reason", "A double.", "--actor", "user:5", "--json")
    assert status_of(waiting) == "cancelled"
    assert waiting.error == "Cancelled by user:5: A double."
    assert answer.code == 1
    assert answer.document["done"] == [waiting.pk]
    assert answer.document["refused"] == [{"pk": 4711, "why": "There is no workflow with the primary key 4711."}]
    assert who() == [("Cancelled", "user:5", "A double.")]
    again = automation("cancel", "workflow", waiting.pk)
    assert again.code == 1
    assert "it has ended" in again.err


def test_many_runs_are_cancelled_after_a_dry_run(charging):
    runs = [engine.start("charging") for _ in range(120)]
    other = automation("cancel", "workflow", "--name", "charging", "--dry-run", "--json").document
    assert (other["count"], len(other["pks"]), other["dry_run"]) == (120, 50, True)
    assert "and 70 more" in automation("cancel", "workflow", "--all", "--dry-run").out
    assert WorkflowRun.objects.unfinished().count() == 120
    answer = automation("cancel", "workflow", "--name", "charging")
    assert answer.out == "Cancelled: 120.\n"
    assert not WorkflowRun.objects.unfinished().exists()
    assert automation("cancel", "workflow", "--name", "charging").out == "Cancelled: 0.\n"
    assert Action.objects.filter(done="Cancelled").count() == len(runs)


def test_the_runs_of_an_entity_are_cancelled(charging):
    one, other = engine.start("charging"), engine.start("charging")
    stay = Reservation.objects.create()
    WorkflowRun.objects.filter(pk=one.pk).update(entity_type="app.reservation", entity_id=str(stay.pk))
    assert automation("cancel", "workflow", "--entity", f"app.Reservation:{stay.pk}").code == 0
    assert (status_of(one), status_of(other)) == ("cancelled", "running")


def test_agents_and_events_are_cancelled(caring):
    agent = AgentManager.spawn("caring")
    stay = Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + timedelta(days=3))
    event = Event.objects.get(event_name="checkin_due", entity_id=str(stay.pk))
    assert automation("cancel", "agents", agent.pk).out.startswith(f"cancelled: agent {agent.pk}: caring")
    assert automation("cancel", "event", "--name", "checkin_due", "--status", "pending").code == 0
    assert (status_of(agent), status_of(event)) == ("cancelled", "cancelled")
    refused = automation("cancel", "agent", agent.pk, "--at-once")
    assert (refused.code, "--at-once is for workflow runs" in refused.err) == (2, True)


def test_an_agent_is_completed(caring):
    agent = AgentManager.spawn("caring")
    assert automation("complete", agent.pk, "--reason", "Enough.").code == 0
    assert status_of(agent) == "completed"
    assert automation("complete", agent.pk).code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cancel", "workflow"], "Say which rows: primary keys, --name, --status, --entity or --all."),
        (["cancel", "workflow", "1", "--all"], "Give primary keys or --all, not both."),
        (["cancel", "workflow", "--name", "chargign"], "Did you mean 'charging'?"),
        (["cancel", "workflow", "--status", "waitng"], "Did you mean 'waiting'?"),
        (["cancel", "signal", "1"], "This verb does not take the kind 'signal'."),
        (["cancel", "workfloww", "1"], "Did you mean 'workflow'?"),
        (["resume", "workfloww", "1"], "Did you mean 'workflow'?"),
        (["resume", "workflow"], "Say which rows"),
        (["resume", "all", "1"], "Primary keys need the kind"),
        (["resume", "agent", "1", "--step", "x"], "--step is for workflow runs"),
        (["resume", "workflow", "--all", "--step", "x"], "--step needs --name or primary keys"),
        (["resume", "workflow", "1", "--again"], "--again needs --step"),
        (["pause", "workflw", "x"], "Did you mean 'workflow'?"),
        (["pause", "workflow", "chargign"], "Did you mean 'charging'?"),
        (["pause", "workflow", "charging", "12"], "Give names or primary keys, not both."),
        (["edit-context", "workflow", "1"], "Give the fields"),
        (["move", "1", "tomorrow"], "DATE 'tomorrow' is not an ISO date"),
    ],
)
def test_a_wrong_call_is_exit_code_2(charging, failed, arguments, said):
    answer = automation(*arguments)
    if arguments[0] == "move":
        assert answer.code in (1, 2)
        return
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_a_failed_run_is_resumed(failed, charging):
    dry = automation("resume", "workflow", "--name", "charging", "--failed", "--dry-run", "--json").document
    assert (dry["count"], dry["rows"]) == (1, [{"kind": "workflow", "pk": failed.pk}])
    assert automation("resume", "workflow", "--name", "charging").err.count("There") == 0
    answer = automation("resume", "run", failed.pk, "--step", "book", "--reason", "Paid in cash.")
    assert answer.out == f"resumed: workflow {failed.pk}: charging #{failed.pk}\nResumed: 1.\n"
    drain()
    assert status_of(failed) == "completed"
    assert who()[-1][::2] == ("Resumed", "Paid in cash.")
    again = automation("resume", "workflow", failed.pk, "--json")
    assert again.code == 1
    assert "only parked and failed rows can be resumed" in again.document["refused"][0]["why"]


def test_rows_are_resumed_by_their_error(charging):
    for _ in range(3):
        engine.start("charging", guest="Bob")
    drain()
    answer = automation("resume", "all", "--error", "refused", "--failed", "--json")
    assert [each["kind"] for each in answer.document["done"]] == ["workflow"] * 3
    assert automation("resume", "all", "--error", "other", "--failed").out == "Resumed: 0.\n"
    wrong = automation("resume", "workflow", "--name", "chargign", "--failed")
    assert wrong.code == 2


def test_a_backoff_is_ended():
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

    run = engine.start("flaky")
    drain()
    assert automation("try-now", "--name", "flaky", "--reason", "It is back.").out.endswith("Tried again: 1.\n")
    drain()
    assert status_of(run) == "completed"
    refused = automation("try-now", run.pk)
    assert refused.code == 1
    assert "completed" in refused.err


# -- repairs -----------------------------------------------------------------------------------------------------------


def test_a_wait_is_skipped(waiting):
    assert automation("skip-wait", waiting.pk, "--set", "guest=Eve", "--reason", "By phone.").code == 0
    drain()
    assert (status_of(waiting), waiting.data["guest"]) == ("completed", "Eve")
    refused = automation("skip-wait", waiting.pk)
    assert refused.code == 1


def test_a_sleep_is_skipped():
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

    run = engine.start("sleeper")
    drain()
    assert automation("skip-wait", run.pk, "--json").document == {"verb": "skip-wait", "pk": run.pk}
    drain()
    assert status_of(run) == "completed"


def test_a_context_is_edited(failed):
    answer = automation("edit-context", "workflow", failed.pk, "--set", "guest=Eve", "cents=3", "--json")
    assert answer.document["fields"] == ["cents", "guest"]
    failed.refresh_from_db()
    assert failed.data == {"guest": "Eve", "cents": 3}
    wrong = automation("edit-context", "workflow", failed.pk, "--context", '{"cents": 0}')
    assert wrong.code == 1
    assert "cents" in wrong.err


def test_a_run_is_forked(failed):
    answer = automation("fork", failed.pk, "--step", "book", "--set", "guest=Eve", "--json")
    made = WorkflowRun.objects.get(pk=answer.document["fork"])
    assert made.data["guest"] == "Eve"
    drain()
    assert (status_of(made), status_of(failed)) == ("completed", "failed")
    wrong = automation("fork", failed.pk, "--step", "boock")
    assert (wrong.code, "Did you mean 'book'?" in wrong.err) == (2, True)


def test_a_run_is_rewound(failed):
    listed = automation("rewind", failed.pk, "--json").document["visits"]
    assert [(each["visit"], each["step"]) for each in listed] == [(2, "charge"), (1, "price")]
    assert automation("rewind", failed.pk).out.startswith("2: charge, ")
    assert automation("rewind", failed.pk, "--step", "price", "--reason", "Wrong.").code == 0
    assert status_of(failed) == "running"
    assert who()[-1][::2] == ("Rewound", "Wrong.")
    wrong = automation("rewind", failed.pk, "--step", "pryce")
    assert (wrong.code, "Did you mean 'price'?" in wrong.err) == (2, True)
    assert automation("rewind", failed.pk, 99).code == 1
    assert automation("rewind", failed.pk, 1, "--step", "price").code == 2


# -- pauses ------------------------------------------------------------------------------------------------------------


def test_pauses_are_made_listed_and_ended(waiting):
    assert automation("pause").out == "Nothing is paused.\n"
    answer = automation("pause", "workflow", "charging", "--reason", "The bank is down.", "--json")
    assert len(answer.document["done"]) == 1
    assert automation("pause", "workflow", waiting.pk).out.startswith("paused: ")
    (first, _second) = automation("unpause", "--json").document["pauses"]
    assert first["reason"].endswith("The bank is down.")
    assert "paused since" in automation("pause").out
    assert automation("unpause", "workflow", "charging").out.startswith("unpaused: ")
    assert "was not paused" in automation("unpause", "workflows", "charging").out
    assert automation("pause", "everything").code == 0
    assert Pause.objects.count() == 2
    assert [done for done, _, _ in who()] == ["Paused", "Paused", "Unpaused", "Paused"]


def test_schedules_are_paused_listed_and_continued(charging):
    schedule(timedelta(days=1), name="nightly")(charging)
    schedule(timedelta(days=2), name="weekly")(charging)
    ensure_rows(timezone.now())
    nightly, weekly = Schedule.objects.get(name="nightly"), Schedule.objects.get(name="weekly")
    answer = automation("pause", "schedule", "nightly", "--reason", "A holiday.", "--actor", "user:5", "--json")
    assert len(answer.document["done"]) == 1
    assert automation("pause", "schedules", weekly.pk).out.startswith("paused: ")
    assert automation("pause", "schedule", "nightly").out.startswith("has ended, or was paused already: ")
    assert "the schedule 'nightly', paused since" in automation("pause").out
    assert {each["target"] for each in automation("unpause", "--json").document["pauses"]} == {
        "schedule:nightly",
        "schedule:weekly",
    }
    assert automation("unpause", "schedule", "nightly").out.startswith("unpaused: ")
    assert automation("unpause", "schedule", "nightly").out.startswith("was not paused: ")
    nightly.refresh_from_db()
    weekly.refresh_from_db()
    assert (nightly.paused_at, nightly.wake_at is None) == (None, False)
    assert (weekly.paused_at is None, weekly.wake_at) == (False, None)
    assert who()[0] == ("Paused", "user:5", "A holiday.")
    assert [done for done, _, _ in who()] == ["Paused", "Paused", "Unpaused"]
    wrong = automation("pause", "schedule", "nightli")
    assert (wrong.code, "Did you mean 'nightly'?" in wrong.err) == (2, True)
    assert automation("pause", "schedule").code == 2
    assert automation("pause", "schedule", 4711).code == 1


# -- events ------------------------------------------------------------------------------------------------------------


def test_an_event_occurs_now():
    stay = Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + timedelta(days=3))
    event = Event.objects.get(event_name="checkin_due", entity_id=str(stay.pk))
    assert automation("fire-now", "event", event.pk).out.endswith("Fired: 1.\n")
    assert automation("fire-now", "event", event.pk).code == 1
    drain()
    assert status_of(event) == "processed"


def test_a_schedule_is_fired(charging):
    schedule(timedelta(days=1), name="nightly")(charging)
    ensure_rows(timezone.now())
    row = Schedule.objects.get(name="nightly")
    assert automation("fire-now", "schedule", row.pk).code == 0
    drain()
    assert WorkflowRun.objects.filter(name="charging").count() == 1


def test_an_event_is_moved():
    FreeEvent("delivery")
    now = timezone.now()
    event = emit("delivery", key="parcel:7", at=now + timedelta(days=1))
    later = (now + timedelta(days=2)).isoformat()
    answer = automation("move", event.pk, later, "--json")
    event.refresh_from_db()
    assert answer.document["moved"]
    assert event.at == now + timedelta(days=2)
    assert "already" in automation("move", event.pk, later).out


def test_an_event_is_redelivered(caring):
    agent = AgentManager.spawn("caring")
    guest = Guest.objects.create(name="Ada")
    Reservation.objects.create(guest=guest, status="confirmed")
    drain()
    execution = HandlerExecution.objects.get(run=agent)
    refused = automation("redeliver", "event", execution.event_id, "--handler", "greet")
    assert refused.code == 1
    assert "What has completed is not repeated." in refused.err
    HandlerExecution.objects.update(status="skipped")
    answer = automation("redeliver", "event", execution.event_id, "--agent", agent.pk, "--json")
    assert answer.document["done"] == [execution.pk]
    HandlerExecution.objects.update(status="failed")
    assert automation("redeliver", "handler", execution.pk).code == 0


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_verb_that_does_not_exist(capsys):
    command = load_command_class("django_ai.automation.console", "automation")
    with pytest.raises(SystemExit) as ended:
        command.run_from_argv(["manage.py", "automation", "canel"])
    assert ended.value.code == 2
    assert "There is no verb 'canel'. Did you mean 'cancel'?" in capsys.readouterr().err


def test_without_a_verb_the_command_lists_all(capsys):
    command = load_command_class("django_ai.automation.console", "automation")
    with pytest.raises(SystemExit) as ended:
        command.run_from_argv(["manage.py", "automation"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(re.search(rf"^ +{name}\b", said, re.MULTILINE) for name in VERBS)


def test_each_verb_that_changes_rows_takes_a_reason_and_an_actor():
    parser = load_command_class("django_ai.automation.console", "automation").create_parser("manage.py", "automation")
    (verbs,) = [action for action in parser._actions if action.dest == "verb"]
    for name, verb in VERBS.items():
        options = {each for action in verbs.choices[name]._actions for each in action.option_strings}
        assert "--json" in options
        assert ({"--reason", "--actor"} <= options) == verb.changes


def test_keys_and_names_may_follow_options(waiting, failed):
    answer = automation("cancel", "workflow", "--reason", "A double.", waiting.pk)
    assert answer.code == 0
    assert status_of(waiting) == "cancelled"
    assert automation("resume", "--reason", "Paid.", "workflow", "--step", "book", failed.pk).code == 0
    assert automation("list", "--limit", 1, "workflow").code == 0
    assert automation("why", "--limit", 1, "app.Reservation:4711").code == 1


def test_a_message_with_control_characters_does_not_reach_the_terminal(charging):
    answer = automation("start", "charging", "--key", "\x1b[2J")
    assert answer.code == 0
    again = automation("start", "charging", "--key", "\x1b[2J")
    assert again.code == 1
    assert "\x1b" not in again.err


def test_an_unchanged_environment_names_the_user_of_the_system(waiting, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, "LOGNAME": "ann"})
    automation("cancel", "workflow", waiting.pk)
    assert who() == [("Cancelled", "command:automation:ann", "")]


# -- claims, the baseline, completion ----------------------------------------------------------------------------------


def test_a_claim_is_released(caring):
    agent = AgentManager.spawn("caring")
    claim = claims.hold("reservation_confirmed", match={"note": "secret-note"}, owner=agent)
    answer = automation("release", claim.pk, "--reason", "The agent is stuck.")
    assert answer.out.endswith("Released: 1.\n")
    assert "secret-note" not in answer.out
    assert claims.holder("reservation_confirmed", match={"note": "secret-note"}) is None
    action = Action.objects.get()
    assert (action.done, action.reason) == ("Released", "The agent is stuck.")
    assert "secret-note" not in action.what
    assert automation("release", claim.pk).code == 1
    assert not claim.release()


def test_a_claim_that_another_run_has_taken_over_is_not_released(caring):
    one, other = AgentManager.spawn("caring"), AgentManager.spawn("caring")
    claim = claims.hold("reservation_confirmed", owner=one)
    claims.hold("reservation_confirmed", owner=other, bump=True)
    assert not claim.release()
    assert claims.holder("reservation_confirmed") is not None


def test_the_baseline_is_made():
    stay = Reservation.objects.create()
    Event.objects.all().delete()
    Reservation.objects.filter(pk=stay.pk).update(status="confirmed")
    given = ("--model", "app.Reservation", "--event", "reservation_confirmed")
    dry = automation("baseline", *given, "--dry-run", "--json")
    assert dry.document["counts"] == [
        {"model": "app.Reservation", "event": "reservation_confirmed", "marked": 1, "known": 0, "failed": 0}
    ]
    assert not Event.objects.exists()
    assert "1 marked" in automation("baseline", *given).out
    assert Event.objects.filter(event_name="reservation_confirmed").count() == 1
    wrong = automation("baseline", "--model", "app.Reservatoin")
    assert (wrong.code, "Did you mean 'app.reservation'?" in wrong.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["canc"], ["cancel"]),
        (["list", "workf"], ["workflow"]),
        (["list", "workflow", "--name", "charg"], ["charging"]),
        (["list", "agent", "--name", "car"], ["caring"]),
        (["list", "workflow", "--status", "fail"], ["failed"]),
        (["list", "workflow", "--stat"], ["--status"]),
        (["start", "charg"], ["charging"]),
        (["start", "charging", "--if-exists", "re"], ["restart", "return"]),
        (["spawn", "cari"], ["caring"]),
        (["pause", "workflow", "charg"], ["charging"]),
        (["pause", "schedu"], ["schedule"]),
        (["pause", "schedule", "nigh"], ["nightly"]),
        (["resume", "workflow", "--step", "give"], ["give_up"]),
        (["signal", "desk:"], ["desk:answer"]),
        (["forget", "app.Reservat"], ["app.Reservation:"]),
        (["cancel", "workflow", "1"], []),
        (["nothing", "x"], []),
    ],
)
def test_the_shell_completes_verbs_options_and_names(charging, caring, words, expected):
    schedule(timedelta(days=1), name="nightly")(charging)
    assert automation("completion", "--words", *words).out.split() == expected


def test_the_script_for_the_shell():
    assert "complete -o default" in automation("completion").out
    assert automation("completion", "--shell", "zsh", "--json").document["script"].startswith("autoload")
