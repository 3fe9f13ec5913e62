"""A promise that the demo checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .story import Day

Check = Callable[[Day], "str | None"]


@dataclass
class Promise:
    """Something that must happen. ``at_last``: it is checked after all others are decided."""

    what: str
    check: Check
    at_last: bool = False
    kept: str | None = None
    broken: str | None = None

    @property
    def is_decided(self) -> bool:
        return self.kept is not None or self.broken is not None

    def evaluate(self, day: Day) -> None:
        if not self.is_decided:
            try:
                self.kept = self.check(day)
            except AssertionError as error:
                self.broken = str(error)
