"""A project with another runtime does not need Django-Q2: neither in INSTALLED_APPS nor installed."""

from __future__ import annotations

import pytest

from django_ai.automation.workflows.models import WorkflowRun
from tests.support.child_processes import run_script

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120), pytest.mark.slow]

BLOCKED = """
import sys
class NoQ2:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "django_q":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoQ2())
"""

SCRIPT = """
from django.core.management import call_command
from django_ai.automation import engine
call_command("check")
call_command("makemigrations", "--check", "--dry-run", "automation_events", verbosity=0)
call_command("migrate", verbosity=0)
engine.start("story:count", steps=2)
call_command("automation_worker", "--once")
call_command("automation_health")
"""


@pytest.mark.parametrize("name", ["", "worker", "inline", "celery", "tasks"])
def test_everything_runs_without_django_q(name):
    done = run_script(SCRIPT, before=BLOCKED, TEST_WITHOUT_Q2="1", TEST_RUNTIME=name)
    assert done.returncode == 0, done.stderr
    assert WorkflowRun.objects.get().status == "completed"
