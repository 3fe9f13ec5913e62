"""Pauses, for operators: what rows say, wrong arguments, the commands, and the admin."""

from __future__ import annotations

import getpass
import io
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.urls import reverse

from django_ai.automation import (
    AgentManager,
    agent,
    engine,
    handler,
    on_event,
)
from django_ai.automation.exceptions import DefinitionError, UnknownRunError
from django_ai.automation.queues.models import Pause
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.queues.operations.health import check_health
from django_ai.automation.testing import time_machine
from tests.support.health import probe
from tests.support.pauses import Word, pause_and_unpause
from tests.support.rows import effects

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


# -- what operators see ------------------------------------------------------------------------------------------------


def reasons(now) -> list[str]:
    return [each.waits_for for each in explain(now, ["workflow run"])]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("run", "this row"),
        ("workflow", "the workflow 'pauses:naps'"),
        ("queue", "the queue 'reports'"),
        ("everything", "everything"),
    ],
)
def test_a_paused_row_says_what_it_waits_for(clock, work, naps, target, words):
    run = engine.start("pauses:naps")
    pause, unpause = pause_and_unpause(target, run, naps)
    pause()
    end = f"the end of the pause of {words}"
    assert reasons(clock.now) == [end]
    work()
    assert reasons(clock.now) == [end]
    assert run.__class__.objects.get().waits_for(clock.now) == end
    unpause()
    work()
    pause()
    assert reasons(clock.now) == [f"its timer, 2030-01-07 14:00:00; and {end}"]
    assert probe("--explain")[0] == 0


def test_explanations_read_pauses_once_for_all_rows(clock, naps, django_assert_max_num_queries):
    for _ in range(20):
        engine.start("pauses:naps")
    engine.pause(workflow="pauses:naps")
    with django_assert_max_num_queries(5):
        assert len(set(reasons(clock.now))) == 1


def test_what_is_paused_is_not_overdue(clock, naps):
    engine.start("pauses:naps")
    engine.pause(queue="reports")
    health = check_health(clock.tick(HOUR))
    assert (health.is_healthy, health.overdue, health.paused) == (True, (), ("the queue 'reports'",))
    assert "Paused: the queue 'reports'." in str(health)


def test_the_time_machine_passes_over_what_is_paused(naps):
    with time_machine("2030-01-07T12:00+00:00") as machine:
        run = engine.start("pauses:naps", word="a")
        engine.pause(queue="reports")
        machine.advance(days=1)
        assert effects() == []
        engine.unpause(queue="reports")
        engine.pause(run)
        machine.advance(days=1)
        engine.unpause(run)
        machine.advance(hours=1)
    assert effects() == ["begin a", "end a"]


# -- wrong arguments ---------------------------------------------------------------------------------------------------


def test_exactly_one_target_is_given(naps):
    run = engine.start("pauses:naps")
    for call in (engine.pause, engine.unpause):
        for arguments, given in [((), {}), ((run,), {"queue": "reports"}), ((), {"queue": "x", "everything": True})]:
            with pytest.raises(DefinitionError, match="takes one target"):
                call(*arguments, **given)
        with pytest.raises(DefinitionError, match="as in workflow='pauses:naps', or give a WorkflowRun"):
            call("pauses:naps")
        with pytest.raises(DefinitionError, match=r"\(<class .*>\): give a WorkflowRun"):
            call(Word)
        with pytest.raises(UnknownRunError):
            call(123456)


def greet(event):
    pass


GREET = f"{__name__}.greet"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workflow": "pauses:nap"}, "No workflow is called 'pauses:nap'. Did you mean 'pauses:naps'?"),
        ({"agent": "nobody"}, "No agent is called 'nobody'"),
        ({"callback": "nothing"}, "No callback is called 'nothing'"),
        ({"queue": "report"}, "There is no queue 'report'. Did you mean 'reports'?"),
        ({"workflow": Word}, "is not a workflow"),
        ({"callback": Word}, "Give the name of the callback"),
        ({"callback": "greeet"}, f"No callback is called 'greeet'. Did you mean '{GREET}'?"),
        ({"callback": "greet"}, f"No callback is called 'greet'. Did you mean '{GREET}'?"),
        ({"callback": greet}, f"Give the name of the callback, '{GREET}', not <function"),
        ({"callback": len}, "Give the name of the callback, not <built-in"),
    ],
)
def test_unknown_names_are_refused(naps, given, message):
    on_event("reservation_confirmed")(greet)
    for call in (engine.pause, engine.unpause):
        with pytest.raises(DefinitionError) as error:
            call(**given)
        assert message in str(error.value)


def test_a_pause_of_a_name_that_the_code_has_lost_can_be_ended(naps):
    engine.pause(workflow="pauses:naps")
    Pause.objects.update(target="workflow:pauses:gone")
    assert engine.unpause(workflow="pauses:gone")


def test_a_run_that_has_ended_is_not_paused(work, other):
    run = engine.start("pauses:other")
    work()
    assert engine.pause(run) is False
    assert not Pause.objects.exists()


# -- commands ----------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_commands_pause_list_and_unpause(clock, work, naps):
    run = engine.start("pauses:naps", word="a")
    assert command("automation_pause") == "Nothing is paused.\n"
    assert command("automation_pause", "workflow", "--name", "pauses:naps", "--reason", "An audit.") == (
        "Paused: the workflow 'pauses:naps'\nPaused: 1.\n"
    )
    work()
    assert command("automation_unpause") == (
        "the workflow 'pauses:naps', paused since 2030-01-07 13:00:00 (1 row(s) wait): "
        f"Paused by command:automation_pause:{getpass.getuser()}: An audit.\n"
    )
    assert command("automation_pause", "workflow", "--pk", str(run.pk)) == (f"Paused: workflow run {run}\nPaused: 1.\n")
    assert "Paused: 0." in command("automation_pause", "workflow", "--pk", str(run.pk))
    assert "Paused: 1." in command("automation_pause", "everything")
    assert "Unpaused: 1." in command("automation_unpause", "everything")
    assert "Unpaused: 1." in command("automation_unpause", "workflow", "--pk", str(run.pk))
    assert "Unpaused: 1." in command("automation_unpause", "workflow", "--name", "pauses:naps")
    assert "Unpaused: 0." in command("automation_unpause", "queue", "--name", "reports")
    work()
    assert effects() == ["begin a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["workflows", "--name", "x"], "Unknown 'workflows'. Known: everything, "),
        (["workflow"], "Give --name or --pk"),
        (["workflow", "--name", "x", "--pk", "1"], "Give --name or --pk"),
        (["workflow", "--name", "pauses:nap"], "Did you mean 'pauses:naps'"),
        (["workflow", "--pk", "99"], "There is no workflow run with the primary key 99"),
        (["queue", "--pk", "1"], "A queue has a --name and no --pk"),
        (["everything", "--name", "x"], "everything takes neither"),
        (["--name", "x"], "as in: automation_pause workflow --name NAME"),
    ],
)
def test_wrong_options_are_refused(naps, arguments, message):
    with pytest.raises(CommandError) as error:
        command("automation_pause", *arguments)
    assert message in str(error.value)
    assert not Pause.objects.exists()


# -- the admin ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(client):
    user = User.objects.create_user("operator", is_staff=True)
    wanted = ["view_workflowrun", "pause_workflowrun", "view_pause", "add_pause", "end_pause"]
    user.user_permissions.set(Permission.objects.filter(codename__in=wanted))
    client.force_login(user)
    return client


RUNS = "admin:automation_workflows_workflowrun_changelist"
PAUSES = "admin:automation_queues_pause"


def test_actions_of_the_admin_pause_and_unpause_runs(operator, work, naps):
    run = engine.start("pauses:naps", word="a")
    chosen = {"_selected_action": [run.pk]}
    page = operator.post(reverse(RUNS), {"action": "pause", **chosen}, follow=True)
    assert "Paused: 1." in page.content.decode()
    assert "the end of the pause of this row" in page.content.decode()
    assert Pause.objects.get().reason == "Paused by operator."
    page = operator.post(reverse(RUNS), {"action": "pause", **chosen}, follow=True)
    assert "is paused already" in page.content.decode()
    work()
    page = operator.post(reverse(RUNS), {"action": "unpause", **chosen}, follow=True)
    assert "Unpaused: 1." in page.content.decode()
    page = operator.post(reverse(RUNS), {"action": "unpause", **chosen}, follow=True)
    assert "is not paused itself" in page.content.decode()
    work()
    assert effects() == ["begin a"]


def test_a_page_of_the_admin_pauses_names_and_queues(operator, work, naps):
    page = operator.get(reverse(f"{PAUSES}_add")).content.decode()
    for target in ("everything", "workflow:pauses:naps", "queue:reports"):
        assert f'value="{target}"' in page
    operator.post(reverse(f"{PAUSES}_add"), {"target": "workflow:pauses:naps", "reason": "An audit."})
    pause = Pause.objects.get()
    assert (pause.target, pause.reason) == ("workflow:pauses:naps", "Paused by operator: An audit.")
    again = operator.post(reverse(f"{PAUSES}_add"), {"target": "workflow:pauses:naps"})
    assert "This is paused already." in again.content.decode()
    assert operator.get(reverse(f"{PAUSES}_change", args=[pause.pk])).status_code == 200
    engine.start("pauses:naps", word="a")
    work()
    ended = operator.post(
        reverse(f"{PAUSES}_changelist"), {"action": "end", "_selected_action": [pause.pk]}, follow=True
    )
    assert "Unpaused: 1." in ended.content.decode()
    work()
    assert effects() == ["begin a"]


def test_who_has_no_permission_pauses_nothing(operator, naps):
    User.objects.get().user_permissions.set(Permission.objects.filter(codename__in=["view_workflowrun", "view_pause"]))
    run = engine.start("pauses:naps")
    operator.post(reverse(RUNS), {"action": "pause", "_selected_action": [run.pk]}, follow=True)
    assert operator.post(reverse(f"{PAUSES}_add"), {"target": "everything"}).status_code == 403
    assert not Pause.objects.exists()


def test_an_agent_that_code_spawned_can_be_paused_before_it_is_active(work):
    @agent("pauses:agent")
    class Keeper:
        Context = Word

        @handler("reservation_confirmed")
        def answer(self):
            raise NotImplementedError

    run = AgentManager.spawn("pauses:agent", word="x")
    engine.pause(run)
    work()
    run.refresh_from_db()
    assert run.started_at is None
    engine.unpause(run)
    work()
    run.refresh_from_db()
    assert run.started_at is not None
