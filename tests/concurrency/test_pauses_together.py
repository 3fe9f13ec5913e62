"""Pauses begin and end while workers claim, hold and perform the same rows: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from datetime import timedelta

import pytest
from django.db import Error as AnyDatabaseError
from django.db import connection, connections
from pydantic import BaseModel

from django_ai.automation import complete, engine, goto, sleep, step, workflow
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import HeldRow, Pause
from django_ai.automation.queues.pausing import reconcile_pauses
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.polling import until
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.timeout(120)]

RUNS = 40
WORKERS = 3 if connection.vendor != "sqlite" else 2


def work_until(stopped: threading.Event) -> None:
    while not stopped.is_set():
        try:
            if not drain(budget=timedelta(seconds=0.2)):
                time.sleep(0.005)
        except AnyDatabaseError:
            connections.close_all()
    connections.close_all()


def test_pauses_come_and_go_while_workers_perform():
    @workflow("pauses:together", queue="reports", priority=lambda context: context.number % 3)
    class Together:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def one(self):
            leave(f"one {self.context.number}")
            return goto(self.two)

        @step()
        def two(self):
            leave(f"two {self.context.number}")
            return sleep(timedelta(milliseconds=50), then=self.three)

        @step()
        def three(self):
            leave(f"three {self.context.number}")
            return complete()

    chosen, stopped = random.Random(7), threading.Event()
    runs = [engine.start("pauses:together", number=number) for number in range(RUNS)]
    targets = [
        {"workflow": "pauses:together"},
        {"workflow": "pauses:together"},
        {"queue": "reports"},
        {"everything": True},
    ]
    workers = [threading.Thread(target=work_until, args=[stopped], daemon=True) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    try:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            target, single = chosen.choice(targets), chosen.sample(runs, 3)
            engine.pause(**target)
            for run in single:
                engine.pause(run)
            time.sleep(chosen.uniform(0, 0.03))
            engine.unpause(**target)
            for run in single:
                engine.unpause(run)
            time.sleep(chosen.uniform(0, 0.02))
        assert not Pause.objects.exists()
        until(lambda: not WorkflowRun.objects.exclude(status="completed").exists(), 60, "The end of all runs")
    finally:
        stopped.set()
        for worker in workers:
            worker.join(20)
    assert Counter(effects()) == {f"{name} {number}": 1 for name in ("one", "two", "three") for number in range(RUNS)}
    assert not HeldRow.objects.exists()
    assert reconcile_pauses(TimeSlice(WorkflowRun.objects.first().created_at)).done == 0
