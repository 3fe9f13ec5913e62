"""Metrics for Prometheus: what a scrape reads of the tables, what workers count, and who may read it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, fail, step, workflow
from django_ai.automation.queues.models import Worker
from django_ai.automation.workflows.models import WorkflowRun

pytest.importorskip("prometheus_client", reason="the extra [prometheus] is not installed")

from django_ai.automation.contrib.telemetry import collector, metrics
from django_ai.automation.contrib.telemetry.prometheus import exposition, metrics_view, unguarded_metrics_view

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def connected() -> Iterator[None]:
    metrics.connect()
    yield
    metrics.disconnect()


def scrape() -> dict[str, float]:
    """Return the value of each series, such as ``name{label="x"}``."""
    lines = exposition().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture
def flow() -> Any:
    @workflow("metrics:flow", queue="reports")
    class Flow:
        class Context(BaseModel):
            ends: str = "complete"

        @step(start=True, retry=Retry(max_attempts=1))
        def go(self):
            if self.context.ends == "raise":
                raise RuntimeError("no")
            return fail("no stock") if self.context.ends == "fail" else complete()

    return Flow


# -- the tables --------------------------------------------------------------------------------------------------------


def test_depth_and_age_are_those_of_the_queue_and_kind(flow, work, clock):
    for _ in range(3):
        engine.start(flow)
    clock.tick(timedelta(seconds=40))
    found = scrape()
    assert found['automation_due_rows{kind="workflow",queue="reports"}'] == 3
    assert found['automation_oldest_due_seconds{kind="workflow",queue="reports"}'] == pytest.approx(40, abs=1)
    assert found['automation_due_rows{kind="workflow",queue="default"}'] == 0
    assert found['automation_due_rows{kind="event",queue="default"}'] == 0
    work()
    found = scrape()
    assert found['automation_due_rows{kind="workflow",queue="reports"}'] == 0
    assert found['automation_oldest_due_seconds{kind="workflow",queue="reports"}'] == 0


def test_a_row_of_the_future_is_not_due(flow):
    run = engine.start(flow)
    WorkflowRun.objects.filter(pk=run.pk).update(wake_at=timezone.now() + timedelta(hours=1))
    assert scrape()['automation_due_rows{kind="workflow",queue="reports"}'] == 0


def test_counts_are_capped(flow, monkeypatch):
    monkeypatch.setattr(collector, "MAX_COUNTED_ROWS", 2)
    for _ in range(3):
        engine.start(flow)
    WorkflowRun.objects.filter(pk=engine.start(flow).pk).update(status="parked", parked_at=timezone.now(), wake_at=None)
    found = scrape()
    assert found['automation_due_rows{kind="workflow",queue="reports"}'] == 2
    assert found['automation_parked_rows{kind="workflow"}'] == 1


def test_failed_and_parked_rows_and_workers_are_counted(flow, work):
    engine.start(flow, ends="fail")
    run = engine.start(flow)
    WorkflowRun.objects.filter(pk=run.pk).update(name="metrics:gone")
    work()
    now = timezone.now()
    Worker.objects.create(name="a", runtime="worker", host="a", pid=1, queues="reports", started_at=now, seen_at=now)
    found = scrape()
    assert found['automation_failed_rows{kind="workflow"}'] == 1
    assert found['automation_parked_rows{kind="workflow"}'] == 1
    assert found["automation_workers"] == 1
    assert found['automation_queue_workers{queue="reports"}'] == 1
    assert found['automation_queue_workers{queue="default"}'] == 0
    assert found["automation_healthy"] == 1


def test_overdue_work_without_a_worker_is_not_healthy(flow, clock):
    engine.start(flow)
    clock.tick(timedelta(minutes=10))
    assert scrape()["automation_healthy"] == 0


def test_a_scrape_makes_few_queries_however_many_rows_there_are(flow):
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            exposition()
        return len(captured)

    engine.start(flow)
    before = queries()
    for _ in range(20):
        engine.start(flow)
    assert queries() == before
    assert before <= 25


# -- workers -----------------------------------------------------------------------------------------------------------


def test_attempts_failures_and_lateness_are_counted(flow, work, clock):
    before = scrape()

    def grown(series: str) -> float:
        return after[series] - before.get(series, 0)

    for ends in ("complete", "complete", "raise", "fail"):
        engine.start(flow, ends=ends)
    clock.tick(timedelta(seconds=20))
    work()
    after = scrape()
    labels = 'kind="workflow",name="metrics:flow"'
    assert grown(f'automation_attempts_total{{{labels},outcome="success",part="go"}}') == 3
    assert grown(f'automation_attempts_total{{{labels},outcome="error",part="go"}}') == 1
    assert grown(f'automation_attempt_seconds_count{{{labels},part="go"}}') == 4
    assert grown('automation_failed_total{kind="workflow",name="metrics:flow"}') == 2
    lateness = "automation_claim_lateness_seconds"
    claims = grown(f'{lateness}_count{{kind="workflow",queue="reports"}}')
    assert claims >= 1
    assert grown(f'{lateness}_bucket{{kind="workflow",le="10.0",queue="reports"}}') == 0
    assert grown(f'{lateness}_bucket{{kind="workflow",le="30.0",queue="reports"}}') == claims
    assert grown('automation_claimed_rows_total{kind="workflow",queue="reports"}') == 4


def test_a_parked_row_is_counted(flow, work):
    run = engine.start(flow)
    WorkflowRun.objects.filter(pk=run.pk).update(name="metrics:gone")
    series = 'automation_parked_total{kind="workflow",name="metrics:gone"}'
    before = scrape().get(series, 0)
    work()
    assert scrape()[series] == before + 1


def test_nothing_is_counted_where_it_is_not_connected(flow, work):
    metrics.disconnect()
    engine.start(flow)
    before = scrape()
    work()
    series = 'automation_claimed_rows_total{kind="workflow",queue="reports"}'
    assert scrape().get(series) == before.get(series)


# -- the views ---------------------------------------------------------------------------------------------------------


def get(view: Any, user: User | None = None, **headers: str) -> Any:
    request = RequestFactory().get("/metrics", headers=headers)
    if user is not None:
        request.user = user
    return view(request)


def test_the_view_asks_for_the_token_or_staff():
    with override_settings(AUTOMATION={"METRICS_TOKEN": "a long secret"}):
        assert get(metrics_view).status_code == 403
        assert get(metrics_view, authorization="Bearer another").status_code == 403
        assert get(metrics_view, authorization="Basic a long secret").status_code == 403
        answer = get(metrics_view, authorization="Bearer a long secret")
        assert answer.status_code == 200
        assert answer["Content-Type"].startswith("text/plain")
        assert b"automation_due_rows" in answer.content
    with override_settings(AUTOMATION={}):
        assert get(metrics_view, authorization="Bearer ").status_code == 403
        assert get(metrics_view, User(username="a", is_staff=True)).status_code == 200
        assert get(metrics_view, User(username="a")).status_code == 403
        assert get(metrics_view, User(username="a", is_staff=True, is_active=False)).status_code == 403


def test_the_unguarded_view_can_be_wrapped_and_takes_no_post():
    assert get(unguarded_metrics_view).status_code == 200
    assert unguarded_metrics_view(RequestFactory().post("/metrics")).status_code == 405


# -- several processes -------------------------------------------------------------------------------------------------

COUNTS = """
import django
django.setup()
from django_ai.automation.contrib.telemetry import metrics
metrics.CLAIMED.labels("workflow", "several").inc()
"""
EXPOSES = """
import django
django.setup()
from prometheus_client import CollectorRegistry
from django_ai.automation.contrib.telemetry import prometheus
prometheus.DatabaseCollector = CollectorRegistry
print(prometheus.exposition().decode())
"""


def test_processes_that_share_a_directory_are_exposed_together(tmp_path):
    environment = {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }

    def run(code: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        ).stdout

    run(COUNTS)
    run(COUNTS)
    assert re.search(r'automation_claimed_rows_total\{kind="workflow",queue="several"\} 2\.0', run(EXPOSES))


def test_the_library_is_not_imported_unless_it_is_used():
    code = (
        "import sys, django; django.setup(); import django_ai.automation.contrib.telemetry.logs; "
        "sys.exit([name for name in ('prometheus_client', 'opentelemetry', 'sentry_sdk', 'health_check') "
        "if name in sys.modules])"
    )
    environment = {
        **os.environ,
        "TEST_WITHOUT_Q2": "1",  # which imports prometheus_client where it is installed
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.strip() in ("", "[]"), done.stderr
