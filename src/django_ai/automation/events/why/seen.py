"""``SeenEvent``: an event that somebody who waits has seen, and that did not match."""

from __future__ import annotations

from dataclasses import dataclass

from ..models import Event
from .answers import Condition


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """An event, who waits for such an event (a wait or a handler, in words), and what was compared."""

    event: Event
    waits: str
    conditions: list[Condition]

    @property
    def failing(self) -> list[Condition]:
        """What did not hold."""
        return [each for each in self.conditions if each.holds is False]
