"""Work for real worker processes while the database stops again and again, and assertions about the result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from django.db import connection
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark, Probe
from tests.support.child_processes import start_worker
from tests.support.polling import until
from tests.support.servers import Server


def work_for_all(runs: int = 30, probes: int = 10) -> list[WorkflowRun]:
    started = [engine.start("story:count", steps=4) for _ in range(runs)]
    for number in range(probes):
        Probe.objects.create(name=str(number), ready=True, due_at=timezone.now() + timedelta(seconds=number % 4))
    return started


@contextlib.contextmanager
def workers_that_outlive_it(number: int) -> Iterator[None]:
    """Run worker processes until the block ends, and assert that none of them has exited before."""
    workers = [start_worker(TEST_LEASE_SECONDS="2") for _ in range(number)]
    try:
        yield
        assert [worker.poll() for worker in workers] == [None] * number
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def restart_again_and_again(server: Server, *outages: float, log: Path | None = None) -> None:
    """After the first mark, stop the server immediately and restart it, once for each of ``outages`` (seconds)."""
    until(Mark.objects.exists, 30, "The first mark", log)
    for outage in outages:
        server.stop_at_once()
        time.sleep(outage)
        server.start()
        time.sleep(0.7)


def until_all_is_done(log: Path | None = None) -> None:
    def rested() -> bool:
        return (
            not Event.objects.exclude(wake_at=None).exists()
            and not WorkflowRun.objects.unfinished().exists()
            and not CallbackExecution.objects.filter(status="pending").exists()
        )

    connection.close()  # the server has ended the test's session, too
    until(rested, 90, "The end of all work", log)


def assert_all_once(runs: list[WorkflowRun], probes: int = 10) -> None:
    assert Mark.objects.filter(name="story:count").count() == 4 * len(runs)
    assert Mark.objects.filter(name__startswith="ready:").count() == probes
    assert Mark.objects.filter(name__startswith="due:").count() == probes
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}
    assert not CallbackExecution.objects.filter(attempt__gt=1).exists()
    assert not WorkflowRun.objects.filter(steps__outcome="error").exists()
