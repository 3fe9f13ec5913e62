"""``TEST_SHARE=0/2``: run one of two shares of the selected tests, numbered from 0; ``0,1/4``: two of four.

``TEST_PART=0/2`` selects one of two parts of these once more, for two runs beside each other on one database.

The share of a test depends only on its name, so each test is in exactly one share, in any selection.
"""

from __future__ import annotations

import os
from zlib import crc32

VARIABLE = "TEST_SHARE"
PART = "TEST_PART"


class WrongShareError(ValueError):
    """The variable does not name a share."""


def is_in_share(nodeid: str, share: str) -> bool:
    """Return whether the test is in ``share``, such as ``0/2`` or ``0,1/4``. An empty share selects all tests.

    Raises:
        WrongShareError: ``share`` is not of the form ``NUMBER/OF`` or ``NUMBER,NUMBER/OF``.
    """
    if not share:
        return True
    numbers, _, of = share.partition("/")
    wanted = numbers.split(",")
    if not (of.isdecimal() and all(number.isdecimal() and int(number) < int(of) for number in wanted)):
        raise WrongShareError(f"{VARIABLE} is {share!r}, but must be NUMBER/OF, such as 0/2 or 1/2 for two halves.")
    return str(crc32(nodeid.encode()) % int(of)) in wanted


def share() -> str:
    return os.environ.get(VARIABLE, "")


def part() -> str:
    return os.environ.get(PART, "")
