"""05, a step that kills its worker: each loss is counted before the step runs again. After ``MAX_LOSSES`` losses the
run is parked with a reason, other runs of its batch continue, and an operator can resume it after a fix."""

from __future__ import annotations

import subprocess
from contextlib import suppress

import pytest
from pydantic import BaseModel

from django_ai.automation import complete, engine, step, workflow
from django_ai.automation.conf import conf
from django_ai.automation.queues.attempt import ShutdownInterrupt
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark
from tests.support.child_processes import start_worker
from tests.support.polling import until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180), pytest.mark.alone]

LEASE = 1.0


def test_05_real_seconds_a_step_kills_its_worker_again_and_again(tmp_path):
    tries, cure = tmp_path / "tries", tmp_path / "cure"
    before = [engine.start("story:count", steps=1) for _ in range(3)]
    poison = engine.start("story:poison", tries=str(tries), cure=str(cure))
    after = [engine.start("story:count", steps=1) for _ in range(3)]
    worker: subprocess.Popen[bytes] | None = None
    died = 0

    def parked() -> bool:
        nonlocal worker, died
        if worker is None or worker.poll() is not None:
            if worker is not None:
                assert worker.returncode == 9
                died += 1
                # The next claim counts a loss, so the last one is not counted yet.
                assert WorkflowRun.objects.get(pk=poison.pk).losses == died - 1
            worker = start_worker(TEST_LEASE_SECONDS=str(LEASE))
        return WorkflowRun.objects.filter(pk=poison.pk, status="parked").exists()

    try:
        until(parked, 150, "The end of the poison")
        assert len(tries.read_text().splitlines()) == died == conf().MAX_LOSSES
        until(lambda: not WorkflowRun.objects.unfinished().exclude(pk=poison.pk).exists(), 40, "The neighbours")
    finally:
        if worker is not None:
            worker.kill()
            worker.wait()
    poison.refresh_from_db()
    assert "3 workers in a row died" in poison.error
    assert (poison.wake_at, poison.attempt) == (None, 0)
    assert [each.outcome for each in poison.steps.all()] == ["lost"] * 3
    for run in (*before, *after):
        run.refresh_from_db()
        # At most one loss: only the first worker claimed these runs in one batch with the poison.
        lost = run.steps.filter(outcome="lost").count()
        assert (run.status, run.steps.count() - lost, lost <= 1) == ("completed", 1, True)
    assert Mark.objects.filter(name="story:count").count() == 6
    cure.touch()
    poison.resume()
    drain()
    poison.refresh_from_db()
    assert poison.status == "completed"
    assert Mark.objects.filter(name="poison:cured").count() == 1


@pytest.mark.parametrize(
    ("breaks_off", "tries", "status"), [(SystemExit, 3, "parked"), (ShutdownInterrupt, 5, "completed")]
)
def test_05_a_step_that_ends_its_process_in_good_order(breaks_off, tries, status):
    """``sys.exit()`` in a step counts as a loss, so the run is parked; a shutdown of the worker never counts."""
    entered = []

    @workflow("poison:leaves")
    class Leaves:
        class Context(BaseModel):
            pass

        @step(start=True)
        def leave(self):
            entered.append(1)
            Mark.objects.create(name="left")
            if len(entered) < 5:
                raise breaks_off
            return complete()

    run = engine.start("poison:leaves")
    for _ in range(4):
        with suppress(SystemExit):
            drain()
    drain()
    run.refresh_from_db()
    assert (run.status, len(entered)) == (status, tries)
    assert Mark.objects.filter(name="left").count() == (status == "completed")
