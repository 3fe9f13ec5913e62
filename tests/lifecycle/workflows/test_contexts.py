"""The Context of a run: rich types, wrong types, and the wake reasons in the history."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel, Field

from django_ai.automation.workflows.core import Retry, complete, engine, get_wake, sleep, wait
from tests.support.rows import the_run
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
ONCE = Retry(max_attempts=1)


def test_rich_types_come_back(clock, work):
    import datetime as dt
    import uuid
    from decimal import Decimal
    from enum import Enum

    class Colour(Enum):
        RED = "red"

    class Inner(BaseModel):
        when: dt.date

    class Context(BaseModel):
        at: dt.datetime
        price: Decimal
        code: uuid.UUID
        colour: Colour
        inner: Inner
        pairs: dict[int, tuple[int, str]]
        tags: set[str]
        span: timedelta
        raw: bytes
        aliased: int = Field(0, alias="Aliased")

    values = {
        "at": clock(),
        "price": Decimal("10.50"),
        "code": uuid.UUID(int=5),
        "colour": Colour.RED,
        "inner": Inner(when=dt.date(2030, 1, 1)),
        "pairs": {1: (2, "x")},
        "tags": {"a"},
        "span": HOUR,
        "raw": b"abc",
        "Aliased": 7,
    }

    def end(self):
        expected = Context(**values)
        assert self.context == expected, (self.context, expected)
        return complete()

    flow(lambda self: sleep(HOUR, then=self.end), context=Context, end=end, retry=ONCE)
    run(work, **values)
    clock.tick(HOUR)
    work()
    assert (the_run().status, the_run().error) == ("completed", "")


def test_a_field_set_to_another_type_is_taken_where_it_validates(work):
    def first(self):
        self.context.n = "5"
        return complete()

    flow(first)
    found = run(work)
    assert (found.status, found.data["n"]) == ("completed", 5)


def test_a_field_set_to_nonsense_fails_and_is_named(work):
    def first(self):
        self.context.n = "many"
        return complete()

    flow(first, retry=ONCE)
    found = run(work)
    assert found.status == "failed"
    assert "n" in found.error
    assert "many" in found.error


def test_history_keeps_why_a_step_was_entered(clock, work):
    def first(self):
        return {
            "first": lambda: sleep(HOUR),
            "timer": lambda: wait("x", timeout=HOUR),
            "timeout": lambda: wait("x"),
            "signal": complete,
        }[get_wake().reason]()

    flow(first)
    found = run(work)
    for _ in range(2):
        clock.tick(HOUR)
        work()
    engine.signal("x")
    work()
    assert list(found.steps.values_list("wake_reason", "outcome")) == [
        ("first", "sleep"),
        ("timer", "wait"),
        ("timeout", "wait"),
        ("signal", "complete"),
    ]
