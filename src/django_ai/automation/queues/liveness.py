"""The pulse of one process: a file that is touched every few seconds, for a liveness probe that needs no database.

A thread touches it, which asks nobody but this process. So a database that is away restarts no worker: its loop
notices, waits and tries again, and that is life. What is not alive is a loop that does not come back: each thread that
works says for how long it may be away (``expect``), a step for its timeout, all else for ``STALL_SECONDS``. When that
is over the file is touched no more, until the thread is back.

That is for what nothing else ends, such as a connection that is neither open nor closed, or a fault of the engine. User
code is interrupted after its timeout, and a process that cannot be interrupted ends by itself (``interrupt``).
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
"""How long a thread that works may be away with no word: longer than a client takes to give up a connection to a
database that does not answer."""
MAX_AGE_SECONDS = 30.0
"""How old a file may be before its process counts as dead: several times what it takes to touch it."""

_until: dict[int, float] = {}


def expect(seconds: float = 0.0) -> None:
    """Say that this thread is back within ``seconds`` and ``STALL_SECONDS``, and then says so."""
    _until[threading.get_ident()] = time.monotonic() + seconds + STALL_SECONDS


def rest() -> None:
    """Expect nothing of this thread: it has nothing to do."""
    _until.pop(threading.get_ident(), None)


def is_responsive() -> bool:
    """Return whether each thread of this process that works is back in time."""
    now = time.monotonic()
    return all(now < until for until in list(_until.values()))


class Pulse:
    """Touches the file ``path`` while this process is alive. Raises ``OSError`` where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_told = False
        path.write_text(f"{os.getpid()}\n")

    def start(self) -> None:
        """Touch it from now on, until the process ends."""
        threading.Thread(target=self._run, name="automation-pulse", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(TOUCH_SECONDS)
            self.touch()

    def touch(self) -> None:
        """Touch the file, if this process is alive. Never raises for trouble with the file."""
        if not is_responsive():
            if not self._is_told:
                logger.critical("A thread that works does not come back; the heartbeat file is touched no more.")
            self._is_told = True
            return
        self._is_told = False
        try:
            self.path.touch()
        except OSError as error:
            logger.warning("The heartbeat file %s could not be touched: %s", self.path, error)


def start_pulse(path: str | None) -> None:
    """Let this process touch the file ``path``, if one is given. Raises ``CommandError`` where it cannot be written."""
    if not path:
        return
    try:
        Pulse(Path(path)).start()
    except OSError as error:
        raise CommandError(f"--heartbeat-file={path} cannot be written: {error}") from error


@dataclass(frozen=True, slots=True)
class Liveness:
    """What the files of a worker's processes say. ``ages``: for each file how many seconds ago it was touched."""

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


def file_of(path: str, number: int) -> str:
    """Return the file of the worker process with this number, the first of which is 1."""
    return path if number == 1 else f"{path}.{number}"


def files_of(path: str) -> list[str]:
    """Return the files of all processes of a worker that there are."""
    others = [each for each in glob.glob(f"{glob.escape(path)}.*") if each.rpartition(".")[2].isdigit()]
    return sorted([*filter(os.path.isfile, [path]), *others])


def look(path: str, max_age: float = MAX_AGE_SECONDS) -> Liveness:
    """Look at the files of a worker's processes."""
    ages = {}
    for each in files_of(path):
        try:
            ages[each] = time.time() - os.stat(each).st_mtime
        except FileNotFoundError:
            continue
    return Liveness(path, ages, max_age)
