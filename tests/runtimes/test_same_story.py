"""One story produces the same rows in the time machine and with every real runtime. Waits real seconds.

A project's test under ``time_machine`` therefore shows what its workers will do hours later.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import transaction

from django_ai.automation.queues.models import Maintenance, Worker
from django_ai.automation.testing import time_machine
from tests.apps.story.automations.stay import declare
from tests.support.polling import until
from tests.support.runtimes import RUNTIMES, runtime
from tests.support.story_of_a_stay import live

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.alone]

EXPECTED = {
    "events": [
        ("arrival_due", "Ada", "processed"),
        ("arrival_due", "Bob", "pending"),
        ("arrival_due", "Cyd", "cancelled"),
        ("arrival_due", "Dan", "processed"),
        ("paper_uploaded", "story.paper", "processed"),
        *(("stay_confirmed", name, "processed") for name in ("Ada", "Bob", "Cyd", "Dan")),
    ],
    "callbacks": [
        *(("stay:expected", name, "created", "completed", 1) for name in ("Ada", "Bob", "Cyd", "Dan")),
        ("stay:regret", "Cyd", "cancelled", "completed", 1),
        ("stay:room", "Ada", "", "completed", 2),
        ("stay:room", "Dan", "", "completed", 2),
        ("stay:settled", "Ada", "1 h", "completed", 1),
        ("stay:settled", "Dan", "1 h", "completed", 1),
        *(("stay:thanks", name, "", "completed", 1) for name in ("Ada", "Bob", "Cyd", "Dan")),
    ],
}


def run_in_time_machine(hour):
    with time_machine() as machine:

        def pass_time(condition, what):
            for _ in range(200):
                machine.process()
                if condition():
                    return
                machine.advance(hour / 4)
            raise AssertionError(f"{what} did not happen within 50 hours.")

        return live(hour, pass_time)


@pytest.mark.parametrize("hour", [timedelta(hours=1), timedelta(seconds=1), timedelta(days=30)], ids=str)
def test_story_in_time_machine_gives_expected_rows_for_any_length_of_an_hour(hour):
    declare(hour)
    found = run_in_time_machine(hour)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert [(name, who, status) for name, who, status, *_ in found["runs"]] == [
        ("stay:reminder", "Ada", "completed"),
        ("stay:reminder", "Bob", "withdrawn"),
        ("stay:reminder", "Cyd", "withdrawn"),
        ("stay:reminder", "Dan", "failed"),
        *(("stay:welcome", name, "completed") for name in ("Ada", "Bob", "Cyd", "Dan")),
    ]


def test_story_without_commits_gives_the_same_rows():
    committed = run_in_time_machine(timedelta(hours=1))
    clean()
    with transaction.atomic():
        assert run_in_time_machine(timedelta(hours=1)) == committed
        transaction.set_rollback(True)


@pytest.mark.parametrize("name", RUNTIMES)
def test_real_seconds_story_with_every_runtime_gives_the_same_rows(tmp_path, name):
    expected = run_in_time_machine(timedelta(hours=1))
    clean()
    log, hour = tmp_path / "runtime.log", timedelta(seconds=1)
    declare(hour)
    with runtime(name, log, STORY_HOUR=str(hour.total_seconds())):
        found = live(hour, lambda condition, what: until(condition, 60, what, log))
        assert found == expected
        kind = {"q2": "q2", "worker": "worker", "celery": "celery", "django": "tasks"}.get(name.partition("-")[0])
        assert set(Worker.objects.values_list("runtime", flat=True)) == ({kind} if kind else set())
        assert not Worker.objects.exclude(stopped_at=None).exists()
        if kind:  # with "inline" a commit runs only a part of the maintenance
            until(is_maintained, 30, "The maintenance", log)
    stopped = Worker.objects.exclude(stopped_at=None).count()
    assert stopped == Worker.objects.count(), "a worker has not recorded that it stopped"


def is_maintained():
    """Return whether each periodic task of the maintenance has completed."""
    done = dict(Maintenance.objects.values_list("name", "completed_at"))
    return bool(done) and None not in done.values()


def clean():
    """Empty the tables between two runs of the story."""
    call_command("flush", interactive=False, verbosity=0)
