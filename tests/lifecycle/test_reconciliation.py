"""Reconciliation: each model is looked at, whatever becomes of the others."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation.events import reconcile
from django_ai.automation.events.models import Event
from tests.app.models import Reservation, Room, Ticket

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
