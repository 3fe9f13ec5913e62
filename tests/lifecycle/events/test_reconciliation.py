"""Reconciliation: every model is checked, even if another model fails."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, agent, handler
from django_ai.automation.agents import reconcile as agents
from django_ai.automation.agents.models import AgentRoute, AgentRun
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording import reconcile
from django_ai.automation.exceptions import AutomationError
from django_ai.automation.queues.periodic_tasks import TimeSlice
from tests.apps.reservations.models import Reservation, Room, Ticket

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("broken", [Reservation, Room, Ticket])
def test_a_model_that_raises_does_not_stop_the_others(broken, clock, monkeypatch, caplog):
    soon = clock() + timedelta(minutes=1)
    Reservation.objects.bulk_create([Reservation(status="confirmed", checkin_at=soon)])
    Room.objects.bulk_create([Room(number="7", inspected_on=clock().date())])
    Ticket.objects.bulk_create([Ticket(due_at=soon)])
    record = reconcile.record

    def fail_for_one(entities, *args, **kwargs):
        if isinstance(entities[0], broken):
            raise RuntimeError("a column is gone")
        return record(entities, *args, **kwargs)

    monkeypatch.setattr(reconcile, "record", fail_for_one)
    with pytest.raises(RuntimeError, match="a column is gone"):
        reconcile.reconcile_dates(clock())
    labels = {model._meta.label_lower for model in (Reservation, Room, Ticket)}
    assert set(Event.objects.values_list("entity_type", flat=True)) == labels - {broken._meta.label_lower}
    assert broken._meta.label_lower in caplog.text


def slices(take, clock, at_least):
    """Run slices of minimum length until none is left, and return how many rows each of them changed."""
    done, position = [], None
    while True:
        slice_result = take(TimeSlice(clock(), json.loads(json.dumps(position)), until=0.0))
        done.append(slice_result.done)
        position = slice_result.position
        if position is None:
            assert len(done) >= at_least
            return done
        assert len(done) < 100


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(reconcile, "ENTITIES_PER_TRANSACTION", 2)
    monkeypatch.setattr(reconcile, "KEYS_PER_QUERY", 3)
    monkeypatch.setattr(agents, "ROWS_PER_CHUNK", 2)


@pytest.mark.usefixtures("small")
def test_dates_are_reconciled_in_time_slices(clock):
    """Slices cover several models, key types and equal dates.

    Rows whose condition is false are read every time, but do not block other rows.
    """
    soon = clock() + timedelta(minutes=1)
    for status in ("pending", "confirmed"):
        Reservation.objects.bulk_create(
            [Reservation(status=status, checkin_at=soon + timedelta(seconds=each // 3)) for each in range(7)]
        )
    Room.objects.bulk_create(
        [Room(number=f"{each}", inspected_on=(clock() + timedelta(days=each % 2)).date()) for each in range(7)]
    )
    Ticket.objects.bulk_create([Ticket(due_at=soon) for _ in range(7)])
    done = slices(reconcile.reconcile_slice, clock, at_least=12)
    expected = {"checkin_due": 14, "inspection_due": 7, "ticket_due": 7}
    for name, number in expected.items():
        assert Event.objects.filter(event_name=name).count() == number
    assert Event.objects.count() == sum(done)
    assert max(done) <= 2
    assert sum(slices(reconcile.reconcile_slice, clock, at_least=1)) == 0


@pytest.mark.usefixtures("small")
def test_an_error_of_an_early_slice_is_raised_after_the_last(clock, monkeypatch):
    soon = clock() + timedelta(minutes=1)
    Reservation.objects.bulk_create([Reservation(status="confirmed", checkin_at=soon)])
    Ticket.objects.bulk_create([Ticket(due_at=soon) for _ in range(5)])
    record = reconcile.record

    def fail_for_one(entities, *args, **kwargs):
        if isinstance(entities[0], Reservation):
            raise RuntimeError("a column is gone")
        return record(entities, *args, **kwargs)

    monkeypatch.setattr(reconcile, "record", fail_for_one)
    with pytest.raises(AutomationError, match="RuntimeError: a column is gone"):
        slices(reconcile.reconcile_slice, clock, at_least=100)
    assert Event.objects.filter(event_name="ticket_due").count() == 5


@pytest.mark.usefixtures("small")
def test_agents_get_their_routes_in_time_slices(clock, monkeypatch):
    """Runs whose routes cannot be computed are tried once per reconciliation and do not block other runs."""

    @agent("driver", spawn_on="reservation_confirmed")
    class Driver:
        class Context(BaseModel):
            entity_id: str

        @handler("checkin_due", match={"id": "{{ ctx.entity_id }}"})
        def due(self):
            pass

    runs = [AgentManager.spawn("driver", entity_id=f"{each}") for each in range(9)]
    AgentRun.objects.update(routing="0")
    broken = {runs[0].pk, runs[1].pk, runs[2].pk}
    AgentRun.objects.filter(pk__in=broken).update(data={"nonsense": 1})
    AgentRoute.objects.all().delete()
    assert sum(slices(agents.reconcile_slice, clock, at_least=9)) == 6
    assert set(AgentRun.objects.filter(routing="0").values_list("pk", flat=True)) == broken
