"""Which block of code counts as a transaction.

A ``TestCase`` runs each test in one transaction, and code that switches autocommit off keeps its hooks across commits.
There the outermost ``atomic`` block of the code itself counts as a transaction.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper


def outermost_block(connection: BaseDatabaseWrapper) -> tuple[Any, Any] | None:
    """Return what identifies the outermost block that counts as a transaction; None where the hooks suffice.

    The object of a block is not enough: a decorated function enters the same one each time that it is called.
    """
    blocks = connection.atomic_blocks
    if not blocks or (connection.commit_on_exit and not _is_of_test(blocks[0])):
        return None
    number = next((number for number, each in enumerate(blocks) if not _is_of_test(each)), 0)
    return blocks[number], connection.savepoint_ids[number - 1] if number else None


def is_in_test_case(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the open transaction is that of a test, which is never committed."""
    return bool(connection.atomic_blocks) and _is_of_test(connection.atomic_blocks[0])


def is_outside_of_blocks(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a statement of a test is executed outside of all blocks of its code: it is a transaction."""
    return is_in_test_case(connection) and all(_is_of_test(each) for each in connection.atomic_blocks)


def _is_of_test(block: Any) -> bool:
    return bool(getattr(block, "_from_testcase", False))
