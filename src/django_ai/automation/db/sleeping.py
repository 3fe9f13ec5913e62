"""Sleeping until a moment, or until a file descriptor is readable: that of a pipe which wakes the thread, say."""

from __future__ import annotations

import select
import time


def pause(seconds: float, file: int | None = None) -> None:
    """Sleep for ``seconds``, or until ``file`` is readable."""
    if seconds > 0:
        if file is None:
            time.sleep(seconds)
        else:
            select.select([file], [], [], seconds)


def is_readable(file: int | None) -> bool:
    """Return whether ``file`` can be read without waiting."""
    return file is not None and bool(select.select([file], [], [], 0)[0])
