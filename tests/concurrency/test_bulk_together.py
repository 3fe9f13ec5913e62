"""Two workers and one bulk action: each row is changed once, and the counts are right."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation import acting_as, engine, step, wait, workflow
from django_ai.automation.queues.bulk import performing
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action
from tests.support.race import OtherThread

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

RUNS = 24


@pytest.mark.slow
def test_two_workers_carry_out_one_bulk_action(monkeypatch):
    monkeypatch.setattr(performing, "ROWS_PER_BITE", 2)

    @workflow("bulk:together")
    class Together:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return wait("reply", then=self.begin)

    for _ in range(RUNS):
        engine.start("bulk:together")
    drain()
    with acting_as("system:test"):
        bulk = engine.bulk("cancel", name="bulk:together", reason="Enough.")
    other = OtherThread(drain)
    drain()
    other.join()
    drain()
    bulk.refresh_from_db()
    assert (bulk.status, bulk.done, bulk.refused, bulk.failed) == ("completed", RUNS, 0, 0)
    assert engine.runs("bulk:together", status="cancelled").count() == RUNS
    keys = list(Action.objects.filter(done="Cancelled").values_list("key", flat=True))
    assert len(keys) == len(set(keys)) == RUNS
