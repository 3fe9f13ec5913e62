"""02, SIGKILL between a commit and its on_commit hooks: a worker makes the event occur, once. A callback that fails is
retried, and its event does not occur again."""

from __future__ import annotations

import signal
from datetime import timedelta

import pytest

from django_ai.automation import Retry, on_event
from django_ai.automation.events.models import CallbackExecution, Event, EventStatus
from django_ai.automation.queues.drain import drain
from tests.apps.story.models import Mark
from tests.support.child_processes import run_script
from tests.support.race import together
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


def the_web_process_dies() -> Event:
    done = run_script(
        """
import os, signal
from django.db import transaction
from tests.apps.story.models import Probe
with transaction.atomic():
    transaction.on_commit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    Probe.objects.create(name="orphan", ready=True)
"""
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    event = Event.objects.get(event_name="probe_ready")
    assert event.status == EventStatus.PENDING
    return event


def test_02_the_web_process_is_killed_between_its_commit_and_its_hooks():
    event = the_web_process_dies()

    assert event.lease is None  # a save leases nothing: any worker can claim the event at once
    drain()
    event.refresh_from_db()
    assert event.status == EventStatus.PROCESSED
    assert Mark.objects.filter(name="ready:orphan").count() == 1


def test_02_two_workers_sweep_at_once():
    event = the_web_process_dies()
    assert together(drain, drain) == []
    drain()
    event.refresh_from_db()
    assert event.status == EventStatus.PROCESSED
    assert Mark.objects.filter(name="ready:orphan").count() == 1


def test_02_a_callback_that_fails_is_tried_again():
    @on_event("probe_ready", name="stumbles", retry=Retry(max_attempts=3, base_delay=timedelta(seconds=1)))
    def stumbles(event):
        leave("tried")
        if CallbackExecution.objects.get(callback="stumbles").attempt < 2:
            raise RuntimeError("stumbles")

    event = the_web_process_dies()
    moment = event.wake_at
    assert moment is not None
    for seconds in range(8):
        drain(moment + timedelta(seconds=seconds))
    assert effects() == ["tried"]
    execution = CallbackExecution.objects.get(callback="stumbles")
    assert (execution.status, execution.attempt) == ("completed", 3)
    assert Event.objects.filter(event_name="probe_ready").count() == 1
    assert Mark.objects.filter(name="ready:orphan").count() == 1
