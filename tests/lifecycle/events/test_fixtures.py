"""Fixtures: ``loaddata`` records no occurrence; later saves do."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import Event
from tests.apps.reservations.models import Reservation, Suite
from tests.support.immediate_events import occurred
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

CONFIRMED = "reservation_confirmed"


@pytest.fixture(autouse=True)
def heard():
    """Write an effect for each occurrence of these events."""
    for name in (CONFIRMED, "guest_docs_uploaded", "ticket_closed", "room_cleaned", "suite_opened", "vip_arrived"):

        @on_event(name, name=f"hear {name}")
        def hear(event):
            leave(f"{event.event_name} {event.entity_id}")


def dump(file, *labels):
    call_command("dumpdata", *labels, output=str(file), verbosity=0)


def load(file):
    call_command("loaddata", str(file), verbosity=0)


def test_a_fixture_fires_nothing_but_later_saves_do(tmp_path, work):
    Reservation.objects.create(status="confirmed")
    Reservation.objects.create()
    dump(tmp_path / "stays.json", "app.reservation")
    Reservation.objects.all().delete()
    Event.objects.all().delete()
    load(tmp_path / "stays.json")
    work()
    assert effects() == []
    assert occurred() == 0
    known, open_ = Reservation.objects.order_by("pk")
    known.save()
    work()
    assert effects() == []  # it was already confirmed when it was loaded: the baseline
    known.docs = open_.docs = True
    known.save()
    open_.status = "confirmed"
    open_.save()
    work()
    assert sorted(effects()) == sorted(
        [f"guest_docs_uploaded {known.pk}", f"{CONFIRMED} {open_.pk}", f"guest_docs_uploaded {open_.pk}"]
    )


def test_a_fixture_over_living_rows_fires_nothing(tmp_path, work):
    stay = Reservation.objects.create(status="confirmed")
    work()
    dump(tmp_path / "stays.json", "app.reservation")
    before = list(Event.objects.values_list("pk", "status"))
    load(tmp_path / "stays.json")
    work()
    assert list(Event.objects.values_list("pk", "status")) == before
    assert effects() == [f"{CONFIRMED} {stay.pk}"]


@pytest.mark.exact_times
@pytest.mark.parametrize(
    "labels",
    [("app", "automation_events", "automation_workflows"), ("automation_workflows", "automation_events", "app")],
)
def test_everything_can_be_dumped_and_loaded(labels, tmp_path, clock, work):
    from datetime import timedelta

    @on_event("checkin_due")
    def arrive(event):
        leave(f"arrived {event.entity_id}")

    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(hours=1))
    Suite.objects.create(number="7", is_clean=True)
    work()
    before, left = list(Event.objects.order_by("pk").values()), effects()
    dump(tmp_path / "all.json", *labels)
    call_command("flush", interactive=False, verbosity=0)
    assert not Event.objects.exists()
    load(tmp_path / "all.json")
    assert list(Event.objects.order_by("pk").values()) == before
    work()
    assert effects() == left
    clock.tick(timedelta(hours=1))
    work()
    work()
    assert effects() == [*left, f"arrived {stay.pk}"]
