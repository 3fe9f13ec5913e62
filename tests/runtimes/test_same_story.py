"""One story, lived through by the time machine and by a real cluster, leaves the same rows. Waits real seconds.

The conformance of the in-process runtime: what a test of a project sees under ``time_machine`` is what its cluster will
do, hours later.
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


def by_the_machine(hour):
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
def test_the_machine_lives_through_it_whatever_an_hour_is(hour):
    declare(hour)
    found = by_the_machine(hour)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert [(name, who, status) for name, who, status, *_ in found["runs"]] == [
        ("stay:reminder", "Ada", "completed"),
        ("stay:reminder", "Bob", "withdrawn"),
        ("stay:reminder", "Cyd", "withdrawn"),
        ("stay:reminder", "Dan", "failed"),
        *(("stay:welcome", name, "completed") for name in ("Ada", "Bob", "Cyd", "Dan")),
    ]


def test_where_nothing_commits_the_machine_lives_through_the_same():
    outside = by_the_machine(timedelta(hours=1))
    clean()
    with transaction.atomic():
        assert by_the_machine(timedelta(hours=1)) == outside
        transaction.set_rollback(True)


@pytest.mark.parametrize("name", RUNTIMES)
def test_real_seconds_every_runtime_lives_through_the_same(tmp_path, name):
    expected = by_the_machine(timedelta(hours=1))
    clean()
    log, hour = tmp_path / "runtime.log", timedelta(seconds=1)
    declare(hour)
    with runtime(name, log, STORY_HOUR=str(hour.total_seconds())):
        found = live(hour, lambda condition, what: until(condition, 60, what, log))
        assert found == expected
        kind = {"q2": "q2", "worker": "worker", "celery": "celery", "django": "tasks"}.get(name.partition("-")[0])
        assert set(Worker.objects.values_list("runtime", flat=True)) == ({kind} if kind else set())
        assert not Worker.objects.exclude(stopped_at=None).exists()
        if kind:  # inline only a commit does a part of it
            until(is_maintained, 30, "The maintenance", log)
    said = Worker.objects.exclude(stopped_at=None).count()
    assert said == Worker.objects.count(), "each said that it ended"


def is_maintained():
    """Return whether each task of the maintenance has been done, by whatever performs the work."""
    done = dict(Maintenance.objects.values_list("name", "completed_at"))
    return bool(done) and None not in done.values()


def clean():
    """Empty the tables between two lives."""
    call_command("flush", interactive=False, verbosity=0)
