"""Limits while workers are killed: never more at the same time than allowed, and everything ends."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from django.db import transaction
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.queues.limits.admission import RETRY_FAILED
from django_ai.automation.queues.models import Slot
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.soak.automations.limited import BY_KEY, OF_EACH, PER_SECOND, TOTAL
from tests.apps.soak.models import Effect
from tests.support.child_processes import environment, is_alive
from tests.support.fork_server import ForkServer
from tests.support.intervals import intervals, most_at_once
from tests.support.polling import until
from tests.support.soak.observations import resume_lost

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.alone, pytest.mark.timeout(300)]

WORKERS = 4


def start(name: str, number: int, keys: int = 1, **fields: object) -> None:
    with transaction.atomic():
        for each in range(number):
            engine.start(name, tag=f"{each % keys}:{each}", group=str(each % keys), **fields)


def due_slots() -> list[dict[str, object]]:
    return list(Slot.objects.filter(wake_at__isnull=False).values())


def work(
    scratch: Path, *, kill_every: float | None, meanwhile: Callable[[], object] = lambda: None
) -> dict[int, datetime]:
    """Let four workers perform everything, and kill one again and again; return when each was killed."""
    fork_server = ForkServer(environment(TEST_LEASE_SECONDS="2", TEST_RUNTIME="silent"), scratch / "workers.log")
    pids: list[int] = []
    killed: dict[int, datetime] = {}
    draw = random.Random(5)
    deadline, next_kill = time.monotonic() + 150, time.monotonic() + 1
    try:
        while WorkflowRun.objects.unfinished().exists():
            assert time.monotonic() < deadline, WorkflowRun.objects.unfinished().values_list("pk", "data", "wake_at")
            pids = [pid for pid in pids if is_alive(pid)]
            while len(pids) < WORKERS:
                pids.append(fork_server.spawn())
            if kill_every is not None and time.monotonic() >= next_kill:
                next_kill += kill_every
                victim = draw.choice(pids)
                os.kill(victim, signal.SIGKILL)
                while is_alive(victim):
                    time.sleep(0.005)
                killed[victim] = timezone.now()
            resume_lost()
            meanwhile()
            time.sleep(0.05)
        # The worker of the last slots may have been killed: then they are due when its lease has run out.
        # One that has killed three, as chance may have it, is looked at a minute later (``RETRY_FAILED``).
        until(lambda: not due_slots(), 30 + RETRY_FAILED.total_seconds(), "The end of all slots that are due")
    finally:
        fork_server.close()
    return killed


def test_real_seconds_never_more_execute_than_the_total_and_each_key_allow(tmp_path):
    start("limited:both", 150, keys=3)
    killed = work(tmp_path, kill_every=1.0)
    assert len(killed) > 3
    found = intervals(killed)
    assert most_at_once(found) == TOTAL
    for key in "012":
        assert most_at_once(each for each in found if each.owner.startswith(f"{key}:")) == OF_EACH
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
    assert Slot.objects.count() == 0


def test_real_seconds_one_key_never_has_more_than_its_limit(tmp_path):
    """Four workers would execute four."""
    start("limited:concurrency", 100)
    killed = work(tmp_path, kill_every=1.0)
    found = intervals(killed)
    assert most_at_once(found) == BY_KEY
    assert {each.owner for each in found} == {f"0:{number}" for number in range(100)}
    assert Slot.objects.count() == 0


def test_real_seconds_a_singleton_never_has_two(tmp_path):
    start("limited:queue", 40, keys=4, seconds=0.02)
    killed = work(tmp_path, kill_every=1.0)
    found = intervals(killed)
    for key in "0123":
        of_key = sorted((each for each in found if each.owner.startswith(f"{key}:")), key=lambda each: each.begin)
        owners = [each.owner for each in of_key]
        runs = [owner for number, owner in enumerate(owners) if number == 0 or owners[number - 1] != owner]
        assert len(runs) == len(set(runs)) == 10, f"runs of {key} overlap: {runs}"
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}


def test_real_seconds_a_singleton_that_cancels_never_has_two(tmp_path):
    number = 0

    def replace() -> None:
        nonlocal number
        if number < 60:
            engine.start("limited:newest", tag=f"0:{number}", group="0")
            number += 1

    replace()
    killed = work(tmp_path, kill_every=1.0, meanwhile=replace)
    assert most_at_once(intervals(killed)) == 1
    ended = Counter(WorkflowRun.objects.values_list("status", flat=True))
    assert set(ended) == {"completed", "cancelled"}
    assert WorkflowRun.objects.order_by("pk").last().status == "completed"


def test_real_seconds_a_throttle_starts_as_many_in_each_second_as_it_says(tmp_path):
    """A busy machine starts some later than they may, and then several at once, but none earlier."""
    started: list[bool] = []

    def start_when_workers_work() -> None:
        if not started and Effect.objects.filter(key="end").count() >= 4:
            started.append(True)
            start("limited:throttle", 60)

    start("limited:concurrency", 20, keys=20, seconds=0.2)
    work(tmp_path, kill_every=None, meanwhile=start_when_workers_work)
    throttled = WorkflowRun.objects.filter(name="limited:throttle")
    moments = sorted(run.started_at for run in throttled if run.started_at is not None)
    offsets = [(each - moments[0]).total_seconds() for each in moments]
    seconds = Counter(map(int, offsets))
    assert len(moments) == 60
    too_early = [number for number, each in enumerate(offsets) if each < number / PER_SECOND - 0.25]
    assert too_early == [], (seconds, offsets)
    assert offsets[-1] < 60 / PER_SECOND + 3, seconds
