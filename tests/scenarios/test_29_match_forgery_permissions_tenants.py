"""Scenario 29, security: matches, queue messages, admin permissions and tenants.

A match reads only the Context. A forged queue message is refused, and a genuine one only makes a worker look for due
rows. An admin user with only the view permission cannot act. Tenants do not receive each other's events.
"""

from __future__ import annotations

import base64
import pickle
from queue import Queue
from threading import Event as Event_

import pytest
from django.contrib.auth.models import Permission, User
from django.core import signing
from django.urls import reverse
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.models import OrmQ
from django_q.pusher import pusher
from django_q.signing import BadSignature, SignedPackage
from pydantic import BaseModel

from django_ai.automation import (
    EventDefinition,
    agent,
    claims,
    complete,
    engine,
    event_workflow,
    handler,
    on_event,
    step,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event, EventClaim
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Maintenance
from django_ai.automation.queues.registry import due_times
from django_ai.automation.queues.runtimes import q2, q2_brokers, q2_schedules, tasks
from django_ai.automation.workflows.models import Signal, WorkflowRun, WorkflowStatus
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.story.models import Mark, Probe
from tests.support.front_desk import book
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


# -- a match -----------------------------------------------------------------------------------------------------------

REACHING = [
    "{{ ctx.__class__ }}",
    "{{ ctx.__class__.__mro__ }}",
    "{{ ctx.guest_id.__class__ }}",
    "{{ ctx._private }}",
    "{{ ctx.model_fields }}",
    "{{ ctx.model_dump() }}",
    "{{ ctx['guest_id'] }}",
    "{{ ctx.guest_id|add:1 }}",
    "{{ settings.SECRET_KEY }}",
    "{{ request.user }}",
    "{{ event.entity }}",
    "{% debug %}",
    "{% include 'secrets.html' %}{{ ctx.guest_id }}",
    "before {{ ctx.guest_id.bit_length() }} after",
]


class OfGuest(BaseModel):
    guest_id: int = 0


@pytest.mark.parametrize("text", REACHING)
def test_29_a_match_that_reaches_beyond_the_context_is_refused_at_import(text):
    with pytest.raises(DefinitionError):

        @agent("reaching", match={"guest_id": text})
        class Reaching:
            Context = OfGuest

            @handler("booking_created")
            def heard(self):
                pass

    with pytest.raises(DefinitionError):

        @agent("reaching")
        class ReachingInHandler:
            Context = OfGuest

            @handler("booking_created", match={"guest_id": text})
            def heard(self):
                pass

    with pytest.raises(DefinitionError):
        found = wait_for_event("booking_created", match={"guest_id": text})
        found.match.values_from(OfGuest())  # a wait is checked against its Context when its step returns it


def test_29_a_claim_takes_values_and_no_expressions(work):
    @workflow("claiming")
    class Claiming:
        Context = OfGuest

        @step(start=True)
        def begin(self):
            claims.hold("message_received", match={"sender_id": "{{ settings.SECRET_KEY }}"})
            return complete()

    run = engine.start("claiming")
    work()
    run.refresh_from_db()
    assert run.status == WorkflowStatus.FAILED
    assert "give the value itself" in run.error
    assert not EventClaim.objects.exists()


def test_29_what_a_context_holds_is_a_value_and_never_an_expression(work):
    """A string in a Context is compared literally, even if it contains a template expression."""

    @workflow("comparing")
    class Comparing:
        class Context(BaseModel):
            text: str

        @step(start=True)
        def begin(self):
            return wait_for_event("message_received", match={"text": "{{ ctx.text }}"}, then=self.heard)

        @step()
        def heard(self):
            return complete()

    run = engine.start("comparing", text="{{ ctx.text }} {{ settings.SECRET_KEY }}")
    work()
    run.refresh_from_db()
    assert run.waits.get().match == {"text": "{{ ctx.text }} {{ settings.SECRET_KEY }}"}


# -- the queue ---------------------------------------------------------------------------------------------------------


class Payload:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return (Mark.objects.create, (), {"name": "forged"})


def forge(task: object, key: str = "guessed") -> str:
    """Return ``task`` as Q2 packs it, but signed with a wrong key."""
    data = base64.urlsafe_b64encode(pickle.dumps(task)).strip(b"=").decode()
    return signing.TimestampSigner(key=key, salt=Conf.PREFIX).sign(data)


@pytest.mark.parametrize(
    "task", [Payload(), {"id": "1", "name": "x", "func": "os.system", "args": ("true",), "kwargs": {}}]
)
def test_29_a_forged_message_is_refused_before_it_is_unpickled(task):
    package = forge(task)
    with pytest.raises(BadSignature):
        SignedPackage.loads(package)
    genuine = q2.doorbell()
    with pytest.raises(BadSignature):
        SignedPackage.loads(genuine[:-2] + ("aa" if genuine[-2:] != "aa" else "bb"))
    assert not Mark.objects.exists()


def test_29_q2_drops_a_forged_message_and_takes_the_genuine_one():
    """With our broker, Q2's own pusher drops the forged message and delivers the genuine one."""
    broker = q2_brokers.OrmBroker(list_key="scenario-29")
    OrmQ.objects.create(key="scenario-29", payload=forge({"func": "os.abort"}), lock=timezone.now())
    genuine = OrmQ.objects.create(key="scenario-29", payload=q2.doorbell(), lock=timezone.now())
    pushed: Queue[dict[str, object]] = Queue()
    one_round = Event_()
    one_round.set()
    broker.poller.seconds_until_due()
    drain(models=[Maintenance])
    pusher(pushed, one_round, broker=broker)
    assert pushed.empty()
    assert list(OrmQ.objects.all()) == [genuine]
    pusher(pushed, one_round, broker=broker)
    assert pushed.get_nowait()["func"] == q2.DOORBELL


def test_29_messages_carry_no_arguments(monkeypatch):
    """Every message that we put into a queue names one of our functions and carries no other data."""
    monkeypatch.setattr(Conf, "BROKER_CLASS", None)
    broker = ORM(list_key=Conf.PREFIX)
    monkeypatch.setattr("django_q.tasks.get_broker", lambda *args: broker)
    q2.Q2Notifier().ring("default")
    (queued,) = OrmQ.objects.all()
    packages = [queued.payload, q2.doorbell()]
    for package in packages:
        task = SignedPackage.loads(package)
        assert task["func"] == q2.DOORBELL
        assert tuple(task.get("args", ())) == ()
        assert task.get("kwargs", {}) == {}
        assert not {"hook", "group", "chain", "iter_count"} & set(task)
        # It contains no objects of the project, only plain values.
        assert {type(value).__module__ for value in task.values()} <= {"builtins", "datetime"}
    for name, func, *_ in q2_schedules.SCHEDULES:
        assert func.startswith("django_ai.automation.queues.runtimes.tasks."), name


def test_29_a_stale_or_doubled_message_only_looks_at_the_clock():
    """A replayed message, however old, only makes a worker look for due rows. Other rows stay unchanged."""
    sleeping = engine.start("story:nap", seconds=3600)
    Probe.objects.create(name="once", ready=True)
    drain()
    stale = SignedPackage.loads(q2.doorbell())
    before = WorkflowRun.objects.filter(pk=sleeping.pk).values().get()
    marks = Mark.objects.count()
    for _ in range(5):
        assert stale["func"] == "django_ai.automation.queues.runtimes.tasks.drain_due"
        assert tasks.drain_due(*stale["args"], **stale["kwargs"]) == 0
    assert WorkflowRun.objects.filter(pk=sleeping.pk).values().get() == before
    assert Mark.objects.count() == marks
    assert min(due_times().values()) > timezone.now()


# -- the admin ---------------------------------------------------------------------------------------------------------

ACTIONS = [
    ("automation_events", Event, "resume"),
    ("automation_events", Event, "cancel"),
    ("automation_events", CallbackExecution, "resume"),
    ("automation_workflows", WorkflowRun, "resume"),
    ("automation_workflows", WorkflowRun, "cancel"),
    ("automation_workflows", Signal, "resume"),
    ("automation_agents", AgentRun, "resume"),
    ("automation_agents", AgentRun, "complete"),
    ("automation_agents", AgentRun, "cancel"),
    ("automation_agents", HandlerExecution, "resume"),
]


@pytest.fixture
def rows(work):
    """Create at least one row of each kind, all parked for an operator."""

    @on_event("booking_created", name="scenario 29: failing")
    def failing(event):
        pass

    @agent("watcher", spawn_on="booking_created")
    class Watcher:
        class Context(BaseModel):
            entity_id: str
            secret: str = "hidden treasure"

        @handler("booking_created")
        def heard(self):
            pass

    @workflow("holder")
    class Holder:
        class Context(BaseModel):
            secret: str = "hidden treasure"

        @step(start=True)
        def begin(self):
            return wait_for_event("message_received", match={})

    book()
    engine.start("holder")
    engine.signal("nobody", {"secret": "hidden treasure"})
    work()
    for model in (Event, CallbackExecution, WorkflowRun, AgentRun, HandlerExecution):
        model.objects.update(status="parked")
    Event.objects.update(payload={"secret": "hidden treasure"})
    Signal.objects.update(delivered_at=None, wake_at=None, error="parked")


def state() -> list[object]:
    models = (Event, CallbackExecution, WorkflowRun, Signal, AgentRun, HandlerExecution)
    return [sorted(map(str, model.objects.values())) for model in models]


def staff(*codenames: str) -> User:
    user = User.objects.create_user("-".join(codenames)[:100] or "nobody", password="x", is_staff=True)
    found = Permission.objects.filter(codename__in=codenames, content_type__app_label__startswith="automation_")
    assert found.count() == len(codenames), "a permission is missing"
    user.user_permissions.set(found)
    return user


def listing(app: str, model: type) -> str:
    return reverse(f"admin:{app}_{model._meta.model_name}_changelist")


@pytest.mark.parametrize(("app", "model", "action"), ACTIONS)
def test_29_who_may_only_look_sees_no_action_and_a_posted_one_is_refused(client, rows, app, model, action):
    name = model._meta.model_name
    # The user may view and change rows, but lacks the permission of the action.
    client.force_login(staff(f"view_{name}", f"change_{name}"))
    before = state()
    page = client.get(listing(app, model))
    assert page.status_code == 200
    assert f'value="{action}"' not in page.content.decode()
    posted = {"action": action, "_selected_action": list(model.objects.values_list("pk", flat=True)), "index": 0}
    client.post(listing(app, model), posted, follow=True)
    assert state() == before
    # The admin never edits, adds or deletes these rows.
    row = model.objects.first()
    details = reverse(f"admin:{app}_{name}_change", args=[row.pk])
    assert client.get(details).status_code == 200
    assert client.post(details, {"status": "completed"}).status_code == 403
    assert client.get(reverse(f"admin:{app}_{name}_add")).status_code == 403
    assert client.post(reverse(f"admin:{app}_{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert state() == before


@pytest.mark.parametrize(("app", "model", "action"), ACTIONS)
def test_29_the_permission_of_the_action_is_enough(client, rows, app, model, action):
    name = model._meta.model_name
    client.force_login(staff(f"view_{name}", f"{action}_{name}"))
    if (model, action) == (Event, "cancel"):
        Event.objects.update(status="pending", occurred_at=None)
    before = state()
    page = client.get(listing(app, model)).content.decode()
    assert f'value="{action}"' in page
    others = {each for _, of, each in ACTIONS if of is model} - {action}
    assert not [other for other in others if f'value="{other}"' in page]
    client.post(listing(app, model), {"action": action, "_selected_action": [model.objects.first().pk]}, follow=True)
    assert state() != before


@pytest.mark.parametrize(
    ("app", "model", "column"),
    [
        ("automation_events", Event, "payload"),
        ("automation_workflows", WorkflowRun, "data"),
        ("automation_workflows", Signal, "payload"),
        ("automation_agents", AgentRun, "data"),
    ],
)
def test_29_contexts_and_payloads_are_for_who_may_see_data(client, rows, app, model, column):
    name, row = model._meta.model_name, model.objects.first()
    details = reverse(f"admin:{app}_{name}_change", args=[row.pk])
    client.force_login(staff(f"view_{name}"))
    assert "hidden treasure" not in client.get(details).content.decode()
    # A filter on this column would reveal hidden data.
    asked = client.get(listing(app, model), {f"{column}__secret__startswith": "hidden"})
    assert asked.status_code == 400
    client.force_login(staff(f"view_{name}", f"view_data_{name}"))
    assert "hidden treasure" in client.get(details).content.decode()


# -- tenants -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tenants(declare):
    declare(
        Booking,
        EventDefinition("booking_created", namespace=lambda booking: booking.note),
        EventDefinition("stay_due", date_field="starts_at", namespace=lambda booking: booking.note),
    )
    declare(Message, EventDefinition("message_received", namespace=lambda message: message.text))


def write_to(tenant: str, person: Person) -> None:
    Message.objects.create(sender=person, text=tenant)


def test_29_callbacks_workflows_and_agents_hear_their_own_tenant_only(tenants, work):
    for name in ("north", "south"):

        @on_event("booking_created", namespace=name, name=f"callback {name}")
        def heard(event, name=name):
            leave(f"callback of {name}: {event.namespace}")

        @event_workflow("booking_created", namespace=name, name=f"flow {name}")
        class Flow:
            class Context(BaseModel):
                entity_id: str

            @step(start=True)
            def begin(self, name=name):
                leave(f"flow of {name}: {Booking.objects.get().note}")
                return complete()

        @agent(f"agent {name}", spawn_on="booking_created", namespace=name)
        class Agent:
            class Context(BaseModel):
                entity_id: str

            @handler("booking_created")
            def heard(self, event, name=name):
                leave(f"agent of {name}: {event.namespace}")

    book(note="north")
    work()
    assert sorted(effects()) == ["agent of north: north", "callback of north: north", "flow of north: north"]


def test_29_a_handler_without_a_namespace_of_its_own_hears_its_agents(tenants, work):
    """A handler receives only events of its agent's tenant, unless the handler declares another namespace."""

    @agent("northern", spawn_on="booking_created", namespace="north", match={"guest_id": "{{ ctx.guest_id }}"})
    class Northern:
        Context = OfGuest

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def own(self, event):
            leave(f"own: {event.namespace}")

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, namespace="south")
        def other(self, event):
            leave(f"other: {event.namespace}")

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, namespace="*")
        def everybody(self, event):
            leave(f"everybody: {event.namespace}")

    booking = book(note="north")
    work()
    write_to("south", booking.guest)
    work()
    assert sorted(effects()) == ["everybody: south", "other: south"]
    write_to("north", booking.guest)
    work()
    assert sorted(effects()[2:]) == ["everybody: north", "own: north"]


@pytest.mark.parametrize("earlier", [False, True], ids=["event after the wait", "event before the wait"])
def test_29_a_wait_is_for_the_tenant_of_its_workflow(tenants, work, earlier):
    @event_workflow("booking_created", namespace="north", name="waiting")
    class Waiting:
        class Context(BaseModel):
            guest_id: int

        @classmethod
        def create_context(cls, event):
            return cls.Context(guest_id=event.entity.guest_id)

        @step(start=True)
        def begin(self):
            if earlier:
                write_to("south", Person.objects.get())
            return wait_for_event("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, then=self.heard)

        @step()
        def heard(self):
            leave("heard")
            return complete()

    booking = book(note="north")
    work()
    write_to("south", booking.guest)
    work()
    assert effects() == []
    write_to("north", booking.guest)
    work()
    assert effects() == ["heard"]


def test_29_a_claim_keeps_nobody_of_another_tenant_away(tenants, work):
    """Two tenants can hold the same claim for the same guest, and each claim affects only its own tenant."""
    for name in ("north", "south"):

        @agent(f"desk {name}", spawn_on="booking_created", namespace=name, match={"guest_id": "{{ ctx.guest_id }}"})
        class Desk:
            Context = OfGuest

            @classmethod
            def create_context(cls, event):
                return cls.Context(guest_id=event.entity.guest_id)

            @handler("booking_created")
            def begin(self, ctx):
                claims.hold("message_received", match={"sender_id": ctx.guest_id})

            @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
            def mine(self, name=name):
                leave(f"desk {name}")

        @event_workflow("message_received", namespace=name, name=f"bot {name}")
        class Bot:
            Context = OfGuest

            @step(start=True)
            def answer(self, name=name):
                leave(f"bot {name}")
                return complete()

    guest = Person.objects.create(name="one")
    Booking.objects.create(guest=guest, note="north")
    work()
    write_to("south", guest)
    work()
    assert effects() == ["bot south"]
    Booking.objects.create(guest=guest, note="south")
    work()
    assert EventClaim.objects.count() == 2, HandlerExecution.objects.values_list("error", flat=True)
    write_to("south", guest)
    write_to("north", guest)
    work()
    assert sorted(effects()[1:]) == ["desk north", "desk south"]


def test_29_a_claim_may_be_for_any_tenant_and_is_seen_there(tenants, work):
    run = engine.start("story:listen")
    guest = Person.objects.create(name="one")
    claims.hold("message_received", {"sender_id": guest.pk}, owner=run, namespace="north")
    assert claims.holder("message_received", {"sender_id": guest.pk}) is None
    assert claims.holder("message_received", {"sender_id": guest.pk}, namespace="north").owner == run
    assert not claims.release("message_received", {"sender_id": guest.pk}, owner=run)
    assert claims.release("message_received", {"sender_id": guest.pk}, owner=run, namespace="north")
    claims.hold("message_received", {"sender_id": guest.pk}, owner=run, namespace="*")

    @event_workflow("message_received", name="bot")
    class Bot:
        Context = OfGuest

        @step(start=True)
        def answer(self):
            leave("bot")
            return complete()

    write_to("south", guest)
    work()
    assert effects() == []
    with pytest.raises(DefinitionError, match="namespace=''"):
        claims.hold("message_received", owner=run, namespace="")
