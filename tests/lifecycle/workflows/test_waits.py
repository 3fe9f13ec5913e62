"""Waits: for a signal, for an event, for whom, how long, and that nothing is lost or taken twice."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation.exceptions import DefinitionError, NotStorableError
from django_ai.automation.workflows.core import (
    complete,
    engine,
    event_workflow,
    get_context,
    get_run,
    get_wake,
    goto,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import Signal, StepExecution, Wait, WorkflowRun
from tests.apps.reservations.models import Document, Guest, Reservation, Room, Suite
from tests.support.rows import effects, event_of, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


def told() -> None:
    """Leave behind why the step was entered, and what came with it."""
    wake = get_wake()
    payload = {
        name: value for name, value in sorted(wake.payload.items()) if not name.startswith(("event_", "entity_"))
    }
    leave(f"{wake.reason} {payload}" if payload else wake.reason)


def waiter(name="waiter", outcome=lambda self: wait("bell"), again=False, **fields):
    """Declare a workflow that waits once (or always, with ``again``) and then completes."""

    @workflow(name)
    class Waiter:
        class Context(BaseModel):
            n: int = 0
            text: str = ""
            pk: str = ""
            reservation_id: int = 0
            docs_ready: bool = False
            kind: str = ""

        @step(start=True)
        def first(self):
            if get_wake().reason != "first":
                told()
                if not again:
                    return complete()
            return outcome(self)

        @step()
        def other(self):
            leave("other")
            told()
            return complete()

    return Waiter


def begin(work, name="waiter", **arguments) -> WorkflowRun:
    run = engine.start(name, **arguments)
    work()
    run.refresh_from_db()
    return run


def status(run: WorkflowRun) -> str:
    run.refresh_from_db()
    return str(run.status)


# -- signals -----------------------------------------------------------------------------------------------------------


def test_a_signal_wakes_who_waits_for_it_and_only_those(work):
    waiter()
    waiter("deaf", lambda self: wait("gong"))
    one, two, deaf = begin(work), begin(work), begin(work, "deaf")
    assert (one.status, one.waits.get().channel, one.wake_at) == ("suspended", "bell", None)
    engine.signal("bell")
    assert status(one) == "suspended"  # the sender only sends; a worker delivers
    work()
    assert [status(one), status(two), status(deaf)] == ["completed", "completed", "suspended"]
    assert effects() == ["signal", "signal"]


def test_the_payload_merges_where_the_context_has_the_field(work):
    waiter()
    run = begin(work)
    engine.signal("bell", {"n": 5, "unknown": "x", "text": "ding"})
    work()
    run.refresh_from_db()
    assert (run.data["n"], run.data["text"]) == (5, "ding")
    assert "unknown" not in run.data
    assert effects() == ["signal {'n': 5, 'text': 'ding', 'unknown': 'x'}"]


def test_the_payload_is_validated(work):
    waiter()
    run = begin(work)
    engine.signal("bell", {"n": "7"})
    work()
    run.refresh_from_db()
    assert run.data["n"] == 7


def test_a_payload_that_does_not_fit_parks_the_run_and_nobody_else(work):
    waiter()

    @workflow("lenient")
    class Lenient:
        class Context(BaseModel):
            n: str = ""

        @step(start=True)
        def first(self):
            return complete() if get_wake().reason == "signal" else wait("bell")

    strict, lenient = begin(work), begin(work, "lenient")
    engine.signal("bell", {"n": "many"})
    work()
    assert (status(strict), status(lenient)) == ("parked", "completed")
    assert "many" in strict.error
    assert "'bell'" in strict.error


def test_a_broadcast_before_the_start_wakes_nobody(work):
    waiter()
    engine.signal("bell")
    work()
    assert begin(work).status == "suspended"


def test_a_broadcast_before_the_waiting_step_began_is_heard(clock, work):
    """Whatever has come since the run was created and it has not consumed."""

    @workflow("two steps")
    class TwoSteps:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            return complete() if get_wake().reason == "signal" else wait("bell")

    run = begin(work, "two steps")
    engine.signal("bell")
    work()
    clock.tick(HOUR)
    work()
    assert status(run) == "completed"


def test_a_signal_while_the_step_that_will_wait_is_running_is_not_lost(work):
    def outcome(self):
        engine.signal("bell", {"n": 1})
        return wait("bell")

    waiter(outcome=outcome)
    assert status(begin(work)) == "completed"
    assert effects() == ["signal {'n': 1}"]


def test_a_signal_that_is_rolled_back_was_never_sent(work):
    waiter()
    run = begin(work)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        engine.signal("bell")
        raise ZeroDivisionError
    work()
    assert (status(run), Signal.objects.count()) == ("suspended", 0)


def test_a_signal_to_one_run_wakes_only_that(work):
    waiter()
    one, two = begin(work), begin(work)
    engine.signal("bell", {"n": 1}, run=one)
    work()
    assert [status(one), status(two)] == ["completed", "suspended"]
    engine.signal("bell", run=two.pk)
    work()
    assert status(two) == "completed"


def test_a_signal_to_one_run_is_kept_until_it_waits_for_it(clock, work):
    @workflow("sleeper")
    class Sleeper:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            if get_wake().reason != "signal":
                return wait("bell")
            told()
            return complete() if self.context.n == 2 else wait("bell")

    run = begin(work, "sleeper")
    for n in (1, 2):
        engine.signal("bell", {"n": n}, run=run)
    engine.signal("gong", run=run)
    work()
    assert status(run) == "waiting"
    clock.tick(HOUR)
    work()
    assert status(run) == "completed"
    assert effects() == ["signal {'n': 1}", "signal {'n': 2}"]
    assert Signal.objects.filter(consumed_at=None).get().name == "gong"


def test_each_signal_is_consumed_at_most_once(work):
    waiter(again=True)
    run = begin(work)
    for n in (1, 2, 3):
        engine.signal("bell", {"n": n})
        work()
        work()
    assert effects() == ["signal {'n': 1}", "signal {'n': 2}", "signal {'n': 3}"]
    assert status(run) == "suspended"


@pytest.mark.exact_times
def test_a_signal_that_was_taken_before_its_delivery_is_not_delivered_again(clock, work):
    """The run looks for what is on its way when it begins to wait; the delivery comes after it waits once more."""

    def outcome(self):
        if not Signal.objects.exists():
            engine.signal("bell", {"n": 1})
            Signal.objects.update(wake_at=clock() + 5 * SECOND)  # its delivery is late
        return wait("bell")

    waiter(outcome=outcome, again=True)
    run = begin(work)
    assert (run.status, effects()) == ("suspended", ["signal {'n': 1}"])
    clock.tick(5 * SECOND)
    work()
    assert Signal.objects.get().delivered_at == clock()
    assert (status(run), effects()) == ("suspended", ["signal {'n': 1}"])


def test_a_payload_is_merged_once_though_the_step_is_tried_again(clock, work):
    @workflow("tripping")
    class Stumble:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        def first(self):
            if get_wake().reason == "first":
                return wait("bell")
            assert get_wake().payload == {"n": 10}
            self.context.n += 1
            if self.context.n < 13:
                raise RuntimeError
            return complete()

    run = begin(work, "tripping")
    engine.signal("bell", {"n": 10})
    for _ in range(4):
        work()
        clock.tick(10 * SECOND)
    assert (status(run), run.data["n"]) == ("completed", 13)


def test_a_step_may_wait_for_one_thing_after_the_other(work):
    @workflow("in turn")
    class InTurn:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        def first(self):
            return wait("bell", then=self.second)

        @step()
        def second(self):
            return wait("gong", then=self.third)

        @step()
        def third(self):
            return complete()

    run = begin(work, "in turn")
    for name, current in (("knock", "first"), ("bell", "second"), ("bell", "second")):
        engine.signal(name)
        work()
        run.refresh_from_db()
        assert (run.status, run.current_step) == ("suspended", current)
    engine.signal("gong")
    work()
    assert status(run) == "completed"


@pytest.mark.parametrize("name", ["", None, 5, "x" * 201])
def test_a_signal_has_a_name(name):
    with pytest.raises(DefinitionError):
        engine.signal(name)


@pytest.mark.parametrize("payload", ["text", [1], 5])
def test_a_payload_is_a_dict(payload):
    with pytest.raises(DefinitionError, match="must be a dict"):
        engine.signal("bell", payload)


def test_a_payload_that_cannot_be_stored_is_refused():
    with pytest.raises(NotStorableError, match="'bell'"):
        engine.signal("bell", {"n": float("inf")})
    assert not Signal.objects.exists()


def test_many_who_wait_are_woken_in_a_few_statements(work):
    waiter()
    template = begin(work)
    values = {
        field.attname: getattr(template, field.attname)
        for field in WorkflowRun._meta.concrete_fields
        if field.attname != "id"
    }
    WorkflowRun.objects.bulk_create([WorkflowRun(**values) for _ in range(499)])
    waits = template.waits.values("visit", "channel", "key", "then", "on_timeout").get()
    others = WorkflowRun.objects.exclude(pk=template.pk)
    Wait.objects.bulk_create([Wait(run=run, **waits) for run in others])
    signal = engine.signal("bell")
    with CaptureQueriesContext(connection) as queries:
        from django_ai.automation.queues.lease import claim
        from django_ai.automation.workflows.arrivals import deliver

        (mine,) = claim(Signal, signal.wake_at, 1)
        deliver(mine, lambda: signal.wake_at)
    # Where UPDATE returns no rows, a claim is a transaction of two statements.
    few = 11 if connection.vendor == "mysql" else 8
    assert len(queries) <= few, [query["sql"][:100] for query in queries]
    assert WorkflowRun.objects.filter(status="running", wake_reason="signal").count() == 500
    assert not Wait.objects.exists()


# -- timeouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_timeout_enters_the_step_again(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR))
    run = begin(work)
    assert run.wake_at == clock() + HOUR
    clock.tick(HOUR - timedelta(microseconds=1))
    assert work() == 0
    clock.tick(timedelta(microseconds=1))
    work()
    assert (status(run), effects()) == ("completed", ["timeout"])


def test_a_timeout_goes_to_on_timeout(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout=self.other))
    run = begin(work)
    clock.tick(HOUR)
    work()
    assert (status(run), effects()) == ("completed", ["other", "timeout"])


def test_a_signal_in_time_does_not_go_to_on_timeout(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout="other"))
    begin(work)
    clock.tick(HOUR - SECOND)
    engine.signal("bell")
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["signal"]


def test_then_is_for_the_signal_and_not_for_the_timeout(clock, work):
    outcome = lambda self: wait("bell", timeout=HOUR, then="other")  # noqa: E731
    waiter(outcome=outcome)
    one = begin(work)
    clock.tick(HOUR)
    work()
    assert (status(one), effects()) == ("completed", ["timeout"])
    begin(work)
    engine.signal("bell")
    work()
    assert effects() == ["timeout", "other", "signal"]


def test_signal_and_timeout_at_the_same_instant_are_one_branch(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout="other"))
    run = begin(work)
    clock.tick(HOUR)
    engine.signal("bell", run=run)
    work()
    work()
    assert status(run) == "completed"
    assert effects() in (["signal"], ["other", "timeout"])
    assert StepExecution.objects.filter(run=run).count() == 2


def test_a_timeout_of_zero_only_looks(work):
    waiter(outcome=lambda self: wait("bell", timeout=timedelta(0)))
    run = engine.start("waiter")
    engine.signal("bell", {"n": 1}, run=run)
    work()
    empty = begin(work)
    work()
    assert (status(run), status(empty)) == ("completed", "completed")
    assert effects() == ["signal {'n': 1}", "timeout"]


def test_after_a_timeout_a_late_signal_finds_nobody(clock, work):
    waiter(outcome=lambda self: wait("bell", timeout=HOUR, on_timeout="other"))
    begin(work)
    clock.tick(HOUR)
    work()
    engine.signal("bell")
    work()
    assert effects() == ["other", "timeout"]


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def guest_flow():
    """Started by a confirmation; waits for the documents of its own reservation."""

    @event_workflow("reservation_confirmed", name="guest")
    class GuestFlow:
        class Context(BaseModel):
            docs_ready: bool = False

        @step(start=True)
        def first(self):
            if get_wake().reason == "first":
                return wait_for_event("guest_docs_uploaded")
            leave(f"{get_run().entity_id} {get_wake().reason} {get_context().docs_ready}")
            return complete()


def confirm(**values) -> Reservation:
    return Reservation.objects.create(status="confirmed", **values)


def upload(stay: Reservation) -> None:
    stay.docs = True
    stay.save()


@pytest.mark.usefixtures("guest_flow")
def test_an_event_of_its_own_entity_wakes_a_run(work):
    mine, other = confirm(), confirm()
    work()
    upload(other)
    work()
    upload(Reservation.objects.create())
    work()
    assert effects() == [f"{other.pk} event True"]
    assert the_run(entity_id=str(mine.pk)).status == "suspended"
    upload(mine)
    work()
    assert effects() == [f"{other.pk} event True", f"{mine.pk} event True"]


@pytest.mark.usefixtures("guest_flow")
def test_the_events_own_fields_come_with_the_payload(work):
    seen = []

    @event_workflow("reservation_confirmed", name="reader")
    class Reader:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "first":
                return wait_for_event("guest_docs_uploaded")
            seen.append(dict(get_wake().payload))
            return complete()

    stay = confirm()
    work()
    upload(stay)
    work()
    event = event_of(stay, "guest_docs_uploaded")
    assert seen == [
        {
            "event_id": event.pk,
            "event_name": "guest_docs_uploaded",
            "entity_id": str(stay.pk),
            "event_at": event.at.isoformat(),
            "docs_ready": True,
        }
    ]


@pytest.mark.usefixtures("guest_flow")
def test_an_occurrence_since_the_first_step_ends_the_wait_at_once(clock, work):
    @event_workflow("reservation_confirmed", name="late reader")
    class LateReader:
        class Context(BaseModel):
            docs_ready: bool = False

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            if get_wake().reason == "event":
                leave(f"late {self.context.docs_ready}")
                return complete()
            return wait_for_event("guest_docs_uploaded")

    stay = confirm()
    work()
    clock.tick(SECOND)
    upload(stay)
    work()
    clock.tick(HOUR)
    work()
    assert "late True" in effects()


@pytest.mark.usefixtures("guest_flow")
def test_an_occurrence_while_the_step_that_will_wait_is_running_is_not_lost(work):
    @event_workflow("reservation_confirmed", name="busy")
    class Busy:
        class Context(BaseModel):
            pass

        @step(start=True, atomic=False)
        def first(self):
            if get_wake().reason == "event":
                leave("busy")
                return complete()
            upload(Reservation.objects.get(pk=int(get_run().entity_id)))
            return wait_for_event("guest_docs_uploaded")

    confirm()
    work()
    assert "busy" in effects()


@pytest.mark.usefixtures("guest_flow")
def test_an_occurrence_before_the_first_step_is_heard(clock, work):
    """In the same commit as what starts the run, or while workers were behind."""
    stay = confirm(docs=True)
    clock.tick(SECOND)
    work()
    assert the_run(entity_id=str(stay.pk)).status == "completed"


def test_an_event_is_consumed_at_most_once(work):
    entered = []

    @event_workflow("reservation_confirmed", name="twice")
    class Twice:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            entered.append(get_wake().reason)
            return wait_for_event("guest_docs_uploaded")

    stay = confirm()
    work()
    upload(stay)
    for _ in range(3):
        work()
    assert entered == ["first", "event"]
    assert the_run().status == "suspended"


def match_flow(match, name="matching", event="document_uploaded", then=None):
    waiter(name, lambda self: wait_for_event(event, match=match, then=then))


def test_a_match_follows_a_foreign_key(work):
    match_flow({"reservation_id": "{{ ctx.reservation_id }}"})
    mine, other = Reservation.objects.create(), Reservation.objects.create()
    run = begin(work, "matching", reservation_id=mine.pk)
    Document.objects.create(reservation=other)
    work()
    assert status(run) == "suspended"
    Document.objects.create(reservation=mine, kind="visa")
    work()
    run.refresh_from_db()
    assert (run.status, run.data["kind"]) == ("completed", "visa")
    assert effects() == ["event {'kind': 'visa'}"]


@pytest.mark.parametrize(
    "match",
    [
        {"reservation": "{{ ctx.reservation_id }}"},
        {"reservation__pk": "{{ ctx.reservation_id }}"},
        {"reservation__guest__name": "{{ ctx.text }}"},
        {"reservation__guest__name": "O'{{ ctx.kind }}"},
        {"reservation_id": "{{ context.pk }}"},
        {"reservation_id__exact": "{{ ctx.reservation_id }}", "kind": "visa"},
        {"kind": "visa", "reservation__status": "pending"},
    ],
)
def test_matches_of_many_shapes(match, work):
    match_flow(match)
    guest, stranger = Guest.objects.create(name="O'Brien"), Guest.objects.create(name="O'Hara")
    mine = Reservation.objects.create(guest=guest)
    other = Reservation.objects.create(guest=stranger, status="confirmed")
    arguments = {"reservation_id": mine.pk, "pk": str(mine.pk), "text": "O'Brien", "kind": "Brien"}
    run = begin(work, "matching", **arguments)
    assert run.status == "suspended"
    Document.objects.create(reservation=other, kind="visa")
    work()
    assert status(run) == "suspended"
    Document.objects.create(reservation=mine, kind="visa")
    work()
    assert status(run) == "completed"


def test_a_match_finds_what_occurred_since_the_first_step(clock, work):
    @workflow("sleeper")
    class Sleeper:
        class Context(BaseModel):
            reservation_id: int
            kind: str = ""

        @step(start=True)
        def first(self):
            return sleep(HOUR, then=self.second)

        @step()
        def second(self):
            if get_wake().reason == "event":
                told()
                return complete()
            return wait_for_event("document_uploaded", match={"reservation_id": "{{ ctx.reservation_id }}"})

    mine, other = Reservation.objects.create(), Reservation.objects.create()
    Document.objects.create(reservation=mine, kind="too early")
    clock.tick(SECOND)
    run = begin(work, "sleeper", reservation_id=mine.pk)
    clock.tick(SECOND)
    Document.objects.create(reservation=other, kind="not mine")
    Document.objects.create(reservation=mine, kind="mine")
    clock.tick(HOUR)
    work()
    assert status(run) == "completed"
    assert effects() == ["event {'kind': 'mine'}"]


def test_several_that_match_are_taken_one_after_the_other(work):
    waiter("collector", lambda self: wait_for_event("document_uploaded", match={"kind": "visa"}), again=True)
    run = begin(work, "collector")
    stay = Reservation.objects.create()
    with transaction.atomic():
        for _ in range(3):
            Document.objects.create(reservation=stay, kind="visa")
        Document.objects.create(reservation=stay)
    for _ in range(5):
        work()
    assert effects() == ["event {'kind': 'visa'}"] * 3
    assert status(run) == "suspended"
    refs = list(StepExecution.objects.filter(run=run, wake_reason="event").values_list("wake_ref", flat=True))
    assert len(set(refs)) == 3


def test_a_match_of_nothing_is_any(work):
    match_flow({})
    run = begin(work, "matching")
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "completed"


def test_without_a_match_another_models_event_is_any(work):
    match_flow(None)
    run = begin(work, "matching")
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "completed"


def test_a_match_of_nothing_is_any_also_for_its_own_entity(work):
    @event_workflow("reservation_confirmed", name="any")
    class Any:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete() if get_wake().reason == "event" else wait_for_event("guest_docs_uploaded", match={})

    confirm()
    work()
    upload(Reservation.objects.create())
    work()
    assert the_run().status == "completed"


@pytest.mark.parametrize("lookup", ["reservation_ident", "kind__inn", "reservation__gast"])
def test_a_match_of_an_unknown_field_fails_at_once_and_names_it(lookup, work):
    match_flow({lookup: 5})
    run = begin(work, "matching")
    assert run.status == "failed"
    assert repr(lookup) in run.error
    assert "document_uploaded" in run.error


def test_a_match_of_an_unknown_field_of_the_context_fails_at_once_and_names_it(work):
    match_flow({"reservation_id": "{{ ctx.reservation_ident }}"})
    run = begin(work, "matching")
    assert run.status == "failed"
    assert "reservation_ident" in run.error


def test_a_run_of_a_child_waits_for_its_parents_event(work):
    """A workflow that a Suite's own event starts waits for an event that the Room above it declares."""

    @event_workflow("suite_opened", name="suite")
    class SuiteFlow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete() if get_wake().reason == "event" else wait_for_event("room_cleaned")

    Suite.objects.create(number="1")
    Suite.objects.create(number="2")
    work()
    room = Room.objects.get(pk="2")
    room.is_clean = True
    room.save()
    work()
    assert the_run(entity_id="2").status == "completed"
    assert the_run(entity_id="1").status == "suspended"


@pytest.mark.usefixtures("guest_flow")
def test_the_end_of_the_entity_is_the_end_of_the_wait(clock, work):
    stay, other = confirm(), confirm()
    work()
    pk = str(stay.pk)
    stay.delete()
    run = the_run(entity_id=pk)
    assert run.status == "cancelled"
    assert "deleted" in run.error
    assert pk in run.error
    assert the_run(entity_id=str(other.pk)).status == "suspended"


@pytest.mark.usefixtures("guest_flow")
def test_a_deletion_that_is_rolled_back_ends_nothing(work):
    stay = confirm()
    work()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Reservation.objects.get(pk=stay.pk).delete()
        raise ZeroDivisionError
    assert the_run().status == "suspended"


def test_who_waits_for_any_is_not_ended_by_a_deletion(work):
    match_flow({})
    run = begin(work, "matching")
    document = Document.objects.create(reservation=Reservation.objects.create())
    document.delete()
    work()
    assert status(run) in ("suspended", "completed")
    assert run.status != "cancelled"


@pytest.mark.usefixtures("guest_flow")
def test_a_signal_by_hand_on_an_events_channel_wakes_who_any_would_and_nobody_else(work):
    match_flow({}, "any", "guest_docs_uploaded")
    confirm()
    work()
    run = begin(work, "any")
    engine.signal("event:guest_docs_uploaded", {"docs_ready": True})
    work()
    assert (status(run), run.data["docs_ready"]) == ("completed", True)
    assert the_run(name="guest").status == "suspended"


@pytest.mark.usefixtures("guest_flow")
def test_a_signal_by_hand_on_an_events_channel_wakes_the_run_that_it_names(work):
    stay = confirm()
    work()
    run = the_run()
    engine.signal("event:guest_docs_uploaded", {"docs_ready": True}, run=run)
    work()
    assert (status(run), effects()) == ("completed", [f"{stay.pk} signal True"])


def test_waiting_on_an_events_channel_is_waiting_for_the_event(work):
    waiter(outcome=lambda self: wait("event:document_uploaded"))
    run = begin(work)
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "completed"


def test_a_custom_signal_is_not_woken_by_an_event_of_that_name(work):
    waiter(outcome=lambda self: wait("document_uploaded"))
    run = begin(work)
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert status(run) == "suspended"
    engine.signal("document_uploaded")
    work()
    assert status(run) == "completed"


@pytest.mark.parametrize("comes", [True, False])
def test_an_event_with_a_timeout(comes, clock, work):
    waiter(outcome=lambda self: wait_for_event("document_uploaded", timeout=HOUR, on_timeout="other"))
    run = begin(work)
    clock.tick(HOUR - SECOND)
    if comes:
        Document.objects.create(reservation=Reservation.objects.create())
    work()
    clock.tick(SECOND)
    work()
    assert status(run) == "completed"
    assert effects()[0] == ("event {'kind': 'passport'}" if comes else "other")


def test_an_entity_id_in_the_context_stays_its_own(work):
    @event_workflow("reservation_confirmed", name="own id")
    class OwnId:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                return complete()
            return wait_for_event("document_uploaded", match={"reservation_id": "{{ ctx.entity_id }}"})

    stay = confirm()
    work()
    for _ in range(3):
        Document.objects.create(reservation=Reservation.objects.create())
    Document.objects.create(reservation=stay)
    work()
    assert (the_run().status, the_run().data["entity_id"]) == ("completed", str(stay.pk))


# -- the decorator -----------------------------------------------------------------------------------------------------


@pytest.fixture
def decorated():
    @event_workflow("reservation_confirmed", name="decorated")
    class Decorated:
        class Context(BaseModel):
            docs_ready: bool = False

        @step(start=True)
        def first(self):
            return goto(self.second)

        @wait_for_event("guest_docs_uploaded", timeout=HOUR, on_timeout="without")
        @step()
        def second(self):
            leave(f"second {get_wake().reason} {self.context.docs_ready}")
            return complete()

        @step()
        def without(self):
            leave("without")
            return complete()


@pytest.mark.usefixtures("decorated")
def test_a_decorated_step_starts_when_its_event_has_come(clock, work):
    stay = confirm()
    clock.tick(SECOND)
    work()
    assert (the_run().status, the_run().current_step, effects()) == ("suspended", "second", [])
    upload(stay)
    work()
    assert effects() == ["second event True"]


@pytest.mark.usefixtures("decorated")
def test_a_decorated_step_times_out(clock, work):
    confirm()
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["without"]


@pytest.mark.parametrize("how", ["start", "sleep", "signal"])
def test_a_decorated_step_waits_however_it_was_reached(how, clock, work):
    body = {"Context": type("Context", (BaseModel,), {"__module__": __name__}), "__module__": __name__}

    def second(self):
        leave(f"second {get_wake().reason}")
        return complete()

    if how == "start":
        body["second"] = wait_for_event("guest_docs_uploaded")(step(start=True)(second))
    else:
        body["second"] = wait_for_event("guest_docs_uploaded")(step()(second))

        def first(self):
            return sleep(HOUR, then="second") if how == "sleep" else wait("bell", then="second")

        body["first"] = step(start=True)(first)
    event_workflow("reservation_confirmed", name="reached")(type("Reached", (), body))
    stay = confirm()
    clock.tick(SECOND)
    work()
    clock.tick(HOUR)
    engine.signal("bell")
    work()
    assert (the_run().status, effects()) == ("suspended", [])
    upload(stay)
    work()
    assert (the_run().status, effects()) == ("completed", ["second event"])


def test_occurrences_that_nobody_waits_for_cost_no_wake_up(work):
    waiter()
    begin(work)
    before = the_run().seq
    Document.objects.create(reservation=Reservation.objects.create())
    work()
    assert the_run().seq == before


def test_a_parked_event_wakes_nobody_until_it_is_resumed(work, monkeypatch):
    from tests.support.rows import definition_of, use_up_attempts

    match_flow({})
    run = begin(work, "matching")
    definition = definition_of(Document, "document_uploaded")
    right = definition.payload
    monkeypatch.setattr(definition, "payload", lambda document: 1 / 0)
    document = Document.objects.create(reservation=Reservation.objects.create())
    use_up_attempts(event_of(document, "document_uploaded"), work)
    assert status(run) == "suspended"
    monkeypatch.setattr(definition, "payload", right)
    event_of(document, "document_uploaded").resume()
    work()
    assert status(run) == "completed"


def test_a_process_that_dies_between_commit_and_telling_leaves_it_to_a_worker(clock, work, monkeypatch):
    from django_ai.automation.events import occurrence

    match_flow({})
    run = begin(work, "matching")
    notify = occurrence.notify_subscribers
    monkeypatch.setattr(occurrence, "notify_subscribers", lambda *args, **kwargs: None)
    clock.tick(SECOND)
    document = Document.objects.create(reservation=Reservation.objects.create())
    assert event_of(document, "document_uploaded").status == "processed"
    work()
    assert status(run) == "suspended"
    monkeypatch.setattr(occurrence, "notify_subscribers", notify)
    clock.tick(timedelta(seconds=11))
    work()
    assert status(run) == "completed"


def test_a_worker_that_dies_after_registering_and_before_looking(clock, work, monkeypatch):
    from django_ai.automation.workflows import runner

    waiter()
    settle = runner.settle
    monkeypatch.setattr(runner, "settle", lambda *args: None)
    run = engine.start("waiter")
    engine.signal("bell", run=run)
    Signal.objects.update(wake_at=None)  # delivered while the run was in hand: it stays in the inbox
    work()
    assert status(run) == "suspended"
    monkeypatch.setattr(runner, "settle", settle)
    clock.tick(timedelta(seconds=11))
    work()
    assert status(run) == "completed"


@pytest.mark.parametrize("seconds", [1, 100])
def test_a_worker_that_dies_before_it_has_looked_makes_no_timeout_of_what_had_come(seconds, clock, work, monkeypatch):
    from django_ai.automation.workflows import runner

    waiter(outcome=lambda self: wait("bell", timeout=seconds * SECOND, on_timeout="other"))
    settle = runner.settle
    monkeypatch.setattr(runner, "settle", lambda *args: None)
    run = engine.start("waiter")
    engine.signal("bell", run=run)
    Signal.objects.update(wake_at=None)  # delivered while the run was in hand: it stays in the inbox
    work()
    assert status(run) == "suspended"
    monkeypatch.setattr(runner, "settle", settle)
    clock.tick(timedelta(seconds=200))
    work()
    assert (status(run), effects()) == ("completed", ["signal"])
