"""The README's quick start as printed: its settings, models, automations and commands in an empty SQLite project."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.child_processes import stop
from tests.support.marks import only_on
from tests.support.polling import until

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.alone,
    only_on("sqlite", reason="the quick start uses SQLite"),
]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(title: str) -> str:
    """Return the block of code in the README that begins with ``# title``."""
    (found,) = re.findall(rf"```python\n# {re.escape(title)}[^\n]*\n(.*?)```", README, re.DOTALL)
    return str(found)


def commands() -> list[str]:
    """Return the commands that the README lists after the code, in order."""
    console = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    (found,) = [each for each in console if "makemigrations shop" in each]
    lines = re.findall(r"^\$ (.*?)(?:\s+#.*)?$", found, re.MULTILINE)
    return [part.strip() for line in lines for part in line.split("&&")]


class Project:
    """An empty project in a folder, with the code of the README."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("TEST_", "DJANGO_"))}
        self.environment |= {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
        self.run("-m", "django", "startproject", "project", ".")
        self.run("manage.py", "startapp", "shop")
        settings = folder / "project" / "settings.py"
        printed = block("settings.py").replace("    ...,\n", "    *INSTALLED_APPS,\n    'shop',\n")
        settings.write_text(f"{settings.read_text()}\n{printed}")
        (folder / "shop" / "models.py").write_text(block("shop/models.py"))
        (folder / "shop" / "automations.py").write_text(block("shop/automations.py"))

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip


def test_five_orders_of_short_lived_processes_give_five_invoices(tmp_path):
    project = Project(tmp_path)
    *once, worker = commands()
    assert worker == "python manage.py qcluster"
    for command in once:
        project.run(*command.split()[1:])
    log = tmp_path / "qcluster.log"
    cluster = project.start(log, *worker.split()[1:])
    try:
        until(lambda: log.read_text().count("ready for work at") >= 2, 30, "The cluster's start", log)
        for _ in range(5):
            project.run("manage.py", "shell", "-c", "from shop.models import Order; Order.objects.create(paid=True)")
        until(lambda: log.read_text().count("invoice for order") == 5, 30, "The printing of five invoices", log)
    finally:
        stop(cluster)
