"""The file in which workers note each call that they perform: the same clock and the same cost for all contestants.

A note is the number of the call, a time of the monotonic clock, which all processes of a machine share, and the
process. Appending one takes some microseconds. Needs nothing but the standard library, as every environment imports it.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

NOTE = struct.Struct("<qqq")
VARIABLE = "PEERS_LOGBOOK"


class Note(NamedTuple):
    number: int
    moment: int
    """Nanoseconds of the monotonic clock."""
    process: int


_open: dict[str, int] = {}


def note(number: int) -> None:
    """Append a note for call ``number``. Many processes may write at the same time."""
    name = os.environ[VARIABLE]
    if name not in _open:
        _open[name] = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(_open[name], NOTE.pack(number, time.monotonic_ns(), os.getpid()))


class Logbook:
    """Reads what the workers have noted since the last ``clear``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0

    def clear(self) -> None:
        """Forget the notes so far. The file stays, because workers keep it open."""
        self._start = self._size()

    def count(self) -> int:
        return (self._size() - self._start) // NOTE.size

    def notes(self) -> list[Note]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._start)
            content = file.read()
        return [Note(*each) for each in NOTE.iter_unpack(content[: len(content) // NOTE.size * NOTE.size])]

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def drain_rate(notes: list[Note], finished: int, processes: int) -> float:
    """Return the calls per second from the moment when the last process had begun until ``finished``.

    The processes do not start in the same instant. What the first ones do alone says nothing of all of them, so the
    time begins with the first note of the last process, and only the notes after it count.

    Raises:
        ValueError: If fewer than ``processes`` took part, or too few calls were left for the last of them.
    """
    first: dict[int, int] = {}
    for each in notes:
        first[each.process] = min(first.get(each.process, each.moment), each.moment)
    if len(first) < processes:
        raise ValueError(f"{len(first)} of {processes} worker processes took part")
    begun = sorted(first.values())[processes - 1]
    counted = sum(each.moment > begun for each in notes)
    if counted < len(notes) / 4:
        raise ValueError(f"only {counted} of {len(notes)} calls were left when the last worker process began")
    return counted / ((finished - begun) / 1e9)
