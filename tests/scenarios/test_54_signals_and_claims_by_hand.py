"""Scenario 54: a signal is sent manually on the channel of an event; an agent takes over a claim.

A wait with a match compares the payload of the signal. Taking over a claim needs a higher priority or ``bump=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    claims,
    complete,
    engine,
    event_workflow,
    get_wake,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.core import AgentManager, agent, handler
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from django_ai.automation.workflows.checks import check_workflows
from django_ai.automation.workflows.definitions import all_workflows
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Reservation

UPLOADED = "document_uploaded"


@pytest.fixture
def two_agents() -> tuple[AgentRun, AgentRun]:
    """Spawn two agents that handle every document."""

    @agent("desk:claims", match={})
    class Answers:
        class Context(BaseModel):
            answered: int = 0

        @handler(UPLOADED)
        def answer(self, ctx):
            ctx.answered += 1

    return AgentManager.spawn("desk:claims"), AgentManager.spawn("desk:claims")


def upload(kind: str = "visa") -> Document:
    return Document.objects.create(reservation=Reservation.objects.create(), kind=kind)


def answered(*agents: AgentRun) -> list[int]:
    for each in agents:
        each.refresh_from_db()
    return [each.data["answered"] for each in agents]


@pytest.mark.django_db(transaction=True)
def test_54_a_higher_priority_takes_a_claim_over(two_agents, work):
    one, two = two_agents
    claims.hold(UPLOADED, owner=one, priority=1)
    upload()
    work()
    assert answered(one, two) == [1, 0]
    claims.hold(UPLOADED, owner=two, priority=2)
    upload()
    work()
    assert answered(one, two) == [1, 1]
    with pytest.raises(ClaimedError, match="bump=True"):
        claims.hold(UPLOADED, owner=one, priority=2)


@pytest.mark.django_db(transaction=True)
def test_54_bump_takes_a_claim_over_whatever_the_priority(two_agents, work):
    one, two = two_agents
    claims.hold(UPLOADED, owner=one, priority=100)
    claims.hold(UPLOADED, owner=two, priority=1, bump=True)
    upload()
    work()
    assert answered(one, two) == [0, 1]


@pytest.mark.django_db
def test_54_the_holder_of_an_entity(two_agents):
    one, two = two_agents
    visa, permit = upload("visa"), upload("permit")
    assert claims.holder(UPLOADED, visa) is None
    claims.hold(UPLOADED, {"kind": "visa"}, owner=one)
    assert claims.holder(UPLOADED, visa).owner == one
    assert claims.holder(UPLOADED, entity=visa).owner == one
    assert claims.holder(UPLOADED, permit) is None
    assert claims.holder(UPLOADED, {"kind": "visa"}).owner == one
    claims.hold(UPLOADED, {"kind__in": ["visa", "permit"]}, owner=two, priority=1)
    assert [claims.holder(UPLOADED, each).owner for each in (visa, permit)] == [two, two]


@pytest.mark.django_db
def test_54_the_holder_of_an_entity_in_a_namespace(two_agents, declare):
    one, _ = two_agents
    declare(Document, EventDefinition(UPLOADED, namespace=lambda each: each.kind))
    visa = upload()
    claims.hold(UPLOADED, owner=one, namespace="permit")
    assert claims.holder(UPLOADED, visa) is None
    assert claims.holder(UPLOADED, visa, namespace="permit").owner == one
    claims.hold(UPLOADED, owner=one, namespace="visa")
    assert claims.holder(UPLOADED, visa).namespace == "visa"


@pytest.mark.django_db
def test_54_what_has_no_such_event_has_no_holder(two_agents):
    with pytest.raises(DefinitionError, match=r"app\.Document does"):
        claims.holder(UPLOADED, Reservation())
    with pytest.raises(DefinitionError, match="not both"):
        claims.holder(UPLOADED, {"kind": "visa"}, entity=upload())


# -- manual signals on the channel of an event -------------------------------------------------------------------------


@pytest.fixture
def waiting_for() -> Callable[..., WorkflowRun]:
    """Return a function that starts a run, which waits for a document with a match."""

    def start(match: dict[str, Any] | None, **context: Any) -> WorkflowRun:
        @workflow("desk:waits", version=str(len(all_workflows())))
        class Waits:
            class Context(BaseModel):
                stay: int = 0
                kind: str = ""

            @step(start=True)
            def listen(self):
                return complete() if get_wake().reason == "signal" else wait_for_event(UPLOADED, match=match)

        return engine.start(Waits, **context)

    return start


BY_STAY = {"reservation_id": "{{ ctx.stay }}"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("match", "payload", "wakes"),
    [
        (BY_STAY, {"reservation_id": 5}, True),
        (BY_STAY, {"reservation_id": "5"}, True),
        (BY_STAY, {"reservation_id": 6}, False),
        (BY_STAY, {"kind": "visa"}, False),
        (BY_STAY, {}, False),
        (BY_STAY | {"kind": "visa"}, {"reservation_id": 5, "kind": "visa"}, True),
        (BY_STAY | {"kind": "visa"}, {"reservation_id": 5, "kind": "pass"}, False),
        ({"kind__in": ["visa", "pass"]}, {"kind": "visa"}, True),
        ({"kind__in": ["visa", "pass"]}, {"kind": "ticket"}, False),
        (BY_STAY | {"pk__gte": 7}, {"reservation_id": 5, "pk": 7}, True),
        (BY_STAY | {"pk__gte": 7}, {"reservation_id": 5, "pk": 6}, False),
        (BY_STAY | {"kind__icontains": "v"}, {"reservation_id": 5, "kind": "visa"}, False),
        ({}, {}, True),
        (None, {}, True),
    ],
)
@pytest.mark.parametrize("waits_first", [True, False], ids=["waits first", "signal first"])
def test_54_a_signal_by_hand_wakes_those_whose_match_its_payload_satisfies(
    waiting_for, work, match, payload, wakes, waits_first
):
    run = waiting_for(match, stay=5)
    if waits_first:
        work()
    engine.signal(f"event:{UPLOADED}", payload)
    work()
    work()
    run.refresh_from_db()
    assert run.status == ("completed" if wakes else "suspended")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("mine", [True, False])
def test_54_a_signal_by_hand_for_the_entity_of_a_run(work, mine):
    @event_workflow("reservation_confirmed", name="desk:own")
    class Own:
        class Context(BaseModel):
            pass

        @step(start=True)
        def listen(self):
            return complete() if get_wake().reason == "signal" else wait_for_event("guest_docs_uploaded")

    stay = Reservation.objects.create(status="confirmed")
    work()
    engine.signal("event:guest_docs_uploaded", {"entity_id": stay.pk if mine else stay.pk + 1})
    work()
    assert WorkflowRun.objects.get().status == ("completed" if mine else "suspended")


def test_54_a_step_that_only_waits_is_warned_of():
    @workflow("desk:stuck")
    class Stuck:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            """Wait for the desk."""
            return wait.for_signal("desk:open")

        @step()
        def second(self):
            return wait("desk:open", then=self.third)

        @step()
        def third(self):
            return complete() if get_wake().reason == "signal" else wait("desk:open")

    (warning,) = [found for found in check_workflows(None) if found.obj is Stuck]
    assert warning.id == "automation.W206"
    assert "'first' only waits" in warning.msg
    assert "then=" in warning.hint
