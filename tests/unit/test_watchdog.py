"""The watchdog is not inherited by a forked process, and continues in its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from django_ai.automation.queues.watchdog import watchdog

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork with threads

SCRIPT = """
import os, time
from django_ai.automation.queues import watchdog
watchdog.SECONDS_WITHOUT_PYTHON = 0.2
with watchdog.watchdog(0.0):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    time.sleep(30)
"""


def test_child_of_a_watched_process_can_be_watched_itself():
    with watchdog(60.0):
        pid = os.fork()
        if pid == 0:
            with watchdog(60.0):
                pass
            os._exit(0)
        assert exit_code_within(10.0, pid) == 0


def test_parent_stays_watched_after_a_fork():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=20)
    assert (done.returncode, "Timeout" in done.stderr) == (1, True), done.stderr


def exit_code_within(seconds: float, pid: int) -> int | None:
    """Return the exit code of the child. A child that has not ended is killed; the result is then None."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
