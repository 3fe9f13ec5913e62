"""Scenario 54: a signal is sent by hand for an event; a claim is bumped.

Correlated waits compare its payload; the higher priority wins.
"""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation import claims
from django_ai.automation.agents.core import AgentManager, agent, handler
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.exceptions import ClaimedError, DefinitionError
from tests.app.models import Document, Reservation

UPLOADED = "document_uploaded"


@pytest.fixture
def two_agents() -> tuple[AgentRun, AgentRun]:
    """Two agents that answer every document."""

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
    with pytest.raises(DefinitionError, match=r"declared by .*Document"):
        claims.holder(UPLOADED, Reservation())
    with pytest.raises(DefinitionError, match="not both"):
        claims.holder(UPLOADED, {"kind": "visa"}, entity=upload())
