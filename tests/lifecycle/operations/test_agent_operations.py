"""``RenameAgent``, ``RenameHandler`` and ``MigrateAgentContext`` in migrations: names, keys, conflicts, workers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.db import connection, migrations
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import AgentManager, Concurrency, FreeEvent, acting_as, agent, emit, engine, handler
from django_ai.automation.agents.definitions import all_agents, find_agent, unregister
from django_ai.automation.agents.mailbox import execution_of, put_in_mailbox
from django_ai.automation.agents.models import AgentRoute, AgentRun, HandlerExecution
from django_ai.automation.agents.operations import MigrateAgentContext, RenameAgent, RenameHandler
from django_ai.automation.agents.reconcile import reconcile_agents
from django_ai.automation.agents.spawning import new_run, origin_key_of
from django_ai.automation.exceptions import ContextError, DecryptionError, DefinitionError, SingletonTakenError
from django_ai.automation.queues import context_migration
from django_ai.automation.queues.models import HeldRow, Limiter, Pause
from django_ai.automation.queues.problems import is_muted, key_of_row, mute
from tests.support.rows import effects, leave
from tests.support.stored_names import HOLDS, places

pytestmark = pytest.mark.django_db(transaction=True)

OLD, NEW = "a_former_agent", "its_new_name"
HOUR = timedelta(hours=1)


def run(*operations, backwards: bool = False, atomic: bool = True) -> None:
    migration = migrations.Migration("0002_more", "reservations")
    migration.operations = list(operations)
    with connection.schema_editor(atomic=atomic) as editor:
        (migration.unapply if backwards else migration.apply)(ProjectState.from_apps(apps), editor)


def caring(name: str, method: str = "greet", limits: bool = False, **options) -> None:
    """Declare an agent that receives the events of its guest, as a release does that has no agent of another name."""
    for each in all_agents():
        if each.name in (OLD, NEW):
            unregister(each)

    def react(self, ctx, event):
        if ctx.guest < 0:
            raise ValueError("no such guest")
        ctx.seen += 1
        leave(f"{name}.{method} {ctx.guest} {ctx.seen}")

    react.__name__ = method
    options = {"match": {"guest": "{{ ctx.guest }}"}, "singleton": True, **options}
    declared = handler("rang", concurrency=Concurrency(1, key="{{ ctx.guest }}") if limits else None)(react)

    class Caring:
        class Context(BaseModel):
            guest: int
            seen: int = 0

    setattr(Caring, method, declared)
    agent(name, **options)(Caring)


@pytest.fixture
def rang():
    class Ring(BaseModel):
        guest: int

    FreeEvent("rang", payload=Ring)


def ring(guest: int) -> None:
    emit("rang", {"guest": guest})


# -- RenameAgent -------------------------------------------------------------------------------------------------------


def test_a_renamed_agent_goes_on_under_its_new_name(rang, work):
    caring(OLD)
    first, second = AgentManager.spawn(OLD, guest=1), AgentManager.spawn(OLD, guest=2)
    ring(1)
    work()
    AgentManager.complete(second)
    ring(1)
    caring(NEW)
    run(RenameAgent(OLD, NEW))
    work()
    ring(1)
    work()
    assert effects() == [f"{OLD}.greet 1 1", f"{NEW}.greet 1 2", f"{NEW}.greet 1 3"]
    assert set(AgentRun.objects.values_list("name", "status")) == {(NEW, "active"), (NEW, "completed")}
    assert AgentManager.spawn(NEW, guest=1).pk == first.pk
    assert AgentManager.spawn(NEW, guest=2).pk not in (first.pk, second.pk)


def test_every_column_with_the_name_is_renamed_and_no_other_has_it(rang, work):
    caring(OLD, limits=True)
    with acting_as("ops"):
        broken, held = AgentManager.spawn(OLD, guest=-1), AgentManager.spawn(OLD, guest=1)
        ring(-1)
        work()
        engine.pause(held)
        AgentManager.cancel(AgentManager.spawn(OLD, guest=3), reason="gone")
        engine.pause(agent=OLD)
        ring(1)
        work()
        AgentRun.objects.filter(pk=broken.pk).update(status="parked", error="KeyError: x", parked_at=timezone.now())
        broken.refresh_from_db()
        mute(broken, reason="known")
    found = places(OLD)
    assert found <= HOLDS["agent"]
    assert {"automation_queues.Limiter.name", "automation_queues.Pause.target"} <= found
    caring(NEW, limits=True)
    run(RenameAgent(OLD, NEW))
    assert places(OLD) <= {"automation_queues.Maintenance.position"}
    assert places(NEW) >= found
    assert set(Limiter.objects.values_list("name", flat=True)) == {f"{NEW}.greet on rang"}
    assert Pause.objects.filter(target=f"agent:{NEW}").exists()
    assert not HeldRow.objects.filter(target__contains=OLD).exists()
    broken.refresh_from_db()
    assert is_muted(key_of_row(broken), timezone.now())
    run(RenameAgent(OLD, NEW), backwards=True)
    assert places(NEW) == set()
    assert places(OLD) == found


def test_what_waits_for_a_slot_gets_the_slot_of_the_renamed_limit(rang, work):
    caring(OLD, limits=True)
    living = AgentManager.spawn(OLD, guest=1)
    ring(1)
    work()
    caring(NEW, limits=True)
    run(RenameAgent(OLD, NEW))
    ring(1)
    work()
    assert effects() == [f"{OLD}.greet 1 1", f"{NEW}.greet 1 2"]
    assert Limiter.objects.count() == 1
    assert living.executions.filter(status="completed").count() == 2


def test_processes_of_the_release_before_still_find_the_agent(rang, work):
    caring(OLD)
    living = AgentManager.spawn(OLD, guest=1)
    work()
    caring(NEW)
    run(RenameAgent(OLD, NEW))
    caring(OLD)  # as an old process, which delivers
    ring(1)
    assert AgentManager.spawn(OLD, guest=1).pk == living.pk
    caring(NEW)
    AgentRun.objects.filter(pk=living.pk).update(wake_at=timezone.now())
    work()
    assert effects() == [f"{NEW}.greet 1 1"]
    assert AgentRoute.objects.filter(run=living).count() == 4
    AgentManager.complete(living)
    assert AgentRoute.objects.count() == 0


def test_an_agent_that_handles_an_event_loses_its_lease(rang, work):
    caring(OLD)
    living = AgentManager.spawn(OLD, guest=1)
    work()
    AgentRun.objects.filter(pk=living.pk).update(lease="host:1:x", wake_at=timezone.now() + HOUR, seq=7)
    caring(NEW)
    run(RenameAgent(OLD, NEW))
    living.refresh_from_db()
    assert (living.name, living.lease, living.seq) == (NEW, None, 8)
    assert living.wake_at <= timezone.now()


def test_no_event_spawns_a_second_agent(work):
    class Ring(BaseModel):
        guest: int

    arrived = FreeEvent("arrived", payload=Ring)

    def spawned(name):
        caring(name, spawn_on=["arrived"])
        definition = next(each for each in all_agents() if each.name == name)
        definition.cls.create_context = staticmethod(lambda event: definition.context(guest=event.payload["guest"]))
        return definition

    FreeEvent("rang", payload=Ring)
    spawned(OLD)
    event = emit(arrived, {"guest": 5})
    old = AgentRun.objects.get()
    definition = spawned(NEW)
    same = new_run(event, definition, timezone.now(), 0)
    run(RenameAgent(OLD, NEW))
    old.refresh_from_db()
    assert old.origin_key == same.origin_key
    AgentRun.objects.filter(pk=old.pk).update(name=OLD)
    AgentRun.objects.filter(pk=old.pk).update(origin_key=origin_key_of(event.pk, OLD))
    same.save()  # the new code has run before the migration
    run(RenameAgent(OLD, NEW, merge=True))
    old.refresh_from_db()
    assert (old.status, old.origin_key, old.name) == ("cancelled", None, NEW)
    AgentRun.objects.filter(pk=old.pk).update(
        name=OLD, origin_key=origin_key_of(event.pk, OLD), status="completed", started_at=timezone.now()
    )
    with pytest.raises(DefinitionError, match=rf"agent #{old.pk} of '{OLD}' and agent #{same.pk} of '{NEW}'"):
        run(RenameAgent(OLD, NEW, merge=True))


def test_an_agent_whose_keys_cannot_be_made_stops_it_before_anything_is_changed(rang, work):
    caring(OLD)
    first, second = AgentManager.spawn(OLD, guest=1), AgentManager.spawn(OLD, guest=2)
    work()
    AgentRun.objects.filter(pk=second.pk).update(data={"guest": "many"})
    caring(NEW)
    with pytest.raises(ContextError, match=rf"(?s){OLD} #{second.pk} cannot be made.*AgentManager.cancel.*guest"):
        run(RenameAgent(OLD, NEW), atomic=False)
    first.refresh_from_db()
    assert first.name == OLD
    AgentManager.cancel(second)
    run(RenameAgent(OLD, NEW), atomic=False)
    assert set(AgentRun.objects.values_list("name", flat=True)) == {NEW}


def test_wrong_names_are_refused(rang, work):
    caring(OLD)
    with pytest.raises(DefinitionError, match="are the same"):
        RenameAgent(OLD, OLD)
    AgentManager.spawn(OLD, guest=1)
    with pytest.raises(DefinitionError, match=f"the code still declares the agent '{OLD}'"):
        run(RenameAgent(OLD, NEW))
    caring(NEW)
    with pytest.raises(DefinitionError, match=rf"no agent is called 'its_new_nam'\. Did you mean '{NEW}'"):
        run(RenameAgent(OLD, "its_new_nam"))
    with pytest.raises(DefinitionError, match=rf"no run of 'a_former_agen'\. Did you mean '{OLD}'"):
        run(RenameAgent("a_former_agen", NEW))
    AgentManager.spawn(NEW, guest=2)
    with pytest.raises(DefinitionError, match="add merge=True"):
        run(RenameAgent(OLD, NEW))
    run(RenameAgent(OLD, NEW, merge=True))
    assert RenameAgent(OLD, NEW).describe() == f"Rename the agent '{OLD}' to '{NEW}'"


def test_the_operations_can_be_written_into_a_migration():
    operations = [
        RenameAgent(OLD, NEW, merge=True),
        RenameHandler(NEW, "greet", "welcome"),
        MigrateAgentContext(NEW, to_name, version=1),
    ]
    text = MigrationWriter(type("Migration", (migrations.Migration,), {"operations": operations})("x", "y")).as_string()
    assert "django_ai.automation.agents.operations.RenameAgent(" in text
    assert [each.migration_name_fragment for each in operations] == [
        "rename_agent",
        "rename_handler",
        "migrate_context",
    ]


# -- RenameHandler -----------------------------------------------------------------------------------------------------


def test_executions_go_on_with_the_renamed_handler(rang, work):
    caring(OLD, limits=True)
    living = AgentManager.spawn(OLD, guest=1)
    ring(1)
    work()
    ring(1)
    caring(OLD, "welcome", limits=True)
    run(RenameHandler(OLD, "greet", "welcome"))
    work()
    assert effects() == [f"{OLD}.greet 1 1", f"{OLD}.welcome 1 2"]
    assert set(living.executions.values_list("handler", "status")) == {("welcome", "completed")}
    assert set(Limiter.objects.values_list("name", flat=True)) == {f"{OLD}.welcome on rang"}
    caring(OLD, limits=True)
    run(RenameHandler(OLD, "greet", "welcome"), backwards=True)
    assert set(living.executions.values_list("handler", flat=True)) == {"greet"}


def test_an_event_that_both_releases_have_delivered_is_handled_once(rang, work):
    caring(OLD)
    living = AgentManager.spawn(OLD, guest=1)
    work()
    ring(1)
    before = HandlerExecution.objects.get()
    caring(OLD, "welcome")
    again = execution_of(living.pk, before.event, find_agent(OLD).handlers[0], timezone.now())
    put_in_mailbox([again])
    run(RenameHandler(OLD, "greet", "welcome"))
    AgentRun.objects.filter(pk=living.pk).update(wake_at=timezone.now())
    work()
    assert effects() == [f"{OLD}.welcome 1 1"]
    assert not HandlerExecution.objects.filter(pk=before.pk).exists()


def test_wrong_handlers_are_refused(rang):
    caring(OLD)
    AgentManager.spawn(OLD, guest=1)
    with pytest.raises(DefinitionError, match="the agent still has the handler 'greet'"):
        run(RenameHandler(OLD, "greet", "welcome"))
    with pytest.raises(DefinitionError, match=r"the agent has no handler 'gret'\. Did you mean 'greet'"):
        run(RenameHandler(OLD, "hello", "gret"))
    run(RenameHandler("nobody", "hello", "greet"))  # no such rows


# -- MigrateAgentContext -----------------------------------------------------------------------------------------------


def named(version: int = 2) -> None:
    """Declare the next version: its guests have names, and are matched by them."""
    for each in all_agents():
        if each.name == OLD:
            unregister(each)

    @agent(OLD, match={"name": "{{ ctx.name }}"}, singleton=True, version=version)
    class Named:
        class Context(BaseModel):
            name: str
            seen: int = 0

        @handler("called")
        def greet(self, ctx):
            leave(f"{ctx.name} {ctx.seen}")


@pytest.fixture
def called(rang):
    class Call(BaseModel):
        name: str

    FreeEvent("called", payload=Call)


def to_name(data):
    return {"name": f"guest {data['guest']}", "seen": data["seen"]}


def to_guest(data):
    return {"guest": int(data["name"].removeprefix("guest ")), "seen": data["seen"]}


MIGRATION = MigrateAgentContext(OLD, to_name, to_guest, version=1)


def test_the_contexts_and_the_keys_of_living_agents_follow(called, work):
    caring(OLD)
    living, ended = AgentManager.spawn(OLD, guest=1), AgentManager.spawn(OLD, guest=2)
    AgentManager.complete(ended)
    ring(1)
    work()
    named()
    run(MIGRATION)
    data = dict(AgentRun.objects.values_list("pk", "data"))
    assert data[living.pk] == {"name": "guest 1", "seen": 1}
    assert data[ended.pk] == {"guest": 2, "seen": 0}
    emit("called", {"name": "guest 1"})
    work()
    assert effects() == [f"{OLD}.greet 1 1", "guest 1 1"]
    assert AgentManager.spawn(OLD, name="guest 1").pk == living.pk


def test_on_the_way_back_the_reconciliation_finds_the_keys(called, work):
    caring(OLD)
    living = AgentManager.spawn(OLD, guest=1)
    work()
    named()
    run(MIGRATION)
    run(MIGRATION, backwards=True)
    living.refresh_from_db()
    assert (living.data, living.version) == ({"guest": 1, "seen": 0}, "1")
    caring(OLD)
    reconcile_agents(timezone.now())
    ring(1)
    work()
    assert effects() == [f"{OLD}.greet 1 1"]
    with pytest.raises(IrreversibleError):
        run(MigrateAgentContext(OLD, to_name), backwards=True)


def test_an_agent_that_does_not_fit_stops_it_before_anything_is_written(called, work):
    caring(OLD)
    first, second = AgentManager.spawn(OLD, guest=1), AgentManager.spawn(OLD, guest=2)
    work()
    AgentRun.objects.filter(pk=second.pk).update(data={"number": 2})
    named()
    with pytest.raises(ContextError, match=rf"{OLD} #{second.pk}: to_name raised(?s:.*)KeyError: 'guest'"):
        run(MIGRATION, atomic=False)
    first.refresh_from_db()
    assert (first.data, first.version) == ({"guest": 1, "seen": 0}, "1")


def test_two_agents_that_would_be_one_singleton_are_refused(called, work):
    caring(OLD)
    AgentManager.spawn(OLD, guest=1)
    second = AgentManager.spawn(OLD, guest=2)
    work()
    named()
    with pytest.raises(SingletonTakenError, match=rf"(?s)match of {OLD} #{second.pk}.*AgentManager.complete"):
        run(MigrateAgentContext(OLD, lambda data: {"name": "anybody"}))


def test_contexts_of_agents_are_encrypted_again(called, work, settings):
    settings.AUTOMATION = {"CONTEXT_CODEC": "django_ai.automation.state.fernet.FernetCodec"}
    caring(OLD)
    living = AgentManager.spawn(OLD, guest=1)
    work()
    named()
    run(MIGRATION)
    with connection.cursor() as cursor:
        cursor.execute("SELECT data FROM automation_agents_agentrun")
        (stored,) = cursor.fetchone()
    assert "$sealed" in str(stored)
    living.refresh_from_db()
    assert living.data == {"name": "guest 1", "seen": 0}
    settings.SECRET_KEY = "another key, and long enough to please the checks of Django: 0123456789"
    with pytest.raises(DecryptionError, match=rf"{OLD} #{living.pk}"):
        run(MigrateAgentContext(OLD, to_guest))
    unregister(next(each for each in all_agents() if each.name == OLD))
    caring(NEW)
    with pytest.raises(DecryptionError, match="migrate again"):
        run(RenameAgent(OLD, NEW))


def test_an_interrupted_migration_of_agents_transforms_no_context_twice(called, work, monkeypatch):
    caring(OLD)
    for guest in range(5):
        AgentManager.spawn(OLD, guest=guest)
    work()
    named(version=1)  # so that the version does not tell
    monkeypatch.setattr(context_migration, "BITE", 2)
    last = list(AgentRun.objects.order_by("pk").values_list("pk", flat=True))[-1]
    calls: list[object] = []

    def once(data):
        calls.append(data)
        if is_interrupted and len(calls) > 5 and data["guest"] == 4:
            raise KeyboardInterrupt
        return to_name(data)

    is_interrupted = True
    with pytest.raises(KeyboardInterrupt):
        run(MigrateAgentContext(OLD, once), atomic=False)
    assert sum("name" in data for data in AgentRun.objects.values_list("data", flat=True)) == 4
    is_interrupted = False
    run(MigrateAgentContext(OLD, once), atomic=False)
    assert AgentRun.objects.get(pk=last).data == {"name": "guest 4", "seen": 0}
    assert all("name" in data for data in AgentRun.objects.values_list("data", flat=True))


def test_wrong_arguments_of_a_migration_are_refused(called):
    with pytest.raises(DefinitionError, match="MigrateAgentContext"):
        MigrateAgentContext(OLD, "name")
    caring(OLD)
    AgentManager.spawn(OLD, guest=1)
    AgentRun.objects.update(name="a_former_agents")
    with pytest.raises(DefinitionError, match=rf"no agent is called 'a_former_agents'\. Did you mean '{OLD}'"):
        run(MigrateAgentContext("a_former_agents", to_name))
    assert MIGRATION.describe() == f"Transform the Contexts of the agent '{OLD}' of version 1"
