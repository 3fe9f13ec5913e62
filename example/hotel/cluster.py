"""Start and stop the hotel's processes from a script."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent


def set_up_django(**environment: str) -> None:
    """Make this process one of the hotel's. ``environment`` reaches the processes that it starts, too."""
    os.environ.update(environment)
    os.environ["DJANGO_SETTINGS_MODULE"] = "hotel_site.settings"
    sys.path.insert(0, str(HERE))
    import django

    django.setup()


@contextlib.contextmanager
def command(*arguments: str, log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``manage.py`` with ``arguments`` until the block ends; then ask it to stop, and insist after a while."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "manage.py"), *arguments],
        cwd=HERE, stdout=log, stderr=subprocess.STDOUT if log else None, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
