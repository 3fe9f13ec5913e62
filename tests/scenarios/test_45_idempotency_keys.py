"""All attempts of a call share one idempotency key. No other call gets it, even if primary keys recur."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    agent,
    complete,
    engine,
    goto,
    handler,
    idempotency_key,
    on_event,
    step,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Probe

pytestmark = pytest.mark.django_db(transaction=True)

TWICE = Retry(max_attempts=2, base_delay=timedelta(0))


class Shop:
    """Records what the project charges, and with which idempotency key."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, str]] = []

    def charge(self, who: str) -> None:
        self.keys.append((who, idempotency_key()))

    def of(self, who: str) -> list[str]:
        return [key for name, key in self.keys if name == who]


@pytest.fixture
def shop() -> Shop:
    found = Shop()

    @workflow("order", default_retry=TWICE)
    class Order:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def charge(self):
            found.charge("step")
            self.context.tries += 1
            if self.context.tries == 1:
                raise LookupError("once more")
            return goto(self.ship)

        @step()
        def ship(self):
            found.charge("next step")
            return complete()

    @on_event("probe_ready", name="shop.invoice")
    def invoice(event):
        found.charge("callback")

    @agent("keeper", spawn_on="probe_ready")
    class Versioned:
        class Context(BaseModel):
            pass

        @handler("probe_ready")
        def note(self, ctx):
            found.charge("handler")

    return found


def live_through(work) -> None:
    engine.start("order")
    Probe.objects.create(name="x", ready=True)
    work()


def as_restored_from_before() -> None:
    """Delete all rows, as if the database was restored from a backup that is older than they are."""
    for model in (HandlerExecution, AgentRun, CallbackExecution, WorkflowRun):
        model.objects.all().delete()
    Event.objects.all().delete()
    Probe.objects.all().delete()


def test_45_the_key_is_one_for_all_attempts_and_another_for_each_visit(shop, work):
    live_through(work)
    first, second = shop.of("step")
    assert first == second
    assert len({key for _, key in shop.keys}) == len(shop.keys) - 1


def test_45_a_restore_brings_no_key_back(shop, work):
    live_through(work)
    before, pk = {key for _, key in shop.keys}, WorkflowRun.objects.get(name="order").pk
    as_restored_from_before()
    shop.keys.clear()
    run = engine.start("order")
    if run.pk != pk:  # without a restore, this database does not reuse a primary key
        WorkflowRun.objects.filter(pk=run.pk).delete()
        run.pk = pk
        run.save(force_insert=True)
    Probe.objects.create(name="x", ready=True)
    work()
    assert {who for who, _ in shop.keys} == {"step", "next step", "callback", "handler"}
    assert before.isdisjoint({key for _, key in shop.keys})


def test_45_a_key_says_nothing_that_another_database_says_too(shop, work):
    live_through(work)
    run = WorkflowRun.objects.get(name="order")
    execution = CallbackExecution.objects.get(callback="shop.invoice")
    for key, row in ((run.idempotency_key, run), (execution.idempotency_key, execution)):
        assert len(row.call_key) == 32
        assert row.call_key in key
    assert run.call_key != execution.call_key
