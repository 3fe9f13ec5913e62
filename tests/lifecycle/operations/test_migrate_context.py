"""``migrate_context`` is committed once, together with the routes. If it fails, the run or agent is parked."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, Retry, agent, complete, engine, handler, sleep, step, workflow
from django_ai.automation.agents.models import AgentRoute, AgentRun
from django_ai.automation.exceptions import NotResumableError, UnknownStepError
from django_ai.automation.queues.runtimes.tasks import poll_due
from django_ai.automation.workflows import definitions
from tests.apps.front_desk.models import Person
from tests.support.front_desk import the_agent, write
from tests.support.rows import effects, history, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


class Old(BaseModel):
    text: str = ""


class New(BaseModel):
    words: list[str]


def deploy(version, context, *, migrate=None, end=None, retry=None):
    def finish(self):
        leave(self.context)
        return complete()

    def begin(self):
        return sleep(HOUR, then="end")

    body = {"begin": step(start=True)(begin), "end": step(retry=retry)(end or finish), "Context": context}
    if migrate is not None:
        body["migrate_context"] = staticmethod(migrate)
    cls = type("Flow", (), {"__module__": __name__, "__qualname__": f"Flow{version}", **body})
    for known in definitions.all_workflows():
        if known.name == "flow":
            definitions.unregister(known)
    return workflow("flow", version=version)(cls)


def words(data, from_version):
    return {"words": data["text"].split()}


# -- workflows ---------------------------------------------------------------------------------------------------------


def test_the_new_context_is_there_before_the_step_and_kept_when_that_fails(clock, work):
    deploy(1, Old)
    engine.start("flow", text="a b")
    work()
    calls = []

    def counted(data, from_version):
        calls.append(from_version)
        return words(data, from_version)

    def end(self):
        self.context.words.append("c")
        if len(self.context.words) < 5:
            raise RuntimeError("again")
        return complete()

    deploy(2, New, migrate=counted, end=end, retry=Retry(max_attempts=5, base_delay=HOUR, max_delay=HOUR))
    for _ in range(4):
        clock.tick(HOUR)
        work()
    run = the_run()
    assert (run.status, run.version, run.data) == ("completed", "2", {"words": ["a", "b", "c", "c", "c"]})
    assert calls == ["1"]
    assert [each[0] for each in history(run)] == ["begin", "end", "end", "end"]


def test_what_no_longer_fits_is_migrated_with_its_own_version(clock, work):
    deploy(1, Old)
    engine.start("flow", text="a")
    work()
    deploy(1, New, migrate=words)
    clock.tick(HOUR)
    work()
    assert (the_run().status, the_run().version, the_run().data) == ("completed", "1", {"words": ["a"]})


@pytest.mark.parametrize("wrong", [lambda data, version: 1 / 0, lambda data, version: None, lambda data, version: {}])
def test_a_hook_that_goes_wrong_parks_with_the_reason_and_touches_nothing(clock, work, wrong):
    deploy(1, Old)
    engine.start("flow", text="a")
    work()
    deploy(2, New, migrate=wrong)
    clock.tick(HOUR)
    work()
    run = the_run()
    assert (run.status, run.version, run.data, run.attempt) == ("parked", "1", {"text": "a"}, 0)
    assert "ContextError" in run.error
    assert "migrate_context(data, '1')" in run.error
    deploy(2, New, migrate=words)
    clock.tick(HOUR)
    work()
    assert (the_run().status, the_run().data) == ("completed", {"words": ["a"]})


def test_a_worker_that_dies_after_the_hook_has_changed_nothing(clock, work, monkeypatch):
    deploy(1, Old)
    engine.start("flow", text="a")
    work()
    calls = []

    def dies_once(data, from_version):
        calls.append(from_version)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return words(data, from_version)

    deploy(2, New, migrate=dies_once)
    clock.tick(HOUR)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert (the_run().version, the_run().data) == ("1", {"text": "a"})
    clock.tick(HOUR)
    work()
    assert (the_run().status, calls) == ("completed", ["1", "1"])


def test_resume_at_another_step(clock, work):
    def end(self):
        raise RuntimeError("broken")

    def other(self):
        leave("other")
        return complete()

    flow = deploy(1, Old, end=end, retry=Retry(max_attempts=1))
    flow.other = other
    body = {"Context": Old, "begin": flow.begin, "end": flow.end, "other": step()(other)}
    workflow("flow")(type("Flow", (), {"__module__": __name__, "__qualname__": "Flow1", **body}))
    run = engine.start("flow")
    work()
    with pytest.raises(NotResumableError):
        engine.resume(run, step="other")
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    assert run.status == "failed"
    key = run.idempotency_key
    with pytest.raises(UnknownStepError, match="Did you mean 'other'"):
        engine.resume(run, step="othr")
    engine.resume(run, "other")
    assert (run.status, run.current_step, run.wake_reason, run.error) == ("running", "other", "first", "")
    assert run.idempotency_key != key
    work()
    run.refresh_from_db()
    assert (run.status, effects()) == ("completed", ["other"])


# -- agents ------------------------------------------------------------------------------------------------------------


class OneGuest(BaseModel):
    guest_id: int


class Guests(BaseModel):
    guests: list[int]
    seen: int = 0


def guests(data, from_version):
    return {"guests": [data["guest_id"]]}


def companion(version, context, match, *, migrate=None, singleton=False):
    def heard(self, ctx, event):
        leave(f"{version} {event.entity.text}")
        if hasattr(ctx, "seen"):
            ctx.seen += 1

    body = {"Context": context, "heard": handler("message_received")(heard)}
    if migrate is not None:
        body["migrate_context"] = staticmethod(migrate)
    cls = type("Companion", (), {"__module__": __name__, "__qualname__": "Companion", **body})
    return agent("companion", match=match, version=version, singleton=singleton)(cls)


BY_ONE, BY_MANY = {"sender_id": "{{ ctx.guest_id }}"}, {"sender_id__in": "{{ ctx.guests }}"}


def test_an_agent_follows_the_code(work):
    companion(1, OneGuest, BY_ONE)
    guest, other = Person.objects.create(), Person.objects.create()
    run = AgentManager.spawn("companion", guest_id=guest.pk)
    work()
    write(guest, "to the old")
    work()
    companion(2, Guests, BY_MANY, migrate=guests)
    poll_due()  # as at the start of the new code: writes its routes
    write(guest, "to the new")
    write(other, "to nobody")
    work()
    run.refresh_from_db()
    assert (run.version, run.data) == ("2", {"guests": [guest.pk], "seen": 1})
    assert effects() == ["1 to the old", "2 to the new"]
    write(guest, "again")
    work()
    assert the_agent().data["seen"] == 2
    assert AgentRoute.objects.filter(run=run).count() == 1  # the routes of the old code are deleted


def test_an_agent_of_a_newer_release_is_left_alone(clock, work):
    companion(1, OneGuest, BY_ONE, migrate=lambda data, version: pytest.fail("older code must not migrate newer data"))
    guest = Person.objects.create()
    run = AgentManager.spawn("companion", guest_id=guest.pk)
    work()
    AgentRun.objects.update(version="2", data={"guests": [guest.pk]})
    write(guest, "hello")
    work()
    run.refresh_from_db()
    assert (run.status, run.version, run.data) == ("parked", "2", {"guests": [guest.pk]})
    assert "newer release" in run.error
    companion(2, Guests, BY_MANY)
    clock.tick(HOUR)
    work()
    assert effects() == ["2 hello"]


def test_a_hook_that_goes_wrong_parks_the_agent(clock, work):
    companion(1, OneGuest, BY_ONE)
    guest = Person.objects.create()
    AgentManager.spawn("companion", guest_id=guest.pk)
    work()
    companion(2, Guests, BY_MANY, migrate=lambda data, version: data["gone"])
    AgentRun.objects.update(wake_at=clock())
    work()
    assert (the_agent().status, the_agent().version) == ("parked", "1")
    assert "KeyError: 'gone'" in the_agent().error
    companion(2, Guests, BY_MANY, migrate=guests)
    clock.tick(HOUR)
    work()
    assert (the_agent().status, the_agent().version, the_agent().error) == ("active", "2", "")


def test_two_agents_that_become_one_singleton(clock, work):
    """If a migration gives two singletons the same match, the second is parked until the first has ended."""
    companion(1, OneGuest, BY_ONE, singleton=True)
    one, two = Person.objects.create(), Person.objects.create()
    first = AgentManager.spawn("companion", guest_id=one.pk)
    second = AgentManager.spawn("companion", guest_id=two.pk)
    work()
    companion(2, OneGuest, BY_ONE, singleton=True, migrate=lambda data, version: {"guest_id": one.pk})
    for run in (first, second):
        AgentRun.objects.filter(pk=run.pk).update(wake_at=clock())
        work()
        run.refresh_from_db()
    assert (first.status, first.version) == ("active", "2")
    assert (second.status, second.version, second.data) == ("parked", "1", {"guest_id": two.pk})
    assert "SingletonTakenError" in second.error
    AgentManager.complete(first)
    clock.tick(HOUR)
    work()
    second.refresh_from_db()
    assert (second.status, second.version, second.data) == ("active", "2", {"guest_id": one.pk})
