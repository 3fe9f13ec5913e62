"""Captured writes: raw SQL as another program executes it, what has occurred, and a value of each type."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection

from django_ai.automation.events.models import CapturedWrite, Event
from tests.apps.captured.models import Everything

VALUES = {
    "flag": True,
    "number": -(2**62),
    "ratio": 0.1,
    "price": Decimal("123456789012345.12345"),
    "text": "\"quoted\" 'too', a \\ and ü\n",
    "day": date(2030, 2, 28),
    "moment": datetime(2030, 1, 7, 12, 30, 15, 123456, tzinfo=UTC),
    "time": time(23, 59, 58, 120000),
    "lasts": timedelta(days=3, hours=2, microseconds=7),
    "other": uuid.UUID("00112233-4455-6677-8899-aabbccddeeff"),
    "data": {"a": [1, 2.5, None, "ü"], "b": {"c": True}},
    "raw": b"\x00\xff\x10",
    "address": "192.168.0.1",
}
"""A value of each column of ``Everything``."""


def occurrences(name: str) -> list[str]:
    """Return the entities for which an event has occurred, one for each time."""
    events = Event.objects.occurred().filter(declared_as=name).order_by("pk")
    return list(events.values_list("entity_id", flat=True))


def outbox() -> list[tuple[str, str, str]]:
    """Return model, key and operation of each row of the outbox."""
    rows = CapturedWrite.objects.order_by("pk")
    return [(row.model.partition(".")[2], row.entity_id, row.operation) for row in rows]


@contextmanager
def another_program() -> Iterator[Any]:
    """Yield a cursor of the driver on a connection of its own, which no code of this package sees."""
    if connection.vendor == "sqlite":
        other = connection.Database.connect(**connection.get_connection_params())
    else:
        other = connection.Database.connect(
            **{
                name: value
                for name, value in connection.get_connection_params().items()
                if name not in ("cursor_factory", "context", "prepare_threshold")
            }
        )
    try:
        cursor = other.cursor()
        yield cursor
        other.commit()
    finally:
        other.close()


def stored(values) -> dict[str, object]:
    """Return the values as the database returns them: SQLite keeps 15 digits of a decimal."""
    one = Everything.objects.create(**values)
    return {name: plain(getattr(Everything.objects.get(pk=one.pk), name)) for name in values}


def plain(value):
    return bytes(value) if isinstance(value, memoryview) else value
