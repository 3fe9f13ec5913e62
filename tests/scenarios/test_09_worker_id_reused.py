"""09, a worker's name is reused: a new process has the host and process number of a dead worker. Like any worker, it
can claim the row only after the lease expires; earlier writes are refused. The fence is the token, not the name."""

from __future__ import annotations

import signal
from copy import copy
from datetime import timedelta

import pytest
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.exceptions import LeaseLostError
from django_ai.automation.queues import claim as claiming
from django_ai.automation.queues.advance import advance
from django_ai.automation.queues.claim import claim, new_token
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.lease import release, renew
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark
from tests.support.child_processes import run_script

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


@pytest.fixture
def orphan(monkeypatch):
    """Return a run leased by a killed process, and give this process the same name."""
    run = engine.start("story:count", steps=1)
    done = run_script(
        """
import os, signal
from django.utils import timezone
from django_ai.automation.queues.claim import claim
from django_ai.automation.workflows.models import WorkflowRun
(row,) = claim(WorkflowRun, timezone.now(), 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    run.refresh_from_db()
    assert run.lease is not None
    name = run.lease.rpartition(":")[0]
    monkeypatch.setattr(claiming, "_process_name", lambda pid: name)
    assert new_token().startswith(name)
    return run


def test_09_the_name_gives_no_right_to_the_row(orphan):
    before = WorkflowRun.objects.values().get(pk=orphan.pk)
    namesake = copy(orphan)
    namesake.lease = new_token()
    assert claim(WorkflowRun, orphan.wake_at - timedelta(microseconds=1), 1) == []
    assert release(namesake, timezone.now()) is False
    renew([namesake], [namesake.lease], timezone.now())
    with pytest.raises(LeaseLostError):
        advance(namesake, {"status": "completed"})
    assert WorkflowRun.objects.values().get(pk=orphan.pk) == before


def test_09_the_row_is_reclaimed_when_the_lease_ends(orphan):
    (mine,) = claim(WorkflowRun, orphan.wake_at, 1)
    assert (mine.pk, mine.losses) == (orphan.pk, 1)
    assert mine.lease != orphan.lease
    # Late writes of the dead worker are refused, although its name is the same.
    with pytest.raises(LeaseLostError):
        advance(orphan, {"status": "failed"})
    renew([orphan], [orphan.lease], timezone.now() + timedelta(hours=1))
    assert release(orphan, timezone.now()) is False
    mine.perform(timezone.now)
    drain()
    mine.refresh_from_db()
    assert mine.status == "completed"
    assert Mark.objects.filter(name="story:count").count() == 1
