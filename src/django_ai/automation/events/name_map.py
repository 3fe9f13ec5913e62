"""``NameMap``: what becomes of the names of an event that is renamed, also if its name is a template or a family."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..exceptions import DefinitionError
from .expressions import EXPRESSION
from .names import MAX_NAME, pattern_of

_PLACE = re.compile(rf"{EXPRESSION.pattern}|\*")


class NameMap:
    """Maps the old names of an event to the new ones.

    The parts of a template (``"task_done:{{ instance.pk }}"``) or a family (``"stripe:*"``) that vary stay as they are.
    """

    def __init__(self, old: str, new: str, what: str) -> None:
        self.old, self.new = old, new
        self._varying, places = _places(old), _places(new)
        if sorted(self._varying) != sorted(places) or len(set(places)) != len(places):
            raise DefinitionError(
                f"{what}: {old!r} has the varying parts {', '.join(self._varying) or 'none'}, and {new!r} has "
                f"{', '.join(places) or 'none'}. Both need the same, each once, so that stored names can be converted."
            )
        self._order = [self._varying.index(place) for place in places]
        self._between = _between(new)
        parts = [re.escape(each) for each in _between(old)]
        self._pattern = re.compile("(.+)".join(parts), re.DOTALL)

    @property
    def is_plain(self) -> bool:
        """Whether each has exactly one name."""
        return not self._varying

    @property
    def beginning(self) -> str:
        """What every old name begins with."""
        return _between(self.old)[0]

    def get(self, name: str) -> str | None:
        """Return the new name for a stored one, or None if it is no name of this event.

        Raises ``DefinitionError`` for one that becomes too long.
        """
        for before, after in ((self.old, self.new), (pattern_of(self.old), pattern_of(self.new))):
            if name == before:
                return after
        found = None if self.is_plain else self._pattern.fullmatch(name)
        if found is None:
            return None
        text = self._between[0]
        for index, between in zip(self._order, self._between[1:], strict=True):
            text += found.group(index + 1) + between
        if len(text) > MAX_NAME:
            raise DefinitionError(
                f"The event name {name!r} would become longer than {MAX_NAME} characters. Choose a shorter new name."
            )
        return text


def _places(name: str) -> list[str]:
    """Return the parts of a name that vary: its expressions, without spaces, and ``*`` with their numbers."""
    found: Sequence[str] = [each.group(0) for each in _PLACE.finditer(name)]
    stars = iter(range(1, len(found) + 1))
    return [f"*{next(stars)}" if each == "*" else re.sub(r"\s", "", each) for each in found]


def _between(name: str) -> list[str]:
    """Return the fixed parts of a name, around those that vary."""
    found, at = [], 0
    for each in _PLACE.finditer(name):
        found.append(name[at : each.start()])
        at = each.end()
    return [*found, name[at:]]
