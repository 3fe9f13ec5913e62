"""Several things that one run waits for, as one text in the active language."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from django.utils.translation import gettext


def one_of(reasons: Sequence[str]) -> str:
    """Return several reasons, one of which is enough, as one. Empty ones are left out."""
    return _joined(gettext("%(first)s or %(second)s"), reasons)


def all_of(reasons: Sequence[str]) -> str:
    """Return several reasons, all of which are needed, as one."""
    return _joined(gettext("%(first)s and %(second)s"), reasons)


def _joined(both: str, reasons: Sequence[str]) -> str:
    found = [each for each in reasons if each]
    return reduce(lambda first, second: both % {"first": first, "second": second}, found) if found else ""
