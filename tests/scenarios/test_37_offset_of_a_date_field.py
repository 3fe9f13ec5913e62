"""Scenario 37: the offset of a ``DateField`` counts from midnight in ``TIME_ZONE``."""

from __future__ import annotations

from datetime import timedelta

import pytest
from dateutil.relativedelta import relativedelta
from pydantic import BaseModel

from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import complete, event_workflow, step
from tests.apps.reservations.models import Room
from tests.support.rows import effects, leave, the_run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def flow(offset) -> None:
    @event_workflow("inspection_due", offset=offset, name="inspection")
    class Inspection:
        class Context(BaseModel):
            pass

        @step(start=True)
        def inspect(self):
            leave("inspected")
            return complete()


@pytest.mark.parametrize("offset", [-2 * HOUR, 2 * HOUR, relativedelta(hours=-2), relativedelta(days=1)], ids=str)
def test_37_a_workflow_with_an_offset_runs(offset, clock, work):
    flow(offset)
    Room.objects.create(number="7", inspected_on=clock().date() + timedelta(days=2))
    midnight = clock() + 35 * HOUR  # in Berlin
    run = the_run()
    assert run.wake_at == midnight + offset
    work(run.wake_at - timedelta(seconds=1))
    assert effects() == []
    work(run.wake_at)
    assert effects() == ["inspected"]
    run.refresh_from_db()
    assert (run.status, run.error) == ("completed", "")


def test_37_a_date_that_moved_behind_djangos_back_moves_the_run(clock, work):
    flow(-2 * HOUR)
    room = Room.objects.create(number="7", inspected_on=clock().date() + timedelta(days=2))
    Room.objects.filter(pk=room.pk).update(inspected_on=clock().date() + timedelta(days=4))
    work(clock() + 33 * HOUR)
    run = the_run()
    assert (run.status, run.wake_at) == ("waiting", clock() + 81 * HOUR)
    assert effects() == []


def test_37_refreshing_an_event_reads_its_entity_again(clock):
    room = Room.objects.create(number="7", inspected_on=clock().date() + timedelta(days=2))
    event = Event.objects.of(room).get(event_name="inspection_due")
    assert event.entity.is_clean is False
    Room.objects.filter(pk=room.pk).update(is_clean=True)
    event.refresh_from_db()
    assert event.entity.is_clean is True
