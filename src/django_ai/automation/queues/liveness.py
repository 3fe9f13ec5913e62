"""The heartbeat file of one process: touched every few seconds, for a liveness probe that needs no database.

A separate thread touches the file, and checks nothing but this process. So a database outage restarts no worker: its
loop notices the outage, waits and retries, which counts as alive. A process is not alive when a loop does not come
back: each working thread declares how long it may take (``expect_progress``), a step its timeout, everything else
``STALL_SECONDS``. After that the file is no longer touched, until the thread makes progress again.

This covers what nothing else ends, such as a connection that is neither open nor closed, or a defect of the engine.
User code is interrupted after its timeout, and a process that cannot be interrupted ends itself (``interrupt``).
"""

from __future__ import annotations

import glob
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from django.core.management.base import CommandError

logger = logging.getLogger("django_ai.automation")

TOUCH_SECONDS = 5.0
STALL_SECONDS = 300.0
"""How long a working thread may take between two calls: longer than a client needs to give up a connection to a
database that does not answer."""
MAX_AGE_SECONDS = 30.0
"""How old a file may be before its process counts as dead: several times ``TOUCH_SECONDS``."""

_until: dict[int, float] = {}


def expect_progress(seconds: float = 0.0) -> None:
    """Declare that this thread calls again within ``seconds`` plus ``STALL_SECONDS``."""
    _until[threading.get_ident()] = time.monotonic() + seconds + STALL_SECONDS


def expect_nothing() -> None:
    """Declare that this thread has nothing to do."""
    _until.pop(threading.get_ident(), None)


def is_responsive() -> bool:
    """Return whether each working thread of this process has called in time."""
    now = time.monotonic()
    return all(now < until for until in list(_until.values()))


class LivenessFile:
    """Touches the file ``path`` while this process is alive. Raises ``OSError`` if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._has_warned = False
        path.write_text(f"{os.getpid()}\n")

    def start(self) -> None:
        """Touch it from now on, until the process ends."""
        threading.Thread(target=self._run, name="automation-liveness", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(TOUCH_SECONDS)
            self.touch()

    def touch(self) -> None:
        """Touch the file, if this process is alive. Never raises if the file cannot be touched."""
        if not is_responsive():
            if not self._has_warned:
                logger.critical("A worker thread is stuck; the heartbeat file is no longer touched.")
            self._has_warned = True
            return
        self._has_warned = False
        try:
            self.path.touch()
        except OSError as error:
            logger.warning("The heartbeat file %s could not be touched: %s", self.path, error)


def start_liveness_file(path: str | None) -> None:
    """Let this process touch the file ``path``, if one is given. Raises ``CommandError`` if it cannot be written."""
    if not path:
        return
    try:
        LivenessFile(Path(path)).start()
    except OSError as error:
        raise CommandError(f"--heartbeat-file={path} cannot be written: {error}") from error


@dataclass(frozen=True, slots=True)
class LivenessReport:
    """What the files of a worker's processes show. ``ages``: for each file how many seconds ago it was touched."""

    path: str
    ages: dict[str, float]
    max_age: float

    @property
    def is_alive(self) -> bool:
        return bool(self.ages) and all(age <= self.max_age for age in self.ages.values())

    def __str__(self) -> str:
        if not self.ages:
            return f"Not alive: there is no file {self.path}. Does the worker run, with --heartbeat-file={self.path}?"
        late = [f"{path} was touched {age:.0f} s ago" for path, age in self.ages.items() if age > self.max_age]
        return f"Not alive: {', '.join(late)}." if late else "Alive."


def path_of(path: str, number: int) -> str:
    """Return the file of the worker process with this number, which starts at 1."""
    return path if number == 1 else f"{path}.{number}"


def existing_paths(path: str) -> list[str]:
    """Return the existing files of a worker's processes."""
    others = [each for each in glob.glob(f"{glob.escape(path)}.*") if each.rpartition(".")[2].isdigit()]
    return sorted([*filter(os.path.isfile, [path]), *others])


def check_liveness(path: str, max_age: float = MAX_AGE_SECONDS) -> LivenessReport:
    """Check the files of a worker's processes."""
    ages = {}
    for each in existing_paths(path):
        try:
            ages[each] = time.time() - os.stat(each).st_mtime
        except FileNotFoundError:
            continue
    return LivenessReport(path, ages, max_age)
