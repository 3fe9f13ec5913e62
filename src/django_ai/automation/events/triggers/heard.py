"""The comment at the end of a statement by which a process says that it rings the workers itself, and what has caused
the write. Triggers on PostgreSQL look for it: without it they notify the workers."""

from __future__ import annotations

import re

PATTERN = r"/\* automation: heard(?: in (\d+))?(?: (\d+) (\S+))? \*/\s*$"
"""How PostgreSQL finds the comment. Its groups: the number of the transaction, where it is not that of the database (a
``TestCase``), the depth in the chain of causes, and the cause."""
UNCAPTURED = "/* automation: uncaptured */"
"""The comment of a statement whose writes are not captured."""
LONGEST_COMMENT = 300


def comment(label: str = "", depth: int = 0, transaction: int = 0) -> str:
    """Return the comment for a statement that ``label`` has caused, if anything. ``transaction``: its number, if it is
    not that of the database."""
    cause = f" {depth} {re.sub(r'[^A-Za-z0-9_:.@+-]', '_', label)[:200]}" if label else ""
    return f"/* automation: heard{f' in {transaction}' if transaction else ''}{cause} */"
