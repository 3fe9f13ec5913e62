"""Limits: what a definition may declare, and the arithmetic of a throttle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import (
    Concurrency,
    RateLimit,
    Singleton,
    Throttle,
    agent,
    complete,
    event_workflow,
    handler,
    on_event,
    step,
    workflow,
)
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.values.limits import declared_limits, next_start

SECOND = timedelta(seconds=1)
NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)
BY_CUSTOMER = "{{ ctx.customer_id }}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Concurrency(0), r"Concurrency\(limit=0\): give a whole number of 1 or more"),
        (lambda: Concurrency(True), r"Concurrency\(limit=True\)"),
        (lambda: Concurrency(2.5), r"Concurrency\(limit=2.5\)"),
        (lambda: Concurrency(3, key="customer_id"), r"key='customer_id'\): a key is a string with an expression"),
        (lambda: Concurrency(3, key=7), r"key=7"),
        (lambda: Concurrency(3, key="{{ ctx.a }}" + "x" * 150), "at most 150 characters"),
        (lambda: Throttle(0, per=SECOND), r"Throttle\(limit=0\)"),
        (lambda: Throttle(1, per=60), r"Throttle\(per=60\): give a positive timedelta"),
        (lambda: Throttle(1, per=SECOND, burst=0), r"Throttle\(burst=0\)"),
        (lambda: RateLimit(1, per=timedelta(0)), r"RateLimit\(per=datetime.timedelta\(0\)\)"),
        (lambda: Singleton(on_conflict="skipp"), r"on_conflict='skipp'\).*Did you mean 'skip'\?"),
        (lambda: Singleton(on_conflict="wait"), r"Write one of 'skip', 'cancel_running', 'queue'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_the_fix(make, message):
    with pytest.raises(DefinitionError, match=message):
        make()


def test_the_limits_that_may_refuse_come_first_and_the_total_last():
    total, by_key = Concurrency(20), Concurrency(3, key=BY_CUSTOMER)
    found = declared_limits(
        "x",
        concurrency=[total, by_key],
        throttle=Throttle(1, per=SECOND),
        rate_limit=RateLimit(1, per=SECOND),
        singleton=Singleton(),
    )
    assert [each.name for each in found] == [
        "rate_limit",
        "singleton",
        "throttle",
        f"concurrency {BY_CUSTOMER}",
        "concurrency",
    ]
    assert [each.limit for each in found[-2:]] == [by_key, total]


def test_no_limit_is_no_limit():
    assert declared_limits("x") == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concurrency": 3}, r"x: concurrency=3 must be a Concurrency\(...\)"),
        ({"concurrency": []}, "x: concurrency= is empty"),
        ({"concurrency": [Concurrency(3), Concurrency(4)]}, "two limits with the same key"),
        ({"throttle": Concurrency(3)}, r"throttle=Concurrency\(limit=3, key=None\) must be a Throttle"),
        ({"rate_limit": Throttle(3, per=SECOND)}, r"must be a RateLimit\(...\)"),
        ({"singleton": True}, r"singleton=True must be a Singleton\(...\)"),
    ],
)
def test_an_argument_of_another_kind_is_refused(arguments, message):
    with pytest.raises(DefinitionError, match=message):
        declared_limits("x", **arguments)


def starts(throttle: Throttle, moments: list[datetime]) -> list[float]:
    """Return when rows start that ask at ``moments``, in seconds after noon."""
    next_at, found = None, []
    for moment in moments:
        start, next_at = next_start(throttle, moment, next_at)
        found.append((start - NOON).total_seconds())
    return found


def test_a_throttle_spreads_starts_evenly():
    assert starts(Throttle(4, per=SECOND), [NOON] * 5) == [0, 0.25, 0.5, 0.75, 1]


def test_a_throttle_lets_a_burst_start_at_once_and_then_spreads():
    assert starts(Throttle(4, per=SECOND, burst=3), [NOON] * 6) == [0, 0, 0, 0.25, 0.5, 0.75]


def test_a_throttle_saves_no_more_than_its_burst():
    later = NOON + 10 * SECOND
    assert starts(Throttle(2, per=SECOND), [NOON, later, later]) == [0, 10, 10.5]
    assert starts(Throttle(2, per=SECOND, burst=2), [NOON, later, later, later]) == [0, 10, 10, 10.5]


class Customer(BaseModel):
    customer_id: int = 0
    address: dict[str, str] = {}


def declare(decorator, context=Customer):
    body = {"Context": context, "begin": step(start=True)(begin), "__module__": __name__, "__qualname__": "Declared"}
    return decorator(type("Declared", (), body))


def begin(self):
    return complete()


@pytest.mark.parametrize("make", [lambda **limits: workflow("unit:limited", **limits), lambda **limits: event_workflow(
    "reservation_confirmed", name="unit:limited", **limits)], ids=["workflow", "event_workflow"])  # fmt: skip
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"concurrency": Concurrency(3, key="{{ ctx.custmer_id }}")}, r"no field 'custmer_id'. Did you mean 'cust"),
        ({"throttle": Throttle(3, per=SECOND, key="{{ ctx.x }}")}, r"no field 'x'. It has: customer_id, address"),
        ({"rate_limit": RateLimit(3, per=SECOND, key="{{ instance.pk }}")}, r"write \{\{ ctx.field \}\}"),
        ({"singleton": Singleton(key="{{ ctx.customer_id|upper }}")}, "no filters"),
    ],
)
def test_a_key_of_a_run_reads_fields_of_its_context(make, limits, message):
    with pytest.raises(DefinitionError, match=message):
        declare(make(**limits))


def test_a_key_may_read_into_a_field():
    declare(workflow("unit:limited", concurrency=Concurrency(1, key="{{ ctx.address.town }}:{{ ctx.customer_id }}")))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("{{ ctx.customer_id }}", r"write \{\{ instance.field \}\}"),
        ("{{ instance._state }}", "begin with an underscore"),
    ],
)
def test_a_key_of_a_call_reads_the_entity(key, message):
    with pytest.raises(DefinitionError, match=message):
        on_event("reservation_confirmed", concurrency=Concurrency(1, key=key))


def test_a_key_of_a_handler_reads_fields_of_the_agents_context():
    class Declared:
        Context = Customer

        @handler("reservation_confirmed", throttle=Throttle(1, per=SECOND, key="{{ ctx.custom_id }}"))
        def greet(self):
            pass

    with pytest.raises(DefinitionError, match=r"greet: throttle.*no field 'custom_id'. Did you mean 'customer_id'"):
        agent("unit:limited")(Declared)
