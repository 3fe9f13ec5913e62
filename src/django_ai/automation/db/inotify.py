"""Which files are written to, by any process: inotify of Linux, through its C library.

A thread that waits for a write costs no processor time, and needs no file to be open. This matters beside SQLite: a
process that opens and closes the file of a database on its own loses the locks that SQLite holds on it
(https://www.sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

IN_MODIFY = 0x00000002
BUFFER_BYTES = 65536


class Inotify:
    """Reports writes to the files that were added. Raises ``OSError`` where there is no inotify, or none is left."""

    def __init__(self) -> None:
        self._library = _library()
        self._file = _checked(self._library.inotify_init1, os.O_NONBLOCK | os.O_CLOEXEC)

    def add(self, path: str) -> None:
        """Report writes to the file that is now at ``path``. Adding it again changes nothing. Raises ``OSError``."""
        _checked(self._library.inotify_add_watch, self._file, os.fsencode(path), IN_MODIFY)

    def fileno(self) -> int:
        """Return a file descriptor that is readable when a file has been written to."""
        return self._file

    def take(self) -> bool:
        """Discard the reports that have arrived; return whether there were any."""
        taken = False
        try:
            while os.read(self._file, BUFFER_BYTES):
                taken = True
        except BlockingIOError:
            pass
        return taken

    def close(self) -> None:
        """Close the file descriptor, which must not be used afterwards."""
        os.close(self._file)


@lru_cache(maxsize=1)
def _library() -> Any:
    if sys.platform != "linux":
        raise OSError("Only Linux has inotify.")
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "inotify_init1"):
        raise OSError("The C library has no inotify.")
    return library


def _checked(function: Callable[..., int], *arguments: Any) -> int:
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
