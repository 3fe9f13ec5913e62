"""Scenario 59: a primary key in another notation is the same entity. A key that is too long is refused."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import models
from django.test.utils import isolate_apps

from django_ai.automation.events import checks
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError
from tests.apps.reservations.models import Page, Room, Suite, Ticket, Ware

pytestmark = pytest.mark.django_db(transaction=True)

KEY = uuid.UUID("6f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
NOTATIONS = [str(KEY).upper(), KEY.hex, f"{{{KEY}}}", f"urn:uuid:{KEY}"]


@pytest.mark.parametrize("notation", NOTATIONS)
def test_59_a_uuid_in_another_notation(notation, clock, work):
    Ticket.objects.create(pk=KEY, open=True, due_at=clock() + timedelta(hours=1))
    ticket = Ticket(pk=notation, open=False, due_at=clock() + timedelta(hours=1))
    ticket._state.adding = False
    ticket.save()
    work()
    assert set(Event.objects.values_list("entity_id", flat=True)) == {str(KEY)}
    assert Event.objects.filter(event_name="ticket_closed", status="processed").count() == 1
    assert Event.objects.of(ticket).count() == 2
    ticket.pk = notation
    ticket.delete()
    assert not Event.objects.exclude(active_key=None).exists()


def test_59_a_decimal_with_fewer_places(work):
    Ware.objects.create(code=Decimal("1.50"), sold=True)
    work()
    for code in ("1.5", Decimal("1.5"), Decimal("1.500")):
        Ware(code=code, sold=True).save()
        work()
    sold = Event.objects.filter(event_name="ware_sold")
    assert list(sold.values_list("entity_id", "status")) == [("1.50", "processed")]
    Ware(code=Decimal("1.5")).delete()
    assert not Event.objects.exclude(active_key=None).exists()


def test_59_a_key_that_is_too_long_is_refused_before_the_save():
    with pytest.raises(DefinitionError, match=r"app\.Page.* has 256 characters.*at most 255"):
        Page(path="x" * 256).save()
    assert not Page.objects.exists()
    Page(path="x" * 255).save()
    assert Event.objects.get().entity_id == "x" * 255


def test_59_a_parent_that_is_kept_keeps_its_event(work):
    suite = Suite.objects.create(number="9", is_clean=True)
    work()
    suite.delete(keep_parents=True)
    room = Room.objects.get(number="9")
    room.save()
    work()
    assert Event.objects.filter(event_name="room_cleaned").count() == 1
    room.delete()
    assert not Event.objects.exclude(active_key=None).exists()


@isolate_apps("tests.apps.reservations")
def test_59_a_relation_that_replaces_the_list(monkeypatch):
    class Concert(models.Model):
        events = [EventDefinition("concert_over")]

        class Meta:
            app_label = "app"

    class Song(models.Model):
        concert = models.ForeignKey(Concert, on_delete=models.CASCADE, related_name="events")

        class Meta:
            app_label = "app"

    monkeypatch.setattr(checks.apps, "get_models", lambda: [Concert, Song])
    (error,) = checks._check_lost_lists()
    assert error.id == "automation.E110"
    assert 'related_name="events"' in error.msg
