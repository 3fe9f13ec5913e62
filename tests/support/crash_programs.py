"""Programs whose crash points are tested. Together they use events, callbacks, workflows and agents.

``PROGRAMS`` lists all of them.
"""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    Retry,
    agent,
    claims,
    complete,
    engine,
    event_workflow,
    get_wake,
    goto,
    handler,
    on_event,
    on_event_cancelled,
    on_event_created,
    run_subflow,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.reservations.models import Document, Reservation
from tests.support.crash_points import (
    Program,
    prune_in_batches,
    web,
    work,
)
from tests.support.crash_programs_of_captures import CAPTURED
from tests.support.rows import leave

STAY = 7001
QUICK = Retry(max_attempts=3, base_delay=timedelta(seconds=1))


def noon(hours: float) -> object:
    return timezone.now.noon + timedelta(hours=hours)  # type: ignore[attr-defined]


def booked(**fields: object) -> None:
    if not Reservation.objects.filter(pk=STAY).exists():
        Reservation.objects.create(pk=STAY, status="confirmed", **fields)


def changed(**fields: object) -> None:
    stay = Reservation.objects.get(pk=STAY)
    if any(getattr(stay, name) != value for name, value in fields.items()):
        for name, value in fields.items():
            setattr(stay, name, value)
        stay.save()


def started(name: str, **arguments: object) -> None:
    if not WorkflowRun.objects.filter(name=name).exists():
        engine.start(name, **arguments)


def signalled(name: str, run: str | None = None) -> None:
    if not Signal.objects.filter(name=name).exists():
        engine.signal(name, {"word": name}, run=WorkflowRun.objects.get(name=run) if run else None)


# -- events and callbacks ----------------------------------------------------------------------------------------------


def automations() -> None:
    @on_event("reservation_confirmed", name="welcome")
    def welcome(event):
        leave("welcome")

    @on_event("reservation_confirmed", name="stumble", retry=QUICK)
    def stumble(event):
        leave("stumble")
        if CallbackExecution.objects.get(callback="stumble").attempt == 0:
            raise RuntimeError("the first try stumbles")

    @on_event("reservation_confirmed", name="slow", atomic=False)
    def slow(event):
        leave("outside slow")

    @on_event("reservation_confirmed", name="fails", retry=Retry(max_attempts=2))
    def fails(event):
        leave("never")
        raise RuntimeError("always")

    @on_event("checkin_due", offset=timedelta(hours=-1), name="soon")
    def soon(event):
        leave("soon")

    @on_event("checkin_due", name="now")
    def now(event):
        leave("now")
        # A save in a callback causes another event.
        Document.objects.create(reservation_id=STAY)

    @on_event("document_uploaded", name="filed")
    def filed(event):
        leave("filed")

    @on_event_created("checkout_due", name="planned")
    def planned(event):
        leave("planned")

    @on_event_cancelled("checkout_due", name="cancelled")
    def cancelled(event):
        leave("cancelled")


def gone() -> None:
    Reservation.objects.filter(pk=STAY).first() and Reservation.objects.get(pk=STAY).delete()


EVENTS = Program(
    "events",
    automations,
    [
        web(lambda: booked(checkin_at=noon(3), checkout_at=noon(30))),
        work(0),
        work(1),
        web(lambda: changed(checkin_at=noon(4)), 1.5),
        work(2.5),  # the date was moved, so nothing is due
        work(3.5),
        work(4.5),
        web(gone, 5),
        work(5.5),
        prune_in_batches(6),
    ],
    ["cancelled", "filed", "now", "planned", "soon", "stumble", "welcome", "outside slow"],
)


def several() -> None:
    @on_event("document_uploaded", name="each")
    def each(event):
        leave(f"each {event.entity.kind}")


def three_documents() -> None:
    if not Document.objects.exists():
        with transaction.atomic():
            Reservation.objects.create(pk=STAY)
            for kind in ("a", "b", "c"):
                Document.objects.create(reservation_id=STAY, kind=kind)


BATCH = Program("batch", several, [web(three_documents), work(), work(1)], ["each a", "each b", "each c"])


# -- workflows ---------------------------------------------------------------------------------------------------------


class Word(BaseModel):
    word: str = ""
    tries: int = 0
    docs_ready: bool = False


def steps() -> None:
    @workflow("steps")
    class Steps:
        Context = Word

        @step(start=True)
        def first(self):
            leave("first")
            return goto(self.quiet)

        @step()
        def quiet(self):
            self.context.word = "quiet"  # the step itself writes to no table
            return goto(self.outside)

        @step(atomic=False)
        def outside(self):
            leave("outside")
            return goto(self.stumbles)

        @step(retry=QUICK)
        def stumbles(self):
            self.context.tries += 1
            leave(f"try {self.context.tries}")
            if self.context.tries == 1:
                raise RuntimeError("the first try stumbles")
            return sleep(timedelta(hours=1), then=self.awake)

        @step()
        def awake(self):
            leave("awake")
            # Another run and an event are committed with the step.
            engine.start("fails")
            Document.objects.create(reservation=Reservation.objects.create(pk=STAY))
            return complete()

    @workflow("fails")
    class Fails:
        Context = Word

        @step(start=True, retry=Retry(max_attempts=2))
        def first(self):
            leave("never")
            raise RuntimeError("always")

    @on_event("document_uploaded", name="filed")
    def filed(event):
        leave("filed")


STEPS = Program(
    "steps",
    steps,
    [web(lambda: started("steps")), work(), work(0.5), work(1.5), work(2)],
    ["awake", "filed", "first", "try 2", "outside"],
)


def waits() -> None:
    @workflow("waits")
    class Waits:
        Context = Word

        @step(start=True)
        def listen(self):
            leave(f"listen {get_wake().reason} {self.context.word}")
            return wait("broadcast", then=self.inbox) if get_wake().reason == "first" else complete()

        @step()
        def inbox(self):
            leave(f"inbox {get_wake().reason} {self.context.word}")
            return wait("inbox", timeout=timedelta(hours=9), then=self.patience)

        @step()
        def patience(self):
            leave(f"patience {get_wake().reason} {self.context.word}")
            return wait("never", timeout=timedelta(hours=1), on_timeout=self.late)

        @step()
        def late(self):
            leave(f"late {get_wake().reason}")
            return wait_for_event("document_uploaded", match={"reservation_id": STAY}, then=self.end)

        @step()
        def end(self):
            leave(f"end {get_wake().reason}")
            return complete()


def document() -> None:
    if not Document.objects.exists():
        Document.objects.create(reservation=Reservation.objects.get_or_create(pk=STAY)[0])


WAITS = Program(
    "waits",
    waits,
    [
        web(lambda: started("waits")),
        web(lambda: signalled("inbox", run="waits")),  # before the run waits for it
        work(),
        web(lambda: signalled("broadcast"), 0.5),
        work(1),
        work(2.5),
        web(document, 3),
        work(3.5),
        prune_in_batches(4),
    ],
    [
        "end event",
        "inbox signal broadcast",
        "late timeout",
        "listen first ",
        "patience signal inbox",
    ],
)


def families() -> None:
    @workflow("parent")
    class Parent:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("begin")
            return run_subflow("child", word="hello", then=self.end)

        @step()
        def end(self):
            leave(f"end {get_wake().payload['status']} {get_wake().payload['data']['word']}")
            return complete()

    @workflow("child")
    class Child:
        Context = Word

        @step(start=True)
        def one(self):
            leave("child")
            return goto(self.two)

        @step()
        def two(self):
            return complete(word="done")

    @workflow("long parent")
    class LongParent:
        Context = Word

        @step(start=True)
        def begin(self):
            return run_subflow("long child")

    @workflow("long child")
    class LongChild:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("waits for ever")
            return wait("never")


def parent_cancelled() -> None:
    for run in WorkflowRun.objects.filter(name="long parent").unfinished():
        engine.cancel(run)


FAMILIES = Program(
    "families",
    families,
    [
        web(lambda: started("parent")),
        web(lambda: started("long parent")),
        work(),
        web(parent_cancelled, 0.5),
        work(1),
    ],
    ["begin", "child", "end completed done", "waits for ever"],
)


def planned() -> None:
    @event_workflow("checkin_due", offset=timedelta(hours=-1), name="prepare")
    class Prepare:
        class Context(BaseModel):
            entity_id: str
            docs_ready: bool = False

        @step(start=True)
        def begin(self):
            leave("prepare")
            return wait_for_event("guest_docs_uploaded", then=self.docs)

        @step()
        def docs(self):
            leave(f"docs {self.context.docs_ready}")
            return complete()

    @event_workflow("reservation_confirmed", name="greet")
    class Greet:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def begin(self):
            leave("greet")
            return wait_for_event("checkout_due", then=self.end)

        @step()
        def end(self):
            return complete()


PLANNED = Program(
    "planned",
    planned,
    [
        web(lambda: booked(checkin_at=noon(3), checkout_at=noon(50))),
        work(),
        web(lambda: changed(checkin_at=noon(6)), 1),
        work(2.5),  # the date was moved, so the run is not due yet
        work(5.5),
        web(lambda: changed(docs=True), 6),
        work(7),
        web(gone, 8),  # the run that waits for the check-out ends, too
        work(9),
        prune_in_batches(10),
    ],
    ["docs True", "greet", "prepare"],
)


# -- agents ------------------------------------------------------------------------------------------------------------


class OfGuest(BaseModel):
    guest_id: int
    heard: list[str] = []
    tries: int = 0


GUEST = 8001


def companions() -> None:
    @agent("companion", spawn_on="booking_created", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
    class Companion:
        Context = OfGuest

        @classmethod
        def create_context(cls, event=None, guest_id=GUEST):
            return cls.Context(guest_id=event.entity.guest_id if event else guest_id)

        @handler("booking_created")
        def created(self, ctx, event):
            ctx.heard.append(f"booking {event.entity_id}")
            leave(f"created {event.entity_id}")
            claims.hold("message_received", match={"sender_id": ctx.guest_id})

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, retry=QUICK)
        def heard(self, ctx, event):
            ctx.tries += 1
            leave(f"heard {event.entity.text}")
            if ctx.tries == 1:
                raise RuntimeError("the first try stumbles")
            ctx.heard.append(event.entity.text)

        @handler("booking_created", offset=timedelta(hours=1))
        def reminded(self, event):
            leave(f"reminded {event.entity_id}")

        @handler("booking_noted")
        def noted(self, run, event):
            leave("noted")
            AgentManager.complete(run)

    @event_workflow("message_received", name="answer")
    class Answer:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def begin(self):
            leave("answered by the flow")
            return complete()


def guest() -> Person:
    return Person.objects.get_or_create(pk=GUEST)[0]


def booking(pk: int) -> None:
    if not Booking.objects.filter(pk=pk).exists():
        with transaction.atomic():
            Booking.objects.create(pk=pk, guest=guest())


def message(text: str) -> None:
    if not Message.objects.filter(text=text).exists():
        Message.objects.create(pk=9100 + len(text), sender=guest(), text=text)


def noted() -> None:
    found = Booking.objects.get(pk=9001)
    if found.note != "bye":
        found.note = "bye"
        found.save()


AGENTS = Program(
    "agents",
    companions,
    [
        web(lambda: booking(9001)),
        work(),
        web(lambda: message("one"), 0.1),
        work(0.2),
        web(lambda: booking(9002), 0.3),
        work(0.4),
        web(lambda: message("three"), 0.5),
        work(0.6),
        work(2),
        web(noted, 3),
        work(3.5),
        prune_in_batches(4),
    ],
    [
        "created 9001",
        "created 9002",
        "heard one",
        "heard three",
        "noted",
        "reminded 9001",
        "reminded 9002",
    ],
)


def spawned() -> None:
    if not AgentRun.objects.exists():
        AgentManager.spawn("companion", guest_id=GUEST)


def held() -> None:
    owner = AgentRun.objects.get()
    if claims.holder("message_received", {"sender_id": GUEST}) is None:
        claims.hold("message_received", {"sender_id": GUEST}, owner=owner, expires_in=None, expires_after_events=5)


def ended() -> None:
    for run in AgentRun.objects.unfinished():
        AgentManager.cancel(run)


BY_HAND = Program(
    "by hand",
    companions,
    [
        web(spawned),
        web(held),
        work(),
        web(lambda: message("one"), 0.5),
        work(1),
        web(ended, 2),
        work(2.5),
        prune_in_batches(3),
    ],
    ["heard one"],
)

PROGRAMS = [EVENTS, BATCH, CAPTURED, STEPS, WAITS, FAMILIES, PLANNED, AGENTS, BY_HAND]
