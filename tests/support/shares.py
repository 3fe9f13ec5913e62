"""``TEST_SHARE=0/2``: run one of two shares of the selected tests, numbered from 0.

The share of a test depends only on its name, so each test is in exactly one share, in any selection.
"""

from __future__ import annotations

import os
from zlib import crc32

VARIABLE = "TEST_SHARE"


class WrongShareError(ValueError):
    """The variable does not name a share."""


def is_in_share(nodeid: str, share: str) -> bool:
    """Return whether the test is in ``share``, such as ``0/2``. An empty share selects all tests.

    Raises:
        WrongShareError: ``share`` is not of the form ``NUMBER/OF``.
    """
    if not share:
        return True
    number, _, of = share.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise WrongShareError(f"{VARIABLE} is {share!r}, but must be NUMBER/OF, such as 0/2 or 1/2 for two halves.")
    return crc32(nodeid.encode()) % int(of) == int(number)


def share() -> str:
    return os.environ.get(VARIABLE, "")
