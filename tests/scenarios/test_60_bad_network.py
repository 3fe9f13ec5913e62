"""Scenario 60: real workers behind a network that freezes connections, cuts them, or silently drops responses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection
from django.db.models import Q
from django.utils import timezone

from django_ai.automation import engine
from django_ai.automation.queues.models import Maintenance
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Mark
from tests.support.marks import only_on
from tests.support.network import BadNetwork, bad_network
from tests.support.polling import until
from tests.support.runtimes import runtime

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    only_on("postgresql", reason="needs PostgreSQL: the proxy is in front of it"),
]


@pytest.fixture
def network(request) -> Iterator[BadNetwork]:
    """The network between the workers and the database; the test process connects directly."""
    host, port = connection.settings_dict["HOST"] or "127.0.0.1", int(connection.settings_dict["PORT"] or 5432)
    with bad_network(host, port, **request.param) as found:
        yield found


def variables(network: BadNetwork) -> dict[str, str]:
    through = {"PGHOST": "127.0.0.1", "PGPORT": str(network.own_port), "DATABASE_URL": ""}
    named = {f"PG{key}": str(connection.settings_dict[key]) for key in ("USER", "PASSWORD")}
    return through | {name: value for name, value in named.items() if value}


def all_done() -> bool:
    return not WorkflowRun.objects.unfinished().exists()


def all_rest() -> bool:
    """Return whether all runs are finished and no maintenance task is due or leased: the workers only poll."""
    tasks = Maintenance.objects.filter(Q(lease__isnull=False) | Q(wake_at__lte=timezone.now()))
    return all_done() and not tasks.exists()


runtimes: Callable[..., object] = pytest.mark.parametrize("name", ["q2-orm", "worker-2"])


@runtimes
@pytest.mark.parametrize("network", [{"faults": 0.02, "freeze": 2.0}], indirect=True, ids=["two percent"])
def test_60_real_seconds_behind_a_bad_network_all_is_done_once(name: str, network: BadNetwork, tmp_path: Path) -> None:
    runs = [engine.start("story:count", steps=3) for _ in range(40)]
    log = tmp_path / "log"
    with runtime(name, log, **variables(network), TEST_LEASE_SECONDS="10"):
        until(all_done, 150, "The end of all runs", log)
    assert network.met["cut"]
    assert network.met["frozen"]
    assert Mark.objects.filter(name="story:count").count() == 3 * len(runs)
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"completed"}


@runtimes
@pytest.mark.parametrize("network", [{"faults": 0.0}], indirect=True, ids=["silent"])
def test_60_real_seconds_a_look_that_is_never_answered_is_given_up(
    name: str, network: BadNetwork, tmp_path: Path
) -> None:
    """If a firewall silently drops the connections of idle workers, they time out and execute the next run."""
    log = tmp_path / "log"
    engine.start("story:count", steps=1)
    with runtime(name, log, **variables(network)):
        until(all_done, 40, "The first run", log)
        until(all_rest, 40, "A rest", log)
        time.sleep(1)  # wait until the last doorbells have found no due rows
        network.lose_all()
        engine.start("story:count", steps=1)
        until(all_done, 60, "The run after the loss", log)
    assert Mark.objects.filter(name="story:count").count() == 2
