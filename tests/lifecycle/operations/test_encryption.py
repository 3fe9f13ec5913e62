"""Encrypted Contexts: every write path encrypts, an unreadable row is parked, and keys can be rotated."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    agent,
    complete,
    engine,
    get_wake,
    goto,
    handler,
    run_subflow,
    step,
    wait,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.conf import conf, problems
from django_ai.automation.exceptions import SettingsError
from django_ai.automation.queues.checks import check_settings
from django_ai.automation.queues.models import Action
from django_ai.automation.state.encryption import FERNET, Unreadable
from django_ai.automation.workflows.models import Signal, WorkflowRun, WorkflowStatus
from tests.support.front_desk import book
from tests.support.rows import change, effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

FIRST, SECOND, THIRD = ("first " * 10, "second " * 10, "third " * 10)
SECRET = "0049 171 5551234"


def settings_with(*keys: str, codec: str = FERNET):
    return override_settings(AUTOMATION={"RUNTIME": "silent", "CONTEXT_CODEC": codec, "CONTEXT_KEYS": list(keys)})


@pytest.fixture
def encrypted():
    with settings_with(FIRST):
        yield


class Reversed:
    """A custom codec of a project."""

    def encode(self, text: str) -> str:
        return text[::-1]

    def decode(self, text: str) -> str:
        return text[::-1]


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no connection to the key server")


class Forgetful(Reversed):
    def decode(self, text: str) -> str:
        return ""


def stored(model, column="data") -> list[str]:
    """Return the stored values of a column as strings."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {column} FROM {model._meta.db_table} ORDER BY id")
        return [value if isinstance(value, str) else json.dumps(value) for (value,) in cursor.fetchall()]


def is_sealed(text: str) -> bool:
    return SECRET not in text and json.loads(text).keys() == {"$sealed"}


@pytest.fixture
def flow():
    class Phone(BaseModel):
        phone: str
        heard: str = ""

    @workflow("calling")
    class Calling:
        Context = Phone

        @step(start=True)
        def begin(self):
            return goto(self.middle)

        @step()
        def middle(self):
            leave(self.context.phone)
            return wait("answer", then=self.end)

        @step()
        def end(self):
            leave(f"{self.context.phone} {self.context.heard}")
            return complete()

    @workflow("parent")
    class Parent:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return run_subflow("child", phone=SECRET, then=self.after)

        @step()
        def after(self):
            leave(get_wake().payload["data"]["phone"])
            return complete()

    @workflow("child")
    class Child:
        Context = Phone

        @step(start=True)
        def begin(self):
            return complete()


def test_a_run_is_encrypted_from_its_start_to_its_end(encrypted, flow, work):
    run = engine.start("calling", phone=SECRET)
    assert all(map(is_sealed, stored(WorkflowRun)))
    assert run.data["phone"] == SECRET
    work()
    assert all(map(is_sealed, stored(WorkflowRun)))
    assert WorkflowRun.objects.get().data == {"phone": SECRET, "heard": ""}
    engine.signal("answer", {"heard": SECRET}, run=run)
    assert all(map(is_sealed, stored(Signal, "payload")))
    work()
    assert all(map(is_sealed, stored(WorkflowRun)))
    assert effects() == [SECRET, f"{SECRET} {SECRET}"]


def test_the_result_of_a_child_is_encrypted_in_its_parent(encrypted, flow, work):
    engine.start("parent")
    work()
    assert effects() == [SECRET]
    assert all(map(is_sealed, stored(Signal, "payload")))
    assert not any(SECRET in text for text in stored(WorkflowRun))


def test_an_agent_is_encrypted_and_found_by_its_match(encrypted, work):
    @agent("keeping", match={"note": "{{ ctx.phone }}", "pk__gte": "{{ ctx.least }}"})
    class Keeping:
        class Context(BaseModel):
            phone: str
            least: int = 0
            count: int = 0

        @handler("booking_noted")
        def noted(self, ctx):
            ctx.count += 1
            leave(f"{ctx.phone} {ctx.count}")

    AgentManager.spawn("keeping", phone=SECRET)
    AgentManager.spawn("keeping", phone=SECRET, least=10**6)
    work()
    assert all(map(is_sealed, stored(AgentRun)))
    booking = book(note="")
    for note in (SECRET, "", SECRET):
        change(booking, note=note)
        work()
    assert effects() == [f"{SECRET} 1", f"{SECRET} 2"]
    assert all(map(is_sealed, stored(AgentRun)))


def test_a_key_that_is_gone_parks_that_run_and_no_other(flow, work, client):
    """Other runs and the admin keep working. When the key is restored, the run resumes automatically."""
    with settings_with(FIRST):
        lost = engine.start("calling", phone="lost")
    with settings_with(SECOND):
        found = engine.start("calling", phone="found")
        work()
        lost.refresh_from_db()
        assert effects() == ["found"]
        assert lost.status == WorkflowStatus.PARKED
        assert isinstance(lost.data, Unreadable)
        assert "none of the configured keys decrypts it" in lost.error
        assert "CONTEXT_KEYS" in lost.error
        client.force_login(User.objects.create_superuser("root", password="x"))
        assert client.get(reverse("admin:automation_workflows_workflowrun_changelist")).status_code == 200
        page = client.get(reverse("admin:automation_workflows_workflowrun_change", args=[lost.pk]))
        assert page.status_code == 200
        assert FIRST not in page.content.decode()
        before = stored(WorkflowRun)
        lost.save()  # an unreadable value is saved unchanged
        assert stored(WorkflowRun) == before
    assert not Action.objects.exists()
    with settings_with(SECOND, FIRST):
        work(timezone.now() + timedelta(hours=2))  # the parked run is checked again periodically
        assert effects() == ["found", "lost"]
        engine.signal("answer")
        work()
        assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
        assert found.pk


def test_an_agent_whose_key_is_gone_is_parked_and_keeps_its_mail(work):
    @agent("keeping", spawn_on="booking_created", match={"id__gte": "{{ ctx.least }}"})
    class Keeping:
        class Context(BaseModel):
            least: int = 0
            phone: str = SECRET

        @handler("booking_noted")
        def noted(self):
            leave("noted")

    with settings_with(FIRST):
        booking = book(note="")
        work()
    with settings_with(SECOND):
        change(booking, note="x")
        work()
        run = AgentRun.objects.get()
        assert run.status == "parked"
        assert "none of the configured keys decrypts it" in run.error
    with settings_with(SECOND, FIRST):
        AgentManager.resume(run.pk)
        work()
    assert effects() == ["noted"]


def test_a_payload_whose_key_is_gone_parks_who_would_get_it(flow, work):
    with settings_with(FIRST):
        run = engine.start("calling", phone=SECRET)
        work()
    with settings_with(SECOND):
        engine.signal("answer", {"heard": "x"}, run=run)
    with settings_with(FIRST):
        work()
        run.refresh_from_db()
        assert run.status == WorkflowStatus.PARKED
        assert "The payload of signal 'answer'" in run.error
    with settings_with(FIRST, SECOND):
        engine.resume(run)
        work()
    assert effects() == [SECRET, f"{SECRET} x"]


@pytest.mark.parametrize("change_of", ["the envelope", "a token", "another's Context"])
def test_what_somebody_has_changed_is_parked(encrypted, flow, work, change_of):
    run = engine.start("calling", phone=SECRET)
    (text,) = stored(WorkflowRun)
    token = json.loads(text)["$sealed"]
    forged = {"the envelope": 5, "a token": token[:-5] + "AAAA=", "another's Context": "gAAAAA"}[change_of]
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {WorkflowRun._meta.db_table} SET data = %s", [json.dumps({"$sealed": forged})])
    work()
    run.refresh_from_db()
    assert (run.status, effects()) == (WorkflowStatus.PARKED, [])


def test_turning_it_on_and_off_with_rows_there(flow, work):
    with override_settings(AUTOMATION={"RUNTIME": "silent"}):
        engine.start("calling", phone=SECRET)
        work()
        assert SECRET in stored(WorkflowRun)[0]
    with override_settings(AUTOMATION={"RUNTIME": "silent", "CONTEXT_CODEC": FERNET}):
        assert WorkflowRun.objects.get().data["phone"] == SECRET
        engine.signal("answer")
        work()
        assert all(map(is_sealed, stored(WorkflowRun)))
    with override_settings(AUTOMATION={"RUNTIME": "silent"}):
        assert WorkflowRun.objects.get().data["phone"] == SECRET
        run = engine.start("calling", phone=SECRET)
        work()
        assert SECRET in stored(WorkflowRun)[1]
        run.refresh_from_db()
        assert run.status == WorkflowStatus.SUSPENDED


def test_without_keys_of_its_own_it_is_the_secret_key_with_its_fallbacks(flow):
    codec = {"RUNTIME": "silent", "CONTEXT_CODEC": FERNET}
    with override_settings(AUTOMATION=codec, SECRET_KEY=FIRST):
        engine.start("calling", phone=SECRET)
    with override_settings(AUTOMATION=codec, SECRET_KEY=SECOND, SECRET_KEY_FALLBACKS=[FIRST]):
        assert WorkflowRun.objects.get().data["phone"] == SECRET
    with override_settings(AUTOMATION=codec, SECRET_KEY=SECOND):
        assert isinstance(WorkflowRun.objects.get().data, Unreadable)
    with settings_with(THIRD, FIRST):
        assert WorkflowRun.objects.get().data["phone"] == SECRET


def test_rotation_and_the_command_that_writes_all_rows_again(flow, work):
    with settings_with(FIRST):
        for _ in range(5):
            engine.start("calling", phone=SECRET)
        engine.signal("nobody", {"phone": SECRET})
        work()
    output = StringIO()
    with settings_with(SECOND, FIRST):
        call_command("automation_reencrypt", batch=2, because="The key was rotated.", stdout=output)
    assert "WorkflowRun.data: 5 written, 0 unreadable" in output.getvalue()
    assert "Signal.payload: 1 written, 0 unreadable" in output.getvalue()
    found = Action.objects.filter(done="Encrypted", reason="The key was rotated.", key="data")
    assert found.get().what == "automation_workflows.WorkflowRun.data, 5 rows"
    with settings_with(SECOND):  # the old key is no longer needed
        assert {run.data["phone"] for run in WorkflowRun.objects.all()} == {SECRET}
        call_command("automation_reencrypt", stdout=output)
    with settings_with(SECOND, codec=""):
        call_command("automation_reencrypt", stdout=output)
    assert all(SECRET in text for text in stored(WorkflowRun))


def test_the_command_leaves_what_it_cannot_read_and_says_so(flow):
    with settings_with(FIRST):
        engine.start("calling", phone=SECRET)
    before = stored(WorkflowRun)
    with settings_with(SECOND), pytest.raises(CommandError, match=r"1 row\(s\) could not be read"):
        call_command("automation_reencrypt", stdout=StringIO())
    assert stored(WorkflowRun) == before
    with pytest.raises(CommandError, match="--batch=0"):
        call_command("automation_reencrypt", batch=0)


def test_the_command_never_writes_over_what_a_worker_commits_meanwhile(encrypted, flow, monkeypatch):
    """A Context that a worker commits between the command's read and its write is kept."""
    from django_ai.automation.state import encryption

    run = engine.start("calling", phone=SECRET)
    genuine, raced = encryption.decrypt, []

    def race(value):
        found = genuine(value)
        if not raced and isinstance(found, dict):
            raced.append(True)
            WorkflowRun.objects.filter(pk=run.pk).update(data={"phone": "newer"}, seq=run.seq + 1)
        return found

    monkeypatch.setattr(encryption, "decrypt", race)
    call_command("automation_reencrypt", stdout=StringIO())
    assert raced
    assert WorkflowRun.objects.get().data == {"phone": "newer"}


def test_a_codec_of_ones_own(flow, work):
    with settings_with(codec=f"{__name__}.Reversed"):
        engine.start("calling", phone=SECRET)
        work()
        assert all(map(is_sealed, stored(WorkflowRun)))
        assert effects() == [SECRET]
        assert check_settings(None) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"CONTEXT_CODEC": "nowhere.Codec"}, "cannot be created"),
        ({"CONTEXT_CODEC": f"{__name__}.Broken"}, "no connection to the key server"),
        ({"CONTEXT_CODEC": f"{__name__}.Forgetful"}, "cannot decode what it has encoded"),
        ({"CONTEXT_CODEC": FERNET, "CONTEXT_KEYS": [FIRST, "short"]}, "key number 2 has fewer than 32"),
    ],
)
def test_a_codec_that_does_not_work_is_a_check(settings, words):
    with override_settings(AUTOMATION=settings):
        (problem,) = check_settings(None)
        assert problem.id == "automation.E008"
        assert words in problem.msg


def test_keys_are_texts_and_never_printed():
    (problem,) = problems({"CONTEXT_KEYS": FIRST})
    assert problem == "AUTOMATION['CONTEXT_KEYS'] must be a list of strings."
    (problem,) = problems({"CONTEXT_KEYS": [FIRST, 5]})
    assert FIRST not in problem
    assert problems({"CONTEXT_KEYS": (FIRST,)}) == problems({"CONTEXT_KEYS": []}) == []
    with settings_with(FIRST):
        assert FIRST not in repr(conf())
    with settings_with("too short"), pytest.raises(SettingsError) as raised:
        engine.start("story:count", steps=1)
    assert "too short" not in str(raised.value)
