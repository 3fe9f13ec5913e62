"""The tutorial as printed: its files and commands work in an empty folder, with the printed output."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documentation import ROOT, TUTORIAL
from tests.support.marks import only_on

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.alone,
    only_on("sqlite", reason="the tutorial uses SQLite"),
]

INSTALLATION = ("mkdir ", "cd ", "python -m venv", ". .venv", "pip install")
"""The commands that the test skips, because the folder and the package already exist."""
WORKER = "python manage.py automation_worker"
SERVER = "python manage.py runserver"
SECONDS = 30

LOG_IN = """
from django.contrib.auth.models import User
from django.test import Client
client = Client(SERVER_NAME="localhost")
client.force_login(User.objects.get(username="admin"))
for page in ("automation_events/event", "automation_workflows/workflowrun", "automation_agents/agentrun"):
    assert client.get(f"/admin/{page}/").status_code == 200, page
"""
"""Code that opens the admin pages that a reader sees after the login."""


class Shop:
    """A folder in which the test runs the tutorial, and its worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.parent / "worker.log"
        self.read = 0
        self.worker: subprocess.Popen[bytes] | None = None
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("TEST_", "DJANGO_"))}
        self.environment |= {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}

    def write(self, source: str) -> None:
        """Write a file. The first line of ``source`` contains its name, and whether to append to it."""
        first, _, rest = source.partition("\n")
        name, _, how = first.removeprefix("# ").partition(", ")
        path = self.folder / name
        before = f"{path.read_text()}\n" if how == "add at the end" else ""
        path.write_text(before + rest)

    def type(self, command: str, printed: list[str]) -> None:
        """Run a command, and compare its output with ``printed``."""
        if command == WORKER:
            self.stop()
            self.read = 0
            with self.log.open("wb") as output:
                self.worker = subprocess.Popen(
                    [sys.executable, *shlex.split(command)[1:]],
                    cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            return
        if command == SERVER:
            command = shlex.join(["python", "manage.py", "shell", "-c", LOG_IN])
        found = self.run(command)
        assert is_printed(printed, found), f"$ {command}\nprinted:\n{found}\ninstead of:\n" + "\n".join(printed)

    def run(self, command: str) -> str:
        words = shlex.split(command, comments=True)
        given = dict(word.split("=", 1) for word in words if re.fullmatch(r"[A-Z_]+=.*", word))
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
        program = {"python": [], "django-admin": ["-m", "django"]}[words[0]]
        done = subprocess.run(
            [sys.executable, *program, *words[1:]],
            cwd=self.folder, env={**self.environment, **given}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        return done.stdout

    def expect(self, lines: list[str]) -> None:
        """Wait until the worker has printed ``lines``, in any order and possibly among other lines."""
        deadline = time.monotonic() + SECONDS
        while not set(lines) <= set(self.log.read_text()[self.read :].splitlines()):
            assert time.monotonic() < deadline, f"The worker did not print {lines}:\n{self.log.read_text()}"
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the worker as Ctrl-C does."""
        if self.worker is None:
            return
        os.killpg(self.worker.pid, signal.SIGINT)
        try:
            code = self.worker.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.worker.pid, signal.SIGKILL)
            raise
        self.worker = None
        assert code == 0, self.log.read_text()


def is_printed(lines: list[str], text: str) -> bool:
    """Return whether ``text`` contains these lines; ``...`` matches anything."""
    pattern = "\n".join(lines)
    body = ".*".join(re.escape(part) for part in pattern.split("..."))
    return re.search(body, text, re.DOTALL) is not None


def blocks() -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each code block of the page."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a block, and the output lines below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, *printed = part.rstrip("\n").split("\n")
        if not line.startswith(INSTALLATION):
            yield line, printed


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    folder = tmp_path / "shop-tutorial"
    folder.mkdir()
    found = Shop(folder)
    try:
        yield found
    finally:
        if found.worker is not None:
            os.killpg(found.worker.pid, signal.SIGKILL)
            found.worker.wait()


def test_the_tutorial_as_printed(shop: Shop) -> None:
    for language, text in blocks():
        if language == "python":
            shop.write(text)
        elif language == "console":
            for command, printed in commands(text):
                shop.type(command, printed)
        else:
            shop.expect(text.splitlines())
    shop.stop()
