"""Scenario 62: workers die while events are collected. Each event is handed to exactly one run, in order."""

from __future__ import annotations

import random
import signal
import time

import pytest
from django.db import connection, transaction

from django_ai.automation.events.commit_batch import CommitBatch
from django_ai.automation.events.models import CollectedEvent, Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark, Reading
from tests.support.child_processes import start_worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(240), pytest.mark.alone]

WORKERS = 4
COUNT = 2_000 if connection.vendor == "postgresql" else 300


def test_62_all_events_of_one_key_are_one_run(monkeypatch):
    """Four workers make the events occur, and one of them is killed every second until the run has ended."""
    monkeypatch.setattr(CommitBatch, "__call__", lambda self: None)  # the workers do it
    for start in range(0, COUNT, 100):
        with transaction.atomic():
            for number in range(start, start + 100):
                Reading.objects.create(number=number)
    chance, kills = random.Random(62), 0
    workers = [start_worker(TEST_LEASE_SECONDS="2") for _ in range(WORKERS)]
    deadline = time.monotonic() + 180
    try:
        while not WorkflowRun.objects.filter(name="story:readings", status="completed").exists():
            assert time.monotonic() < deadline, list(WorkflowRun.objects.values("status", "wake_at", "error"))
            time.sleep(1)
            number = chance.randrange(WORKERS)
            workers[number].send_signal(signal.SIGKILL)
            workers[number].wait(10)
            workers[number] = start_worker(TEST_LEASE_SECONDS="2")
            kills += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(10)
    assert kills > 3
    (run,) = WorkflowRun.objects.filter(name="story:readings")
    in_order = list(Event.objects.filter(event_name="reading_taken").order_by("position").values_list("pk", flat=True))
    assert len(in_order) == COUNT
    assert run.data["pks"] == in_order
    assert Mark.objects.filter(name="readings").count() == 1
    assert not CollectedEvent.objects.filter(target=None).exists()
