"""``uncaptured``: writes that the outbox does not get, although their table is captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_is_uncaptured: ContextVar[bool] = ContextVar("automation_uncaptured", default=False)


@contextmanager
def uncaptured() -> Iterator[None]:
    """Leave out of the outbox what this block writes to captured tables without a ``save()`` or ``delete()``.

    For writes that shall cause no events: a data migration that fills a new column of a large table would give workers
    a captured write for each of its rows. Saves and deletions of Django record their events as always. A date that is
    changed here is found by the maintenance. Has no effect on COPY and on statements of stored procedures.

    Example:
        In a data migration::

            from django_ai.automation.events.operations import uncaptured

            def fill(apps, schema_editor):
                with uncaptured():
                    apps.get_model("billing", "Invoice").objects.update(currency="EUR")
    """
    token = _is_uncaptured.set(True)
    try:
        yield
    finally:
        _is_uncaptured.reset(token)


def is_uncaptured() -> bool:
    """Return whether the running code is in a block of ``uncaptured``."""
    return _is_uncaptured.get()
