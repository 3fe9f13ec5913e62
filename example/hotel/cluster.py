"""Starts and stops the processes of the example from a script."""

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
    """Exit with instructions unless ``modules`` can be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"This Python ({sys.executable}) lacks {error.name!r}. "
                "Start the example with `make demo` or `make serve`, which install what it needs."
            ) from error


def set_up_django(**environment: str) -> None:
    """Set up Django with the settings of the example. Child processes inherit ``environment``."""
    need("django", "django_ai.automation")
    os.environ.update(environment)
    os.environ["DJANGO_SETTINGS_MODULE"] = "hotel_site.settings"
    sys.path.insert(0, str(HERE))
    import django

    django.setup()


def exit_on_signals() -> None:
    """Raise ``KeyboardInterrupt`` on SIGTERM and SIGINT, so that ``finally`` blocks stop the child processes.

    SIGINT is set as well, because a shell starts background jobs with SIGINT ignored, and Python keeps it ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@contextlib.contextmanager
def command(*arguments: str, log: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``manage.py`` with ``arguments`` until the block ends; then send SIGTERM, and SIGKILL after ten seconds.

    It runs in a separate session, so that Ctrl-C in the terminal reaches only this process, which then stops it.
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
        finally:  # also after a second Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
