"""Agents and events without a model: spawned by one, handling those that match by their payload."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, FreeEvent, agent, claims, emit, event_workflow, handler, step
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.agents.reconcile import reconcile_agents
from django_ai.automation.events import free_events
from django_ai.automation.events.commit_batch import CommitBatch
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from django_ai.automation.workflows.core import complete
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.free_events import PAID, Payment, paid
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ORDERED = "ordered"


class OfOrder(BaseModel):
    order_id: int
    cents: int = 0
    kinds: list[str] = ["card", "cash"]


BY_ORDER = {"order_id": "{{ ctx.order_id }}"}


def keeper(name="keeper", spawn_on=ORDERED, match=BY_ORDER, **options):
    """Declare an agent for each order, which leaves behind what it handles."""

    @agent(name, spawn_on=spawn_on, match=match, **options)
    class Keeper:
        Context = OfOrder

        @handler(ORDERED)
        def ordered(self, ctx):
            leave(f"ordered {ctx.order_id}")

        @handler(PAID)
        def paid(self, ctx, event):
            ctx.cents += event.payload.get("cents", 0)
            leave(f"paid {ctx.order_id}: {ctx.cents}")


@pytest.fixture(autouse=True)
def declared():
    paid()
    FreeEvent(ORDERED)


def test_it_is_spawned_and_handles_what_matches(work):
    keeper()
    for number in (7, 8):
        emit(ORDERED, {"order_id": number})
    work()
    for number, cents in ((7, 5), (8, 1), (9, 100), (7, 6)):
        emit(PAID, {"order_id": number, "cents": cents})
        work()
    assert sorted(effects()) == ["ordered 7", "ordered 8", "paid 7: 11", "paid 7: 5", "paid 8: 1"]
    first = AgentRun.objects.order_by("pk").first()
    assert (first.entity_type, first.entity_id, first.data["order_id"]) == ("", "", 7)


def test_a_singleton_is_spawned_once_for_each_match(work):
    keeper(singleton=True)
    for number in (7, 7, 8, 7):
        emit(ORDERED, {"order_id": number}, key=None)
        work()
    assert AgentRun.objects.count() == 2
    assert sorted(effects()) == ["ordered 7"] * 3 + ["ordered 8"]


def test_a_singleton_that_is_not_active_yet_receives_all(work):
    keeper(singleton=True)
    for _ in range(3):
        emit(ORDERED, {"order_id": 7})
    for _ in range(3):
        work()
    assert AgentRun.objects.count() == 1
    assert effects() == ["ordered 7"] * 3


def test_what_occurs_before_its_routes_exist_is_caught_up(work):
    keeper()
    emit(ORDERED, {"order_id": 7})
    emit(PAID, {"order_id": 7, "cents": 1})
    emit(PAID, {"order_id": 8, "cents": 1})
    assert AgentRun.objects.get().status == "pending"
    work()
    assert effects() == ["ordered 7", "paid 7: 1"]


def test_what_was_before_it_is_not_for_it(work):
    keeper()
    emit(PAID, {"order_id": 7, "cents": 1})
    emit(ORDERED, {"order_id": 7})
    work()
    assert effects() == ["ordered 7"]


def test_what_is_emitted_after_the_spawning_event_is_for_its_agent_though_it_occurs_first(work, monkeypatch):
    """Another process has the spawning event in hand, or the one that emitted it died."""
    keeper()
    emit(PAID, {"order_id": 7, "cents": 100})
    with monkeypatch.context() as patch:
        patch.setattr(CommitBatch, "__call__", lambda self: self._due.clear())
        emit(ORDERED, {"order_id": 7})
    emit(PAID, {"order_id": 7, "cents": 1})
    work()
    work()
    assert effects() == ["ordered 7", "paid 7: 1"]


def test_a_handler_without_a_match_receives_every_event(work):
    @agent("listener", spawn_on=ORDERED)
    class Listener:
        class Context(BaseModel):
            order_id: int

        @handler(PAID)
        def paid(self, ctx, event):
            leave(f"{ctx.order_id} heard {event.payload}")

    emit(ORDERED, {"order_id": 7}, key="a")
    work()
    emit(PAID, {"n": 1})
    emit(PAID, {"n": 2})
    work()
    assert effects() == ["7 heard {'n': 1}", "7 heard {'n': 2}"]


def test_lookups_and_lists(work):
    @agent("picky", spawn_on=ORDERED)
    class Picky:
        Context = OfOrder

        @handler(PAID, match={"kind__in": "{{ ctx.kinds }}", "cents__gte": "{{ ctx.order_id }}"})
        def paid(self, event):
            leave(event.payload)

    emit(ORDERED, {"order_id": 7})
    work()
    for kind, cents in (("card", 7), ("card", 6), ("bank", 7), ("cash", 8)):
        emit(PAID, {"kind": kind, "cents": cents})
    work()
    assert effects() == ["{'kind': 'card', 'cents': 7}", "{'kind': 'cash', 'cents': 8}"]


def test_a_schema_gives_the_types(work):
    free_events.unregister(free_events.find_free_event(PAID))
    paid(Payment)

    @agent("strict", spawn_on=ORDERED)
    class Strict:
        class Context(BaseModel):
            number: str = "7"

        @handler(PAID, match={"order_id": "{{ ctx.number }}"})
        def paid(self, event):
            leave(event.payload["order_id"])

    emit(ORDERED)
    emit(PAID, {"order_id": "7"})
    work()
    emit(PAID, {"order_id": 7})
    work()
    assert effects() == ["7", "7"]


def test_one_handler_may_handle_events_of_models_and_others(work):
    """The match of ``*`` compares fields of entities and of payloads."""

    @agent("all", spawn_on=ORDERED)
    class All:
        Context = OfOrder

        @handler("*", match={"order_id": "{{ ctx.order_id }}"})
        def any(self, event):
            leave(event.event_name)

    emit(ORDERED, {"order_id": 7})
    work()
    emit(PAID, {"order_id": 7})
    emit(PAID, {"order_id": 8})
    work()
    assert effects() == [ORDERED, PAID]


def test_offsets_of_scheduled_events(clock, work):
    @agent("reminds", spawn_on=ORDERED, match=BY_ORDER)
    class Reminds:
        Context = OfOrder

        @handler(PAID, offset=-HOUR)
        def before(self):
            leave("before")

        @handler(PAID)
        def at(self):
            leave("at")

        @handler(PAID, offset=HOUR)
        def after(self):
            leave("after")

    emit(ORDERED, {"order_id": 7})
    work()
    emit(PAID, {"order_id": 7}, at=clock.now + 2 * HOUR)
    for expected in (["before"], ["before", "at"], ["before", "at", "after"]):
        clock.tick(HOUR)
        work()
        assert effects() == expected


def test_a_milestone_before_the_date_is_caught_up(clock, work):
    @agent("reminds", spawn_on=ORDERED, match=BY_ORDER)
    class Reminds:
        Context = OfOrder

        @handler(PAID, offset=-HOUR)
        def before(self):
            leave("before")

        @handler(PAID)
        def at(self):
            leave("at")

    emit(PAID, {"order_id": 7}, at=clock.now + HOUR)
    work()
    emit(ORDERED, {"order_id": 7})
    work()
    assert effects() == ["before"]
    clock.tick(HOUR)
    work()
    assert effects() == ["before", "at"]


def test_code_spawns_with_an_event(work):
    keeper(spawn_on=None)
    event = emit(ORDERED, {"order_id": 7})
    event.refresh_from_db()
    run = AgentManager.spawn("keeper", event=event)
    work()
    assert (run.entity_id, effects()) == ("", ["ordered 7"])


def test_an_execution_whose_handler_was_missing_resumes(work):
    keeper()
    emit(ORDERED, {"order_id": 7})
    work()
    emit(PAID, {"order_id": 7})
    HandlerExecution.objects.filter(handler="paid").update(handler="was_paid")
    work()
    assert HandlerExecution.objects.get(handler="was_paid").status == "parked"
    HandlerExecution.objects.filter(handler="was_paid").update(handler="paid")
    reconcile_agents(HandlerExecution.objects.get(handler="paid").parked_at)
    work()
    assert effects() == ["ordered 7", "paid 7: 0"]


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claim_keeps_events_with_a_payload_that_matches(work):
    @agent("claims", spawn_on=ORDERED, match=BY_ORDER)
    class Claims:
        Context = OfOrder

        @handler(ORDERED)
        def take(self, ctx):
            claims.hold(PAID, {"order_id": ctx.order_id})

        @handler(PAID)
        def paid(self, event):
            leave(f"agent {event.payload['order_id']}")

    @event_workflow(PAID, name="books")
    class Books:
        class Context(BaseModel):
            order_id: int

        @step(start=True)
        def book(self):
            leave(f"workflow {self.context.order_id}")
            return complete()

    emit(ORDERED, {"order_id": 7})
    work()
    assert claims.holder(PAID, {"order_id": 7}) is not None
    for number in (7, 8):
        emit(PAID, {"order_id": number})
        work()
    assert effects() == ["agent 7", "workflow 8"]
    assert WorkflowRun.objects.get(status="cancelled").error.startswith("Skipped: 'payment.received'")
    with pytest.raises(ClaimedError):
        claims.hold(PAID, {"order_id": 7}, owner=AgentManager.spawn("claims", order_id=9))


def test_a_claim_on_a_field_that_the_schema_does_not_have():
    free_events.unregister(free_events.find_free_event(PAID))
    paid(Payment)
    keeper()
    run = AgentManager.spawn("keeper", order_id=1)
    with pytest.raises(DefinitionError, match="Did you mean 'order_id'"):
        claims.hold(PAID, {"order": 7}, owner=run)


def test_a_claim_ends_after_a_number_of_events(work):
    keeper()
    run = AgentManager.spawn("keeper", order_id=1)
    claims.hold(PAID, {"order_id": 7, "cents__gte": 5}, owner=run, expires_after_events=1)
    emit(PAID, {"order_id": 7, "cents": 4})
    assert claims.holder(PAID, {"order_id": 7, "cents__gte": 5}) is not None
    emit(PAID, {"order_id": 7, "cents": 5})
    assert claims.holder(PAID, {"order_id": 7, "cents__gte": 5}) is None
