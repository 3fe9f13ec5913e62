"""What a verb writes: lines for people, or one JSON document; never a control character that came from data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, TypeVar

from django.core.management.base import CommandError, OutputWrapper

from ...queues.progress import Progress
from ...values.text import one_line, printable

REFUSED = 1
"""Exit code: something was not done, or a check found something."""
USAGE = 2
"""Exit code: the command was called with something that does not exist, or does not go together."""

T = TypeVar("T")


class Refused(CommandError):
    """The verb could not do all that it was asked for. What it did is written before the message."""

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.splitlines())), returncode=REFUSED)


class Usage(CommandError):
    """The command was called in a wrong way; nothing was done."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message), returncode=USAGE)


class Output:
    """Where a verb writes to. In JSON mode ``line`` writes nothing, and ``finish`` writes the document."""

    def __init__(self, out: OutputWrapper, err: OutputWrapper, *, as_json: bool = False) -> None:
        self.out, self.err, self.as_json = out, err, as_json

    def line(self, text: object = "", indent: int = 0) -> None:
        """Write one line for people; control characters of ``text`` become escapes."""
        if not self.as_json:
            self.out.write(f"{' ' * indent}{one_line(text)}")

    def text(self, text: str, indent: int = 0) -> None:
        """Write a text of several lines for people."""
        for line in text.splitlines():
            if not self.as_json:
                self.out.write(f"{' ' * indent}{printable(line)}")

    def warn(self, text: object) -> None:
        """Write one line to stderr, in both modes."""
        self.err.write(one_line(text))

    def table(self, rows: Sequence[Sequence[object]], titles: Sequence[str]) -> None:
        """Write aligned columns; the last one is as wide as it is."""
        if self.as_json:
            return
        cells = [list(titles), *([one_line("" if cell is None else cell) for cell in row] for row in rows)]
        widths = [max(len(row[number]) for row in cells) for number in range(len(titles))]
        for row in cells:
            padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
            self.out.write("  ".join([*padded, row[-1]]).rstrip())

    def progress(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """Yield ``items``, and show on stderr how many are done, if that takes longer."""
        shown = Progress(self.err, label, total)
        for number, item in enumerate(items, start=1):
            yield item
            shown.show(number)
        shown.end()

    def finish(self, document: Any) -> None:
        """Write the JSON document, in JSON mode."""
        if self.as_json:
            self.out.write(to_json(document))


def to_json(document: Any) -> str:
    """Return a document as one line of ASCII, so that nothing in it can control a terminal."""
    return json.dumps(document, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
