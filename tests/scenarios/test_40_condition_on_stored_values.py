"""Scenario 40: conditions are evaluated on the values that the database stores, not on the values in memory."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.db import connection, models
from django.test.utils import CaptureQueriesContext

from django_ai.automation.events.models import Event
from tests.apps.reservations.models import Ware

pytestmark = pytest.mark.django_db(transaction=True)


def occurred() -> set[str]:
    return set(Event.objects.occurred().values_list("event_name", flat=True))


@pytest.mark.parametrize(
    "price", [19.99, "19.99", Decimal("19.990"), Decimal("19.9900"), models.Value(Decimal("19.99"))]
)
@pytest.mark.parametrize("is_new", [True, False])
def test_40_a_decimal(price, is_new, work):
    ware = Ware.objects.create(code=Decimal("1.00")) if not is_new else Ware(code=Decimal("1.00"))
    ware.price = price
    ware.save()
    work()
    assert occurred() == {"ware_dear"}
    assert not Event.objects.filter(status="parked").exists()


@pytest.mark.parametrize("pieces", ["100", 100.0, 100.9])
def test_40_a_number_as_text(pieces, work):
    Ware.objects.create(code=Decimal("1.00"), pieces=pieces)
    work()
    assert occurred() == {"ware_many", "ware_doubled"}


def test_40_a_generated_field_follows_its_save(work):
    ware = Ware.objects.create(code=Decimal("1.00"), pieces=1)
    ware.pieces = 6
    ware.save()
    work()
    assert occurred() == {"ware_doubled"}


def test_40_nothing_is_read_where_nothing_can_differ():
    from tests.apps.reservations.models import Ticket

    ticket = Ticket.objects.create()
    with CaptureQueriesContext(connection) as queries:
        ticket.save()
    assert len([each for each in queries if each["sql"].startswith("SELECT")]) == 1
