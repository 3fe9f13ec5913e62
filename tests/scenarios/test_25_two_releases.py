"""Scenario 25, two releases at once: old code works with new rows, and new code works with old rows."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from django_ai.automation import engine
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.release.models import Order
from tests.apps.story.models import Mark
from tests.support.child_processes import ROOT, environment, run_script
from tests.support.polling import until
from tests.support.rows import the_run

pytestmark = pytest.mark.django_db(transaction=True)

WORKER = """
import django, time
from datetime import timedelta
django.setup()
from django_ai.automation.queues import parking
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.tasks import poll_due
parking.MIN_CHECK_DELAY = timedelta(seconds=0.5)
poll_due()
beat = time.monotonic()
while True:
    drain(budget=timedelta(seconds=1), heartbeat=True)
    time.sleep(0.02)
    if time.monotonic() - beat > 1:
        beat = time.monotonic()
        poll_due()
"""


@contextlib.contextmanager
def worker(release: str) -> Iterator[None]:
    """Run a worker of one release until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        cwd=ROOT, env=environment(TEST_RELEASE=release, TEST_RUNTIME="silent"),
    )  # fmt: skip
    try:
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)


def as_release(release: str, code: str) -> None:
    done = run_script(code, TEST_RELEASE=release, TEST_RUNTIME="silent")
    assert done.returncode == 0, done.stderr


def marks() -> list[str]:
    return sorted(Mark.objects.values_list("name", flat=True))


def unfinished() -> list[str]:
    runs = WorkflowRun.objects.exclude(status="completed")
    calls = CallbackExecution.objects.exclude(status="completed")
    answers = HandlerExecution.objects.exclude(status="completed")
    events = Event.objects.exclude(status__in=["processed", "pending"])
    # An agent that a worker of the other release has parked, or that is not active yet, has no executions.
    agents = AgentRun.objects.exclude(status="active", started_at__isnull=False)
    return [f"{row!r} {row.status} {row.error}" for rows in (runs, calls, answers, events, agents) for row in rows]


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_25_new_rows_with_old_code_real_seconds():
    as_release(
        "new",
        "from django_ai.automation import engine\n"
        "from tests.apps.release.models import Order\n"
        "for number in '12': engine.start('release:ship', item=number, address='home')\n"
        "engine.start('release:brand_new', item='x')\n"
        "Order.objects.create(name='a', rated=True)\n"
        "engine.signal('release:go')\n",
    )
    as_release("old", "from django_ai.automation import engine; engine.start('release:gone', item='old')")
    with worker("old"):
        runs = WorkflowRun.objects.filter(name__in=["release:ship", "release:brand_new"])
        until(lambda: runs.filter(status="parked").count() == 3, 60, "Parking of the new runs")
        until(lambda: CallbackExecution.objects.get().status == "parked", 60, "Parking of the new callback")
        until(lambda: marks() == ["old gone old"], 60, "What the old code knows")
        with worker("new"):
            until(lambda: runs.get(name="release:brand_new").status == "completed", 60, "The new worker's turn")
            # The parked runs receive the signal that was sent after they were started.
            until(lambda: not unfinished(), 90, "The end of everything")
    ships = [f"new {what}" for n in "12" for what in (f"pack {n} for home", f"send {n}")]
    assert marks() == sorted([*ships, "new brand_new x", "new thank a", "old gone old"])


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_25_old_rows_with_new_code_and_back_again_real_seconds():
    as_release(
        "old",
        "from datetime import timedelta\n"
        "from django_ai.automation import engine\n"
        "from django_ai.automation.queues.drain import drain\n"
        "from django_ai.automation.queues.runtimes.tasks import poll_due\n"
        "from tests.apps.release.models import Order\n"
        "engine.start('release:ship', item='s'); engine.start('release:steps', item='t')\n"
        "drain()\n"
        "engine.start('release:gone', item='g')\n"
        "Order.objects.create(name='a', placed=True, archived=True)\n"
        "engine.signal('release:go')\n",
    )
    with worker("new"):
        ship, steps = the_run(name="release:ship"), the_run(name="release:steps")
        until(lambda: the_run(pk=ship.pk).status == "completed", 60, "The end of the migrated run")
        assert the_run(pk=ship.pk).version == "2"
        until(lambda: the_run(pk=steps.pk).status == "parked", 60, "Parking of the run whose step is gone")
        gone = ["release.only_old", "release.archive"]
        calls = CallbackExecution.objects.filter(callback__in=gone, status="parked")
        until(lambda: calls.count() == 2, 60, "Parking of the callbacks that are gone")
        until(lambda: the_run(name="release:gone").status == "parked", 60, "Parking of the workflow that is gone")
        until(lambda: AgentRun.objects.get(name="release:porter").status == "parked", 60, "Parking of the agent")
        # The old release spawned the keeper as PENDING, and the new release activates it.
        until(lambda: "new keeper placed a" in marks(), 60, "The keeper's turn")
        as_release(
            "new",
            "from django.core.management import call_command\n"
            "call_command('automation_resume', 'workflow', name='release:steps', step='wrap_up')\n",
        )
        until(lambda: the_run(pk=steps.pk).status == "completed", 60, "The run that was let go on elsewhere")
        with worker("old"):  # a rollback: both releases run for a while
            until(lambda: not unfinished(), 90, "The end of everything")
            until(lambda: "old porter placed a" in marks(), 60, "The porter's turn")
    expected = [
        "new pack s for unknown to version 1", "new send s", "new wrap_up t", "old gone g", "old only_old a",
        "old archive a", "new keeper placed a", "new keeper new_habit a", "old porter placed a", "new greet a",
    ]  # fmt: skip
    assert marks() == sorted(expected)


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_25_both_releases_at_once_real_seconds():
    start = (
        "from django_ai.automation import engine\n"
        "from tests.apps.release.models import Order\n"
        "for n in range(10):\n"
        "    engine.start('release:ship', item=f'{RELEASE}{n}', **EXTRA)\n"
        "    Order.objects.create(name=f'{RELEASE}{n}', placed=True)\n"
        "    engine.start('release:NAME', item=f'{RELEASE}{n}')\n"
    )
    with worker("old"), worker("new"):
        for release, extra, name in (("old", "{}", "gone"), ("new", "{'address': 'home'}", "brand_new")):
            code = start.replace("NAME", name)
            as_release(release, f"RELEASE, EXTRA = {release!r}, {extra}\n{code}")
        ships = WorkflowRun.objects.filter(name="release:ship")
        until(lambda: ships.filter(status="suspended").count() == 20, 120, "All waits")
        engine.signal("release:go")
        until(lambda: not unfinished(), 120, "The end of everything")
    found = marks()
    assert len(found) == len(set(found))
    whats = [each.split(" ", 1)[1] for each in found]
    for release in ("old", "new"):
        for n in range(10):
            item = f"{release}{n}"
            packs = [each for each in whats if each.startswith("pack") and item in each.split()]
            assert len(packs) == 1
            assert whats.count(f"send {item}") == 1
            assert whats.count(f"{'gone' if release == 'old' else 'brand_new'} {item}") == 1
            assert whats.count(f"greet {item}") == 1
            assert whats.count(f"keeper placed {item}") == 1
    assert Order.objects.count() == 20
