"""The first example of the README does what it says."""

from __future__ import annotations

import linecache
import re
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel

from django_ai.automation import Retry, complete, event_workflow, step, wait_for_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.workflows.checks import check_workflows
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Effect, Reservation
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

README = (Path(__file__).resolve().parents[3] / "README.md").read_text()
HOUR = timedelta(hours=1)


class Housekeeping:
    class objects:
        @staticmethod
        def create(reservation_id: int) -> None:
            leave(f"room for {reservation_id}")


@pytest.fixture
def before_arrival(declare) -> None:
    declare(
        Reservation,
        EventDefinition("passport_uploaded", condition=lambda stay: bool(stay.note)),
        EventDefinition("checkin_due", date_field="checkin_at", condition=lambda stay: stay.status == "confirmed"),
    )
    (source,) = re.findall(r"@event_workflow\(\"checkin_due\".*?\n\n\n", README, re.DOTALL)
    name = f"<readme {id(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names = {
        "BaseModel": BaseModel, "Housekeeping": Housekeeping, "Retry": Retry, "complete": complete,
        "event_workflow": event_workflow, "step": step, "timedelta": timedelta, "wait_for_event": wait_for_event,
        "__name__": "readme",
    }  # fmt: skip
    exec(compile(source, name, "exec"), names)


@pytest.mark.usefixtures("before_arrival")
def test_the_workflow_goes_on_with_the_passport_or_after_half_an_hour(clock, work):
    early, late = (Reservation.objects.create(status="confirmed", checkin_at=clock() + 2 * HOUR) for _ in range(2))
    work(clock.tick(HOUR))
    assert [run.status for run in WorkflowRun.objects.all()] == ["suspended"] * 2
    assert effects() == []
    early.note = "passport.pdf"
    early.save()
    work()
    assert effects() == [f"room for {early.pk}"]
    work(clock.tick(HOUR / 2))
    assert sorted(effects()) == sorted(f"room for {stay.pk}" for stay in (early, late))
    assert [run.status for run in WorkflowRun.objects.all()] == ["completed"] * 2
    assert Effect.objects.count() == 2
    assert check_workflows(None) == []
