"""``automation_health`` fails if work is overdue without progress, or if failed or parked rows exceed a limit."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.db import OperationalError

from django_ai.automation import engine
from django_ai.automation.db.database_clock import DatabaseNow
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Worker
from django_ai.automation.queues.operations import health as health_module
from django_ai.automation.queues.operations.failed_and_parked import count_failed_and_parked
from django_ai.automation.queues.operations.health import check_health
from django_ai.automation.queues.registry import longest_timeout
from django_ai.automation.queues.worker_status import MAX_SILENCE
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.health import broken, living, probe

pytestmark = pytest.mark.django_db(transaction=True)

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


# -- health


def test_nothing_to_do_is_healthy(clock):
    health = check_health(clock.now)
    assert health.is_healthy
    assert str(health) == "Healthy: nothing is overdue. No worker is alive, and none has ever reported."
    assert probe()[0] == 0


def test_due_work_that_nobody_takes_is_an_illness_after_the_tolerance(clock):
    engine.start("story:count", steps=1)
    clock.tick(90 * SECOND - timedelta(milliseconds=1))
    assert check_health(clock.now).is_healthy
    clock.tick(timedelta(milliseconds=1))
    health = check_health(clock.now)
    assert not health.is_healthy
    assert [(each.kind, each.count) for each in health.overdue] == [("workflow run", 1)]
    code, text = probe()
    assert code == 1
    assert "NOT HEALTHY. Overdue: 1 workflow run(s) since 2030-01-07 13:00:00, and no live worker polls" in text
    assert "no worker is alive: start the workers" in text
    assert probe("--overdue", "3600")[0] == 0


def test_nobody_is_called_healthy_while_rows_wait_and_no_worker_is_alive(clock):
    living(ago=2 * MINUTE)
    assert str(check_health(clock.now)).startswith(
        "Healthy: nothing is overdue. No worker is alive; host:7 was seen last, "
    )
    engine.start("story:count", steps=1)
    text = str(check_health(clock.now))
    assert text.startswith("No worker is alive; host:7 was seen last, ")
    assert text.endswith("Rows wait for one; nothing is overdue yet.")


def test_a_worker_that_makes_progress_with_a_long_queue_is_healthy(clock):
    runs = [engine.start("story:count", steps=1) for _ in range(3)]
    clock.tick(10 * MINUTE)
    assert not check_health(clock.now).is_healthy
    worker = living(workflows=80)
    health = check_health(clock.now)
    assert health.overdue[0].count == len(runs)
    assert health.is_healthy
    assert str(health).startswith("Healthy but behind. Overdue: 3 workflow run(s) since")
    assert "1 worker is alive." in str(health)
    Worker.objects.filter(pk=worker.pk).update(worked={"workflows": 100})
    health = check_health(clock.now)
    assert not health.is_healthy, "progress of 100 seconds ago is too old"
    assert "and no progress by 1 live worker" in str(health)
    assert "no live worker makes progress with it: restart the workers" in probe()[1]


@pytest.mark.parametrize("how", ["dead", "stopped"])
def test_who_is_dead_or_stopped_makes_no_progress(clock, how):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    worker = living(workflows=1)
    assert check_health(clock.now).is_healthy
    if how == "dead":
        Worker.objects.filter(pk=worker.pk).update(seen_at=DatabaseNow() - MAX_SILENCE)
    else:
        Worker.objects.filter(pk=worker.pk).update(stopped_at=DatabaseNow())
    health = check_health(clock.now)
    assert (health.is_healthy, health.workers, health.overdue[0].workers) == (False, 0, 0)


def test_the_time_since_the_last_sign_of_life_counts(clock):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    living(ago=30 * SECOND, workflows=55)
    assert check_health(clock.now).is_healthy
    assert not check_health(clock.now, 80 * SECOND).is_healthy


def test_progress_is_that_of_each_kind(clock):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    living("events,callbacks", callbacks=1)
    health = check_health(clock.now)
    assert (health.is_healthy, health.workers) == (False, 1)
    idle = ["schedules", "signals", "limits", "workflows", "agents", "bulk"]
    assert health.workers_by_kind == {**dict.fromkeys(idle, 0), "events": 1, "callbacks": 1}
    code, text = probe()
    assert code == 1
    assert "1 workflow run(s) since 2030-01-07 13:00:00, and no live worker polls 'workflows'" in text
    assert "start a worker for workflows" in text
    living("workflows", workflows=1)
    assert check_health(clock.now).is_healthy


def test_a_worker_may_be_busy_with_another_kind_for_as_long_as_a_step_takes(clock):
    engine.start("story:count", steps=1)
    living(callbacks=1)
    clock.tick(90 * SECOND + longest_timeout() - SECOND)
    assert check_health(clock.now).is_healthy
    clock.tick(SECOND)
    health = check_health(clock.now)
    assert not health.is_healthy, "the worker should have polled 'workflows' by now"
    assert health.overdue[0].workers == 1
    living(workflows=1)
    assert check_health(clock.now).is_healthy


def test_rows_in_the_hands_of_web_processes_are_no_progress(clock):
    engine.start("story:count", steps=1)
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    assert claim(WorkflowRun, clock.now, 1)
    drain(heartbeat=True, models=[CallbackExecution])
    assert not Worker.objects.exists()
    assert not check_health(clock.now).is_healthy


def test_a_timer_of_tomorrow_is_not_overdue(clock, work):
    Reservation.objects.create(status="confirmed", checkin_at=clock.now + timedelta(days=1))
    work()
    health = check_health(clock.now + 10 * MINUTE)
    assert (health.overdue, health.is_idle) == ((), False)


@pytest.mark.exact_times
def test_json_is_one_line_that_a_machine_reads(clock):
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    code, text = probe("--json")
    found = json.loads(text.splitlines()[0])
    assert code == 1
    assert found == {
        "healthy": False,
        "checked_at": "2030-01-07T12:10:00+00:00",
        "tolerance_seconds": 90.0,
        "overdue": [
            {
                "kind": "workflow run",
                "queue": "default",
                "count": 1,
                "since": "2030-01-07T12:00:00+00:00",
                "workers": 0,
                "makes_progress": False,
            }
        ],
        "workers": 0,
        "workers_by_kind": dict.fromkeys(
            ["events", "schedules", "signals", "limits", "workflows", "agents", "callbacks", "bulk"], 0
        ),
        "workers_by_queue": {"default": 0},
        "last_worker": None,
        "last_seen_at": None,
        "last_worked_at": None,
        "maintenance": [],
        "paused": [],
        "failed": {},
        "parked": {},
    }


def test_a_database_that_does_not_answer_has_an_exit_code_of_its_own(clock, monkeypatch):
    def refuse(*arguments, **options):
        raise OperationalError("connection refused")

    monkeypatch.setattr(health_module, "_overdue", refuse)
    code, text = probe()
    assert code == 2
    assert "The database could not be queried: connection refused" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--overdue", "0"], "--overdue=0 must be positive"),
        (["--max-failed", "-1"], "--max-failed=-1 must not be negative"),
        (
            ["--explain", "--kind", "workflow"],
            "unknown kind 'workflow'. Did you mean 'workflow run'?",
        ),
        (
            ["--explain", "--kind", "x"],
            "unknown kind 'x'. Kinds: 'schedule', 'captured write', 'event', 'signal', 'slot of a limit', ",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, complaint):
    code, text = probe(*arguments)
    assert code == 1
    assert complaint in text


def test_the_probe_asks_a_few_questions_however_much_there_is(clock, django_assert_max_num_queries):
    for _ in range(20):
        engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    with django_assert_max_num_queries(12):
        check_health(clock.now)


# -- failed and parked rows


def test_failed_and_parked_rows_are_counted_by_kind(clock):
    assert count_failed_and_parked().as_dict() == {"failed": {}, "parked": {}}
    broken(clock.now, failed=3, parked=2)
    Reservation.objects.create(checkin_at=clock.now + timedelta(days=1))
    event = Event.objects.latest("pk")
    CallbackExecution.objects.create(event=event, callback="f", status="failed", unique_key="c")
    Signal.objects.create(name="x", error="E", parked_at=clock.now)
    assert count_failed_and_parked().as_dict() == {
        "failed": {"workflow run": 3, "callback execution": 1},
        "parked": {"workflow run": 2, "signal": 1},
    }
    code, text = probe()
    assert code == 0
    assert "Failed: 1 callback execution(s), 3 workflow run(s). Parked: 1 signal(s), 2 workflow run(s)." in text
    assert json.loads(probe("--json")[1])["failed"] == {"workflow run": 3, "callback execution": 1}


@pytest.mark.parametrize(
    ("limits", "expected", "complaint"),
    [
        (["--max-failed", "3", "--max-parked", "2"], 0, ""),
        (["--max-failed", "2"], 3, "3 row(s) have failed, and --max-failed=2"),
        (["--max-parked", "0"], 3, "2 row(s) are parked, and --max-parked=0"),
        (["--max-failed", "0", "--max-parked", "0"], 3, "--max-failed=0; 2 row(s) are parked"),
    ],
)
def test_limits_of_failed_and_parked_rows_have_an_exit_code_of_their_own(clock, limits, expected, complaint):
    broken(clock.now, failed=3, parked=2)
    code, text = probe(*limits)
    assert code == expected
    assert complaint in text


def test_overdue_work_goes_before_the_limits(clock):
    broken(clock.now, failed=1, parked=0)
    engine.start("story:count", steps=1)
    clock.tick(10 * MINUTE)
    assert probe("--max-failed", "0")[0] == 1


def test_counting_stops_above_its_limit(clock):
    broken(clock.now, failed=4, parked=3)
    found = count_failed_and_parked(limit=3)
    assert (found.failed, found.parked) == ({"workflow run": 4}, {"workflow run": 3})
    assert str(found) == "Failed: more than 3 workflow run(s). Parked: 3 workflow run(s)."
