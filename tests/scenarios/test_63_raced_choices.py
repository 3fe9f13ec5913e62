"""Scenario 63: everything that a choice waits for comes at about the same time. Exactly one branch wins."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from django.db import connection, connections, transaction

from django_ai.automation import emit, engine
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.apps.story.automations.races import CALLED, DECLINED, PAID
from tests.apps.story.models import Mark
from tests.support.child_processes import environment, is_alive
from tests.support.fork_server import ForkServer
from tests.support.soak.observations import resume_lost

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300), pytest.mark.alone]

WORKERS = 4
COUNT = 1_000 if connection.vendor == "postgresql" else 120
AT_A_TIME = 40 if connection.vendor == "postgresql" else 20


def test_63_each_race_has_one_winner(tmp_path):
    """Four workers, one of which is killed each second, and three threads that send what the runs wait for: before they
    wait, while they do, and when their timers fire."""
    chance = random.Random(63)
    with _workers_that_are_killed(tmp_path, chance):
        for start in range(0, COUNT, AT_A_TIME):
            numbers = range(start, min(start + AT_A_TIME, COUNT))
            with transaction.atomic():
                runs = {number: engine.start("story:race", number=number) for number in numbers}
            _wait_for_some(runs, chance.random())
            works: list[list[Callable[[], object]]] = [
                [partial(emit, PAID, {"number": number}) for number in numbers],
                [partial(emit, DECLINED, {"number": number}) for number in numbers],
                [partial(engine.signal, CALLED, run=runs[number]) for number in numbers],
            ]
            for each in works:
                chance.shuffle(each)
            _at_once(*works)
        deadline = time.monotonic() + 120
        while WorkflowRun.objects.filter(name="story:race").unfinished().exists():
            assert time.monotonic() < deadline, list(WorkflowRun.objects.unfinished().values("status", "error")[:5])
            resume_lost()
            time.sleep(0.2)
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
    marks = list(Mark.objects.filter(name__startswith="race ").values_list("name", "key"))
    assert sorted(name for name, _ in marks) == sorted(f"race {number}" for number in range(COUNT))
    assert not Wait.objects.exists(), "a branch that has lost is still there"
    winners = Counter(key for _, key in marks)
    assert len(winners) > 2, f"this was no race: {winners}"


def _wait_for_some(runs: dict[int, WorkflowRun], part: float) -> None:
    """Wait until this part of the runs, or more, have begun to wait, for three seconds at most: then their timers have
    fired."""
    deadline = time.monotonic() + 3
    begun = WorkflowRun.objects.filter(pk__in=[run.pk for run in runs.values()]).exclude(
        status__in=["waiting", "running"]
    )
    while begun.count() < part * len(runs) and time.monotonic() < deadline:
        time.sleep(0.02)


@contextlib.contextmanager
def _workers_that_are_killed(scratch: Path, chance: random.Random) -> Iterator[None]:
    """Let workers work until the block ends, and kill and replace one each second."""
    fork_server = ForkServer(environment(TEST_LEASE_SECONDS="2", TEST_RUNTIME="silent"), scratch / "workers.log")
    pids = [fork_server.spawn() for _ in range(WORKERS)]
    victims = [chance.randrange(WORKERS) for _ in range(1000)]
    stop = threading.Event()

    def kill_every_second() -> None:
        while not stop.wait(1):
            number = victims.pop()
            os.kill(pids[number], signal.SIGKILL)
            while is_alive(pids[number]):
                time.sleep(0.005)
            pids[number] = fork_server.spawn()

    killer = threading.Thread(target=kill_every_second)
    killer.start()
    try:
        yield
    finally:
        stop.set()
        killer.join()
        fork_server.close()


def _at_once(*shooters: Sequence[Callable[[], object]]) -> None:
    """Perform several lists of work at the same time, in threads with their own connections."""

    def perform(works: Sequence[Callable[[], object]]) -> None:
        try:
            for work in works:
                work()
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    failures: list[BaseException] = []
    threads = [threading.Thread(target=perform, args=(works,)) for works in shooters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
