"""Start and stop the hotel's processes from a script."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent


def need(*modules: str) -> None:
    """End with a sentence that says what to do, unless ``modules`` can be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"This Python ({sys.executable}) lacks {error.name!r}. "
                "Start the hotel with `make demo` or `make serve`, which install what it needs."
            ) from error


def set_up_django(**environment: str) -> None:
    """Make this process one of the hotel's. ``environment`` reaches the processes that it starts, too."""
    need("django", "django_ai.automation")
    os.environ.update(environment)
    os.environ["DJANGO_SETTINGS_MODULE"] = "hotel_site.settings"
    sys.path.insert(0, str(HERE))
    import django

    django.setup()


def stop_in_order() -> None:
    """Let SIGTERM and SIGINT unwind this process, so that what it started is stopped with it.

    Both are set, because a shell starts a background job with SIGINT ignored, and Python then leaves it so.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def command(*arguments: str, log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``manage.py`` with ``arguments`` until the block ends; then ask it to stop, and insist after a while.

    It has a session of its own, so that a Ctrl-C in the terminal reaches this process only, which stops it in order.
    """
    process = subprocess.Popen(
        [sys.executable, str(HERE / "manage.py"), *arguments],
        cwd=HERE,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        finally:  # a second, impatient Ctrl-C leaves nobody behind either
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
