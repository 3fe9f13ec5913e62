"""``automation_worker --reload``: a project whose code changes while its worker runs. Waits real seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

import django_ai.automation
from tests.support.child_processes import children_of
from tests.support.polling import until

pytestmark = [pytest.mark.timeout(120)]
SETTINGS = """
from django_ai.automation import AUTOMATION_APPS
SECRET_KEY = "x" * 50
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "%s"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "shop", *AUTOMATION_APPS]
"""
AUTOMATIONS = """
from pathlib import Path
from pydantic import BaseModel
from django_ai.automation import complete, step, workflow

@workflow("greet")
class Greet:
    class Context(BaseModel):
        pass

    @step(start=True)
    def write(self):
        with Path("greetings").open("a") as file:
            file.write("%s ")
        return complete()
"""
START = """
import django
django.setup()
from django_ai.automation import engine
engine.start("greet")
"""


class Project:
    """A project of one app on SQLite, whose ``automations`` module a test rewrites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self.automations = folder / "shop" / "automations.py"
        self.automations.parent.mkdir()
        (folder / "shop" / "__init__.py").write_text("")
        (folder / "site_settings.py").write_text(SETTINGS % (folder / "db.sqlite3"))
        source = Path(django_ai.automation.__file__).parents[2]
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": f"{source}{os.pathsep}{folder}",
            "PYTHONDONTWRITEBYTECODE": "1",  # two versions written within a second may have the same size and time
        }

    def run(self, *command: str) -> None:
        subprocess.run([sys.executable, *command], cwd=self.folder, env=self.environment, check=True, timeout=60)

    def worker(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "django", "automation_worker", "--reload", "--poll", "0.2"],
                cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def greets(self, greeting: str) -> None:
        """Start a run, and wait for the greeting of its step."""
        self.run("-c", START)
        written = self.folder / "greetings"
        until(lambda: written.exists() and greeting in written.read_text(), 30, f"The greeting {greeting}", self.log)


@pytest.mark.alone
def test_real_seconds_worker_restarts_with_changed_code_and_survives_an_import_error(tmp_path):
    project = Project(tmp_path)
    project.automations.write_text(AUTOMATIONS % "first")
    project.run("-m", "django", "migrate", "--verbosity", "0")
    worker = project.worker()
    try:
        project.greets("first")
        (before,) = children_of(worker.pid)

        # The process may not watch its files yet: a file that is saved while the process starts counts as changed.
        project.automations.write_text(AUTOMATIONS % "second")
        until(lambda: children_of(worker.pid) not in ([], [before]), 30, "The restart", project.log)
        project.greets("second")

        project.automations.write_text("this is no Python")
        until(lambda: "SyntaxError" in project.log.read_text(), 30, "The error", project.log)
        project.automations.write_text(AUTOMATIONS % "third")
        project.greets("third")
        # A change of the code is not logged as a failure.
        assert "ended with exit code 3" not in project.log.read_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            assert worker.wait(20) == 0, project.log.read_text()
        finally:
            worker.kill()


def test_reload_with_once_is_refused():
    with pytest.raises(CommandError, match="--reload cannot be combined"):
        call_command("automation_worker", "--once", "--reload")
