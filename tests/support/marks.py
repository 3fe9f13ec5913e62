"""Marks of tests that not all databases can run. The conftest skips them on the others."""

from __future__ import annotations

import pytest

VENDORS = frozenset({"sqlite", "postgresql", "mysql"})


def only_on(*vendors: str, reason: str = "") -> pytest.MarkDecorator:
    """Mark tests of some databases: skipped on others, and in each share of the tests on these.

    The second tier of the gate shares the tests out among the databases. A test that only one of them can run must not
    be in the share of another.
    """
    if unknown := {*vendors} - VENDORS:
        raise ValueError(f"{sorted(unknown)} are no databases of Django that are tested; those are {sorted(VENDORS)}.")
    return pytest.mark.databases(*vendors, reason=reason)


def not_on(*vendors: str, reason: str = "") -> pytest.MarkDecorator:
    """Mark tests that these databases cannot run. See ``only_on``."""
    return only_on(*(VENDORS - {*vendors}), reason=reason)
