"""Scenario 23: a worker forks during its work, and automations live in a database that is not the default.

A forked child neither uses nor breaks its parent's sessions, leases, heartbeat and leased rows. With a router,
everything works in a database of the automations. A system check reports an entity with events in another database, and
saving such an entity raises an error.
"""

from __future__ import annotations

import pytest
from django.db import connection

from django_ai.automation import engine
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect, Reservation
from tests.support.child_processes import run_script

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

FORKING = """
import os, threading, time
import multiprocessing
from django.db import connection, connections, transaction
from pydantic import BaseModel
from django_ai.automation import complete, engine, step, workflow
from django_ai.automation.exceptions import ForkedConnectionError
from django_ai.automation.queues import drain as drains, heartbeat, held_leases
from django_ai.automation.queues.notifier import _hooks
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect

fork = multiprocessing.get_context("fork")

def session():
    if connection.vendor == "sqlite":
        return id(connection.connection)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()" if connection.vendor == "postgresql" else "SELECT connection_id()")
        return cursor.fetchone()[0]

def child(parents, queue):
    try:
        found = [
            ("leases", held_leases.current_leases() is None and not heartbeat._held),
            ("thread", heartbeat._thread is None and threading.active_count() == 1),
            ("guard", heartbeat._guard.acquire(timeout=1)),
            ("draining", not drains.draining()),
            ("in a transaction", not connection.in_atomic_block and not connection.run_on_commit),
        ]
        heartbeat._guard.release()
        if connection.vendor != "sqlite" or not ATOMIC:
            Effect.objects.create(name="child")
            with transaction.atomic():
                engine.start("other")
            found.append(("a drain of its own", drains.drain(heartbeat=True) >= 1))
            found.append(("session", session() != parents))
        else:
            # A transaction of the parent is open: SQLite is refused to its children.
            try:
                Effect.objects.count()
                found.append(("refused", False))
            except ForkedConnectionError as error:
                found.append(("says what to do", "atomic=False" in str(error)))
        queue.put([name for name, well in found if not well])
        connections.close_all()
    except BaseException as error:
        queue.put([repr(error)])
        raise

@workflow("other")
class Other:
    class Context(BaseModel):
        pass

    @step(start=True)
    def first(self):
        Effect.objects.create(name=f"other in {os.getpid() == PARENT}")
        return complete()

@workflow("forking")
class Forking:
    class Context(BaseModel):
        tries: int = 0

    @step(start=True, atomic=ATOMIC)
    def first(self):
        self.context.tries += 1
        if ATOMIC:
            Effect.objects.create(name="before")
        mine = session()
        while heartbeat._thread is None:
            time.sleep(0.01)
        if HELD:
            heartbeat._guard.acquire()  # as another thread may have it at this very moment
        queue = fork.Queue()
        process = fork.Process(target=child, args=(mine, queue))
        process.start()
        if HELD:
            heartbeat._guard.release()
        problem = queue.get(timeout=30)
        process.join(30)
        assert problem == [] and process.exitcode == 0, problem
        # The parent's session lives on, but for SQLite, where it is closed before the fork if no transaction is open.
        assert session() == mine or (connection.vendor == "sqlite" and not ATOMIC)
        Effect.objects.create(name="after")
        return complete()

PARENT = os.getpid()
run = engine.start("forking")
drains.drain(heartbeat=True)
run.refresh_from_db()
assert run.status == "completed", run.error
assert run.data["tries"] == 1
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("held", [False, True], ids=["", "with a lock held"])
@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
def test_23_a_step_forks(atomic, held):
    done = run_script(f"ATOMIC = {atomic}\nHELD = {held}\n{FORKING}", TEST_RUNTIME="silent")
    assert done.returncode == 0, done.stderr[-3000:]
    names = sorted(Effect.objects.values_list("name", flat=True))
    outer = ["after", "before"] if atomic else ["after"]
    inner = [] if connection.vendor == "sqlite" and atomic else ["child", "other in False"]
    assert names == sorted(outer + inner)
    assert not WorkflowRun.objects.unfinished().exists()


def test_23_a_web_server_forks_with_an_open_connection_and_a_hook():
    """If a preloaded web server forks during a transaction, its children commit nothing of that transaction."""
    done = run_script(
        """
import multiprocessing, os
from django.db import connection, transaction
from django_ai.automation.exceptions import ForkedConnectionError
from tests.apps.reservations.models import Reservation

fork = multiprocessing.get_context("fork")

def child():
    assert not connection.run_on_commit
    try:
        assert Reservation.objects.filter(note="parent").count() == 0  # its parent has not committed yet
    except ForkedConnectionError:
        assert connection.vendor == "sqlite"
    else:
        assert connection.vendor != "sqlite"
        Reservation.objects.create(note="child", status="confirmed")

with transaction.atomic():
    Reservation.objects.create(note="parent", status="confirmed")
    process = fork.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
process = fork.Process(target=lambda: Reservation.objects.create(note="second", status="confirmed"))
process.start()
process.join(30)
assert process.exitcode == 0
Reservation.objects.create(note="parent again", status="confirmed")
""",
        TEST_RUNTIME="silent",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = {"parent", "second", "parent again"} | ({"child"} if connection.vendor != "sqlite" else set())
    assert set(Reservation.objects.values_list("note", flat=True)) == wanted
    confirmed = Event.objects.filter(event_name="reservation_confirmed")
    assert set(confirmed.values_list("status", flat=True)) == {"processed"}
    assert confirmed.count() == len(wanted)


ROUTED = """
from datetime import timedelta
from django.core.management import call_command
from django.db import connections, transaction
from django.utils import timezone
from pydantic import BaseModel
from django_ai.automation import agent, complete, engine, event_workflow, handler, on_event, step, wait, workflow
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.notifier import InlineNotifier, set_notifier
from django_ai.automation.queues.runtimes.tasks import cleanup_old, poll_due
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect, Reservation

call_command("migrate", database="default", run_syncdb=True, verbosity=0)
tables = connections["default"].introspection.table_names()
assert not [table for table in tables if table.startswith("automation_")], tables

def leave(name):
    Effect.objects.create(name=name)

class Nothing(BaseModel):
    pass

@on_event("reservation_confirmed", name="note")
def note(event):
    assert connections["second"].in_atomic_block
    leave(f"callback {event.entity.note}")

@event_workflow("checkin_due", offset=-timedelta(hours=1), name="planned")
class Planned:
    Context = Nothing

    @step(start=True)
    def first(self):
        leave("planned")
        return wait("bell", then=self.second)

    @step()
    def second(self):
        leave("heard")
        raise_once()
        return complete()

failed = []
def raise_once():
    if not failed:
        failed.append(1)
        leave("rolled back")
        raise RuntimeError("once")

@agent("companion")
class Companion:
    Context = Nothing

    @handler("reservation_confirmed", match={})
    def hear(self, ctx):
        leave("agent")
"""


def routed(code):
    done = run_script(f"{ROUTED}\n{code}", DJANGO_SETTINGS_MODULE="tests.support.two_databases", TEST_RUNTIME="silent")
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(Effect.objects.values_list("name", flat=True))


def test_23_everything_works_in_a_second_database():
    found = routed("""
AgentManager.spawn("companion")
drain()
stay = Reservation.objects.create(note="x", status="confirmed", checkin_at=timezone.now() + timedelta(minutes=30))
assert stay._state.db == "second"
drain()
engine.signal("bell")
drain()
drain(timezone.now() + timedelta(minutes=1))
poll_due()
cleanup_old()
run = WorkflowRun.objects.get()
assert run.status == "completed", run.error
assert Event.objects.using("second").filter(event_name="reservation_confirmed", status="processed").count() == 1
""")
    assert found == ["agent", "callback x", "heard", "planned"]


def test_23_hooks_and_rollbacks_follow_the_second_database():
    """Only a transaction of the automations' database delays or rolls back events, not one of the default database."""
    found = routed("""
set_notifier(InlineNotifier())
with transaction.atomic():  # of the first: nobody waits for it
    Reservation.objects.create(note="at once", status="confirmed")
    assert Effect.objects.filter(name="callback at once").exists()
try:
    with transaction.atomic(using="second"):
        Reservation.objects.create(note="lost", status="confirmed")
        engine.signal("bell")
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
with transaction.atomic(using="second"):
    Reservation.objects.create(note="kept", status="confirmed")
    assert not Effect.objects.filter(name="callback kept").exists()
assert Effect.objects.filter(name="callback kept").exists()
assert not Reservation.objects.filter(note="lost").exists()
""")
    assert found == ["callback at once", "callback kept"]


def test_23_an_entity_in_another_database_is_refused():
    found = routed("""
from io import StringIO
from django.core.management.base import SystemCheckError
from django_ai.automation.exceptions import WrongDatabaseError
from tests.apps.front_desk.models import Booking, Person
try:
    call_command("check", stderr=StringIO(), stdout=StringIO())
except SystemCheckError as error:
    assert "desk.Booking" in str(error) and "second" in str(error), error
else:
    raise AssertionError("The check says nothing.")
person = Person.objects.create(name="no events, no matter")
try:
    Booking.objects.create(guest=person)
except WrongDatabaseError as error:
    assert "default" in str(error) and "second" in str(error), error
else:
    raise AssertionError("It was saved.")
assert not Booking.objects.exists()
assert not Event.objects.exists()
""")
    assert found == []


def test_23_the_first_database_may_be_down():
    """A worker queries only the database of the automations, so it completes a run while the default one is down."""
    run = engine.start("story:count", steps=2)
    routed("""
connections["default"].close()
connections["default"].settings_dict["NAME"] = "/nowhere/at/all"
drain()
""")
    run.refresh_from_db()
    assert run.status == "completed"
