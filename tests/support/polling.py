"""Wait until something happens, with a deadline, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def until(condition: Callable[[], Any], seconds: float, what: str, log: Path | None = None) -> Any:
    """Poll until ``condition`` returns a true value, and return it. Fail after ``seconds``, with the log."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            tail = f"\n{log.read_text()[-6000:]}" if log else ""
            raise AssertionError(f"{what} did not happen within {seconds} s.{tail}")
        time.sleep(0.02)
