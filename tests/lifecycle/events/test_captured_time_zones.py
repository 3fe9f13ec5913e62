"""Captured writes of entities with time zones: each write counts in the zone that its entity had then, and the rows
with the zones of many entities are read together."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.queues import drain
from tests.apps.captured.models import Everything, Parcel
from tests.support.captured_writes import outbox
from tests.support.rows import event_of

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)
NEW_YORK, TOKYO = "America/New_York", "Asia/Tokyo"


@pytest.fixture(autouse=True)
def due(declare, monkeypatch):
    """Declare one event, in the time zone that the ``code`` of a parcel names; a worker claims many rows at once."""
    monkeypatch.setattr(drain, "_batch_size", lambda model: 100)
    definition = EventDefinition("everything_due", date_field="moment", timezone="parcel__code", capture=True)
    declare(Everything, definition)
    return definition


def parcel(tz: str) -> Parcel:
    return Parcel.objects.create(code=tz)


def reads_of_parcels(work) -> int:
    """Perform the captured writes; return how many statements read parcels."""
    assert outbox()
    with CaptureQueriesContext(connection) as queries:
        work()
    assert outbox() == []
    table = connection.ops.quote_name(Parcel._meta.db_table)
    return sum(query["sql"].startswith("SELECT") and table in query["sql"] for query in queries)


@pytest.mark.parametrize("number", [2, 9])
def test_the_zones_of_many_entities_are_read_with_one_query_for_each_wave(clock, work, number):
    parcels = [parcel(tz) for tz in (NEW_YORK, TOKYO) for _ in range(number)]
    work()
    Everything.objects.bulk_create([Everything(parcel=each, moment=clock.now + 9 * DAY) for each in parcels])
    assert reads_of_parcels(work) == 1
    zones = Event.objects.filter(declared_as="everything_due").values_list("timezone", flat=True)
    assert sorted(zones) == [NEW_YORK] * number + [TOKYO] * number
    Everything.objects.update(moment=clock.now + 8 * DAY)
    assert reads_of_parcels(work) == 1
    Everything.objects.update(moment=clock.now + 7 * DAY)
    Everything.objects.update(moment=clock.now + 6 * DAY)
    assert reads_of_parcels(work) == 2


def test_each_write_counts_in_the_zone_that_the_entity_had_then(clock, work, monkeypatch, due):
    seen = []
    monkeypatch.setattr(due, "timezone_of", lambda entity: seen.append(entity.parcel.code) or entity.parcel.code)
    one = Everything.objects.create(parcel=parcel(NEW_YORK), moment=clock.now + 9 * DAY)
    work()
    seen.clear()
    for tz in (TOKYO, "UTC"):
        Everything.objects.update(parcel=parcel(tz), moment=clock.now + 9 * DAY)
    work()
    assert seen == [TOKYO, "UTC"]
    assert event_of(one, "everything_due").timezone == "UTC"


def test_an_entity_without_a_parcel_has_the_zone_of_the_project(clock, work):
    Everything.objects.bulk_create(
        [Everything(parcel=each, moment=clock.now + 9 * DAY) for each in (None, parcel(TOKYO), None)]
    )
    work()
    zones = Event.objects.filter(declared_as="everything_due").values_list("timezone", flat=True)
    assert sorted(zones) == ["", "", TOKYO]
