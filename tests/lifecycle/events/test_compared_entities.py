"""What a match compares beyond its key: an entity, or the snapshot of one, as the database would compare it."""

from __future__ import annotations

import pytest

from django_ai.automation.events.declarations import declared_events
from django_ai.automation.events.matching.lookups import satisfies
from django_ai.automation.events.matching.match import address, entity_keys
from django_ai.automation.events.snapshots import restore_snapshot, take_snapshot
from tests.apps.reservations.models import Document, Guest, Reservation, Suite

pytestmark = pytest.mark.django_db


def snapshot(entity):
    return restore_snapshot(take_snapshot(entity))


@pytest.mark.parametrize(
    ("residual", "fits"), [({"stars__lt": 5.5}, True), ({"stars__gte": 5.5}, False), ({"stars__gt": 4.5}, True)]
)
def test_a_fraction_against_a_whole_number_is_compared_as_the_database_does(residual, fits):
    suite = Suite.objects.create(number="1", stars=5)
    assert satisfies(suite, residual) is fits
    assert satisfies(snapshot(suite), residual) is fits


def test_a_snapshots_relation_that_is_gone_fits_nothing():
    stay = snapshot(Reservation(pk=5, guest_id=7))
    assert satisfies(stay, {"guest__name__in": ["Ann"]}) is False
    assert entity_keys("e", stay, ["guest__name"]) == []
    assert entity_keys("e", stay, ["guest"]) == list(address("e", {"guest": 7}, declared_events()["checkin_due"]).keys)


def test_a_living_entity_is_asked_of_the_database():
    stay = Reservation.objects.create(status="paid", guest=Guest.objects.create(name="O'Brien"))
    Document.objects.create(reservation=stay, kind="visa")
    stay.status = "changed in memory only"
    assert satisfies(stay, {"status__iexact": "PAID"})
    assert satisfies(stay, {"documents__kind": "visa", "guest__name__contains": "'"})
    assert not satisfies(stay, {"documents__kind": "permit"})
    for nonsense in ({"pk__gt": "x"}, {"checkin_at__lt": "soon"}, {"nothing": 1}, {"status__nothing": 1}):
        assert satisfies(stay, nonsense) is False
    Reservation.objects.all().delete()
    assert not satisfies(stay, {"status__iexact": "PAID"})
