"""Who did what: rows say who cancelled and paused them, and their histories who resumed them, and why."""

from __future__ import annotations

import getpass
import subprocess
import sys
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    FreeEvent,
    acting_as,
    agent,
    complete,
    emit,
    engine,
    handler,
    schedule,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event, Schedule
from django_ai.automation.events.schedules.rows import ensure_rows
from django_ai.automation.exceptions import NotResumableError
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.history import actions_of
from django_ai.automation.queues.history_pruning import prune_actions
from django_ai.automation.queues.models import Action, Pause
from django_ai.automation.queues.operations import resume as resuming
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Probe
from tests.support.child_processes import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
RUNS = "admin:automation_workflows_workflowrun_changelist"
HISTORY = "admin:automation_workflows_workflowrun_history"


class Nothing(BaseModel):
    pass


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def operator(client) -> User:
    user = User.objects.create_superuser("root", password="x")
    client.force_login(user)
    return user


def parked(error: str = "a reason") -> WorkflowRun:
    return WorkflowRun.objects.create(name="held", status="parked", error=error)


def done_to(row) -> list[tuple[str, str, str]]:
    return list(actions_of(type(row), str(row.pk)).values_list("done", "actor", "reason"))


def act(client, action: str, *rows, reason: str = ""):
    chosen = {"action": action, "_selected_action": [row.pk for row in rows], "reason": reason}
    return client.post(reverse(f"admin:{rows[0]._meta.app_label}_{rows[0]._meta.model_name}_changelist"), chosen)


# -- verbs -------------------------------------------------------------------------------------------------------------


def test_a_cancelled_run_says_by_whom_and_why(ada):
    runs = [engine.start("story:listen") for _ in range(4)]
    with acting_as(ada, "The season is over."):
        engine.cancel(runs[0])
        engine.cancel(runs[1].pk, "The file was deleted.")
    with acting_as(ada):
        engine.cancel(runs[2])
    engine.cancel(runs[3])
    for run in runs:
        run.refresh_from_db()
    assert [run.error for run in runs] == [
        "Cancelled by ada: The season is over.",
        "Cancelled by ada: The file was deleted.",
        "Cancelled by ada.",
        "Cancelled.",
    ]
    assert [done_to(run) for run in runs] == [
        [("Cancelled", f"user:{ada.pk}", "The season is over.")],
        [("Cancelled", f"user:{ada.pk}", "The file was deleted.")],
        [("Cancelled", f"user:{ada.pk}", "")],
        [],
    ]


def test_what_was_refused_is_not_in_the_history(ada):
    run = engine.start("story:listen")
    engine.cancel(run)
    with acting_as(ada):
        assert not engine.cancel(run)
        assert not engine.pause(run)
        assert not engine.unpause(run)
        with pytest.raises(NotResumableError):
            engine.resume(run)
    assert not Action.objects.exists()


def test_a_restarted_run_says_who_restarted_it(ada):
    first = engine.start("story:listen", key="a")
    with acting_as(ada):
        engine.start("story:listen", key="a", if_exists="restart")
    first.refresh_from_db()
    assert first.error == "Cancelled by ada: Restarted with the key 'a'."
    assert done_to(first) == [("Cancelled", f"user:{ada.pk}", "Restarted with the key 'a'.")]


def test_an_ended_agent_says_by_whom_and_why(ada):
    @agent("who:agent")
    class Keeper:
        Context = Nothing

        @handler("probe_ready")
        def answer(self):
            raise NotImplementedError

    first, second = AgentManager.spawn("who:agent"), AgentManager.spawn("who:agent")
    with acting_as(ada, "They left."):
        AgentManager.complete(first)
        AgentManager.cancel(second.pk)
    assert list(AgentRun.objects.order_by("pk").values_list("error", flat=True)) == [
        "Completed by ada: They left.",
        "Cancelled by ada: They left.",
    ]
    assert done_to(first) == [("Completed", f"user:{ada.pk}", "They left.")]
    assert done_to(second) == [("Cancelled", f"user:{ada.pk}", "They left.")]


def test_a_cancelled_event_and_what_it_had_planned_say_by_whom(ada):
    probe = Probe.objects.create(name="later", due_at=timezone.now() + HOUR)
    event = Event.objects.of(probe).get(event_name="probe_due")
    Event.objects.filter(pk=event.pk).update(error="An earlier note.")
    with acting_as(ada, "The guest called."):
        assert event.cancel()
        assert not event.cancel()
    event.refresh_from_db()
    assert event.error == "An earlier note.\nCancelled by ada: The guest called."
    assert done_to(event) == [("Cancelled", f"user:{ada.pk}", "The guest called.")]


def test_the_history_says_who_paused_and_resumed(ada):
    run = engine.start("story:listen")
    with acting_as(ada, "Wait a moment."):
        engine.pause(run)
        engine.pause(workflow="story:listen")
    assert set(Pause.objects.values_list("reason", flat=True)) == {"Paused by ada: Wait a moment."}
    with acting_as("system:nightly"):
        engine.unpause(run)
        engine.unpause(workflow="story:listen")
    assert done_to(run) == [
        ("Paused", f"user:{ada.pk}", "Wait a moment."),
        ("Unpaused", "system:nightly", ""),
    ]
    named = actions_of(Pause, "workflow:story:listen")
    assert [each.done for each in named] == ["Paused", "Unpaused"]
    assert named[0].what == "the workflow 'story:listen'"


def test_every_kind_of_row_that_is_resumed_says_by_whom(ada):
    event = Event.objects.of(Probe.objects.create(name="x", ready=True)).first()
    event.set_parked("a reason", timezone.now())
    event.save()
    execution = CallbackExecution.objects.create(event=event, callback="x", milestone="", status="failed", call_key="1")
    signal = engine.signal("who:word")
    run = parked()
    with acting_as(ada, "Mended."):
        for row in (event, execution, signal, run):
            row.resume()
    assert [done_to(row) for row in (event, execution, signal, run)] == [
        [("Resumed", f"user:{ada.pk}", "Mended.")] for _ in range(4)
    ]


def test_the_entry_is_rolled_back_with_the_change(ada):
    run = parked()
    with pytest.raises(ZeroDivisionError), acting_as(ada), transaction.atomic():
        engine.resume(run)
        raise ZeroDivisionError
    assert not Action.objects.exists()


def test_the_change_is_rolled_back_with_the_entry(ada, monkeypatch):
    """A change without its entry would have no author."""

    def broken(*args, **kwargs):
        raise ZeroDivisionError

    waiting, held = engine.start("story:listen"), parked()
    monkeypatch.setattr(Action, "save", broken)
    for change in (engine.cancel, engine.pause):
        with pytest.raises(ZeroDivisionError), acting_as(ada):
            change(waiting)
    with pytest.raises(ZeroDivisionError), acting_as(ada):
        held.resume()
    waiting.refresh_from_db()
    held.refresh_from_db()
    assert (waiting.is_finished, held.status, Pause.objects.count()) == (False, "parked", 0)


def test_an_entry_costs_one_insert_and_nothing_without_an_actor():
    def statements(run: WorkflowRun) -> list[str]:
        with CaptureQueriesContext(connection) as queries:
            engine.cancel(run)
        return [each["sql"].partition(" ")[0] for each in queries if "SAVEPOINT" not in each["sql"]]

    first, second = engine.start("story:listen"), engine.start("story:listen")
    without = statements(first)
    with acting_as("system:nightly"):
        acting = statements(second)
    assert "INSERT" not in without
    assert sorted(acting) == sorted([*without, "INSERT"])


def test_what_was_done_is_forgotten_after_a_year(ada):
    with acting_as(ada):
        parked().resume()
        parked().resume()
    oldest = Action.objects.order_by("pk").first()
    Action.objects.filter(pk=oldest.pk).update(done_at=timezone.now() - timedelta(days=366))
    assert prune_actions(TimeSlice(timezone.now())).done == 1
    assert not Action.objects.filter(pk=oldest.pk).exists()
    assert Action.objects.count() == 1


# -- the admin ---------------------------------------------------------------------------------------------------------


def test_an_action_of_the_admin_is_in_the_history_with_its_reason(client, operator):
    runs = [parked() for _ in range(3)]
    assert 'name="reason"' in client.get(reverse(RUNS)).content.decode()
    act(client, "resume", *runs, reason=" The bug is mended. ")
    assert all(done_to(run) == [("Resumed", f"user:{operator.pk}", "The bug is mended.")] for run in runs)
    entries = LogEntry.objects.filter(user=operator)
    assert {entry.change_message for entry in entries} == {"Resumed by an action: The bug is mended."}
    assert {entry.object_id for entry in entries} == {str(run.pk) for run in runs}
    page = client.get(reverse(HISTORY, args=[runs[0].pk])).content.decode()
    assert "Resumed: The bug is mended." in page
    assert f'<a href="{reverse("admin:auth_user_change", args=[operator.pk])}">root</a>' in page


def test_entries_of_many_rows_are_inserted_together(client, operator):
    def statements(*rows) -> int:
        with CaptureQueriesContext(connection) as queries:
            act(client, "resume", *rows)
        return sum("INSERT" in each["sql"] and "action" in each["sql"].split("(")[0] for each in queries)

    assert statements(parked()) == 1
    assert statements(*[parked() for _ in range(20)]) == 1
    assert Action.objects.count() == 21


def test_a_selection_is_changed_in_batches(client, operator, monkeypatch):
    monkeypatch.setattr("django_ai.automation.queues.admin.BATCH_SIZE", 2)
    runs = [parked() for _ in range(5)]
    act(client, "resume", *runs)
    assert Action.objects.count() == LogEntry.objects.count() == 5


def test_a_failure_undoes_changes_and_entries_alike(client, operator, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    runs = [parked() for _ in range(3)]
    monkeypatch.setattr(LogEntry.objects, "log_actions", broken)
    with pytest.raises(ZeroDivisionError):
        act(client, "resume", *runs)
    assert not Action.objects.exists()
    assert WorkflowRun.objects.filter(status="parked").count() == 3


def test_the_page_of_a_row_links_the_user_who_caused_it(client, operator, ada):
    with acting_as(ada):
        run = engine.start("story:listen")
    page = client.get(reverse("admin:automation_workflows_workflowrun_change", args=[run.pk])).content.decode()
    assert f'<a href="{reverse("admin:auth_user_change", args=[ada.pk])}">user:{ada.pk}</a>' in page


def test_a_deleted_user_stays_in_the_history(client, operator, ada):
    with acting_as(ada, "Mended."):
        (run := parked()).resume()
    pk = ada.pk
    ada.delete()
    assert done_to(run) == [("Resumed", f"user:{pk}", "Mended.")]
    page = client.get(reverse(HISTORY, args=[run.pk])).content.decode()
    assert "ada" in page
    assert "Resumed: Mended." in page


def test_who_may_not_view_a_row_does_not_see_its_history(client, operator):
    run = parked()
    act(client, "resume", run)
    viewer = User.objects.create_user("viewer", is_staff=True)
    client.force_login(viewer)
    assert client.get(reverse(HISTORY, args=[run.pk])).status_code == 403
    viewer.user_permissions.set(Permission.objects.filter(codename="view_workflowrun"))
    assert "Resumed." in client.get(reverse(HISTORY, args=[run.pk])).content.decode()


def test_the_history_of_a_row_that_does_not_exist_leads_back(client, operator):
    assert client.get(reverse(HISTORY, args=[4711])).status_code == 302


def test_the_list_of_actions_shows_who_did_what(client, operator, ada):
    with acting_as(ada, "Mended."):
        (run := parked()).resume()
        engine.pause(everything=True)
    url = reverse("admin:automation_queues_action_changelist")
    page = client.get(url).content.decode()
    for words in ("Mended.", "held #", "everything", reverse(HISTORY, args=[run.pk]).replace("history", "change")):
        assert words in page
    paused = client.get(url, {"done": "Paused"}).content.decode()
    assert "everything" in paused
    assert "held #" not in paused
    assert "held #" in client.get(url, {"q": f"user:{ada.pk}"}).content.decode()
    details = client.get(reverse("admin:automation_queues_action_change", args=[Action.objects.first().pk]))
    assert details.status_code == 200


def test_a_pause_by_name_has_a_history_that_outlives_it(client, operator):
    @workflow("who:paused")
    class Paused:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return complete()

    add = reverse("admin:automation_queues_pause_add")
    for _ in range(2):
        client.post(add, {"target": "workflow:who:paused", "reason": "An audit."})
        pause = Pause.objects.get()
        assert pause.reason == "Paused by root: An audit."
        history = client.get(reverse("admin:automation_queues_pause_history", args=[pause.pk])).content.decode()
        act(client, "end", pause, reason="Audited.")
    assert history.count("Paused: An audit.") == 2
    assert history.count("Unpaused: Audited.") == 1


def test_changes_of_a_schedule_are_in_its_history(client, operator):
    schedule(HOUR, name="hourly")(lambda: None)
    ensure_rows(timezone.now())
    declared = Schedule.objects.get()
    for action in ("pause", "unpause", "fire"):
        act(client, action, declared, reason="A test.")
    assert [(done, reason) for done, _, reason in done_to(declared)] == [
        ("Paused", "A test."),
        ("Unpaused", "A test."),
        ("Fired", "A test."),
    ]
    assert Event.objects.get().caused_by == f"user:{operator.pk}"
    given = {"name": "mine", "target": declared.target, "every": "", "timezone": "", "arguments": "{}"}
    given |= {"catch_up": "1", "catch_up_within": "", "overlap": "allow"}
    client.post(reverse("admin:automation_events_schedule_add"), {**given, "cron": "0 6 * * *"})
    mine = Schedule.objects.get(name="mine")
    change = reverse("admin:automation_events_schedule_change", args=[mine.pk])
    client.post(change, {**given, "cron": "0 7 * * *"})
    client.post(reverse("admin:automation_events_schedule_delete", args=[mine.pk]), {"post": "yes"})
    assert [(done, reason) for done, _, reason in done_to(mine)] == [
        ("Added", ""),
        ("Changed", "Changed Cron expression and Arguments."),
        ("Deleted", ""),
    ]


# -- commands ----------------------------------------------------------------------------------------------------------


def test_commands_act_as_themselves_and_their_user(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "corp\\eve")
    runs = [parked() for _ in range(3)]
    waiting = engine.start("story:listen")
    call_command("automation_resume", "workflow", "--name", "held", "--because", "Mended.", stdout=StringIO())
    call_command("automation_pause", "workflow", "--pk", str(waiting.pk), "--reason", "An audit.", stdout=StringIO())
    call_command("automation_unpause", "workflow", "--pk", str(waiting.pk), "--reason", "Over.", stdout=StringIO())
    assert [done_to(run) for run in runs] == [[("Resumed", "command:automation_resume:corp_eve", "Mended.")]] * 3
    assert done_to(waiting) == [
        ("Paused", "command:automation_pause:corp_eve", "An audit."),
        ("Unpaused", "command:automation_unpause:corp_eve", "Over."),
    ]


def test_a_command_of_a_user_without_a_name_acts_by_number(monkeypatch):
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    run = parked()
    call_command("automation_resume", "workflow", "--name", "held", stdout=StringIO())
    assert done_to(run) == [("Resumed", "command:automation_resume:4711", "")]


def test_resumed_rows_and_their_entries_are_inserted_by_batch(monkeypatch):
    monkeypatch.setattr(resuming, "BATCH_SIZE", 2)
    for _ in range(5):
        parked()
    with CaptureQueriesContext(connection) as queries:
        call_command("automation_resume", "workflow", "--name", "held", stdout=StringIO())
    inserts = [each for each in queries if each["sql"].startswith("INSERT") and "_action" in each["sql"]]
    assert len(inserts) == 3
    assert Action.objects.count() == 5


def test_events_of_a_baseline_are_caused_by_the_command():
    probe = Probe.objects.create(name="old", ready=True)
    Event.objects.all().delete()
    call_command("automation_baseline", stdout=StringIO(), stderr=StringIO())
    causes = set(Event.objects.of(probe).values_list("caused_by", flat=True))
    assert {cause.split(":")[1] for cause in causes} == {"automation_baseline"}


WITHOUT_USERS = """
import django
from django.conf import settings
settings.configure(
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    AUTOMATION={"RUNTIME": "silent"},
    INSTALLED_APPS=["django_ai.automation." + app for app in ("queues", "events", "workflows", "agents")],
)
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django_ai.automation import acting_as, engine
from django_ai.automation.queues.models import Action, Pause
with acting_as("system:nightly", "An audit."):
    engine.pause(everything=True)
call_command("automation_unpause", "everything")
print(*Action.objects.values_list("done", flat=True))
import sys
assert "django.contrib.auth.models" not in sys.modules and "django.contrib.admin" not in sys.modules
"""


@pytest.mark.slow
def test_a_project_without_users_and_admin_has_histories_too():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_USERS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )  # fmt: skip
    assert "Paused Unpaused" in done.stdout, done.stderr


def test_what_a_worker_does_is_in_no_history(ada):
    run = engine.start("story:listen")
    with acting_as(ada):
        drain()
    assert done_to(run) == []


# -- repairs -----------------------------------------------------------------------------------------------------------


class Letter(BaseModel):
    email: str = ""


def test_repairs_of_a_run_say_by_whom_and_why(ada):
    @workflow("who:letter")
    class Send:
        Context = Letter

        @step(start=True)
        def begin(self):
            return wait("who:stamp", then=self.end)

        @step()
        def end(self):
            return complete()

    run = engine.start("who:letter", email="a")
    drain()
    with acting_as(ada, "A typo."):
        engine.edit_context(run, {"email": "b"})
        forked = engine.fork(run)
        engine.skip_wait(run, {"email": "c"}, reason="It came by phone.")
    assert [(done, reason) for done, _, reason in done_to(run)] == [
        ("Edited", "A typo."),
        ("Forked", "A typo."),
        ("Skipped", "It came by phone."),
    ]
    assert list(run.steps.exclude(error="").values_list("error", flat=True)) == [
        "Edited email by ada: A typo.",
        f"Forked as {forked}, at 'begin' by ada: A typo.",
        "Skipped the signal 'who:stamp' by ada: It came by phone.",
    ]
    assert run.inbox.get().caused_by == f"user:{ada.pk}"


def test_an_edited_agent_says_by_whom_and_why(ada):
    @agent("who:agent")
    class Keeper:
        Context = Letter

        @handler("probe_ready")
        def answer(self):
            raise NotImplementedError

    run = AgentManager.spawn("who:agent")
    with acting_as(ada):
        engine.edit_context(run, {"email": "b"}, reason="A typo.")
    assert done_to(run) == [("Edited", f"user:{ada.pk}", "A typo.")]


def test_a_moved_and_fired_event_says_by_whom(ada):
    knock = FreeEvent("who:knock")
    event = emit(knock, at=timezone.now() + HOUR)
    with acting_as(ada, "They are early."):
        assert event.move(event.at - HOUR / 2)
        assert not event.move(event.at)
        assert event.fire_now()
    assert [(done, reason) for done, _, reason in done_to(event)] == [
        ("Moved", "They are early."),
        ("Fired", "They are early."),
    ]


def test_a_redelivered_execution_says_by_whom(ada):
    @agent("who:agent")
    class Keeper:
        Context = Letter

        @handler("who:knock", condition=lambda ctx: bool(ctx.email))
        def answer(self):
            raise NotImplementedError

    knock = FreeEvent("who:knock")
    AgentManager.spawn("who:agent")
    emit(knock)
    drain()
    execution = HandlerExecution.objects.get()
    assert execution.status == "skipped"
    with acting_as(ada):
        AgentManager.redeliver(execution)
    assert done_to(execution) == [("Redelivered", f"user:{ada.pk}", "")]


def test_a_rewound_run_says_by_whom(ada):
    @workflow("who:rewound")
    class Rewound:
        Context = Nothing

        @step(start=True)
        def begin(self):
            return complete()

    run = engine.start("who:rewound")
    drain()
    with acting_as(ada):
        engine.rewind(run, run.steps.get().visit, reason="Once more.")
    assert done_to(run) == [("Rewound", f"user:{ada.pk}", "Once more.")]
    assert "by ada: Once more." in run.steps.last().error
