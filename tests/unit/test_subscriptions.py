"""The subscription table: which subscribers receive an event, at which offset, and which offsets its row must cover."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest

from django_ai.automation.events import subscriptions
from django_ai.automation.events.models import Event
from django_ai.automation.events.subscriptions import Subscription, SubscriptionTable

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Subscription):
    who: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Subscription):
    uses_event_timer = False

    who: str = ""


@pytest.fixture
def table() -> SubscriptionTable:
    return SubscriptionTable()


def names(found):
    return [each.who for each in found]


@pytest.mark.parametrize(
    ("pattern", "namespace", "heard"),
    [
        ("paid", None, True),
        ("pai", None, False),
        ("*", None, True),
        ("pa*", None, True),
        ("*id", "*", True),
        ("paid:*", None, False),
        ("paid", "north", True),
        ("paid", "south", False),
        ("*", "south", False),
    ],
)
def test_a_subscription_hears_by_name_pattern_and_namespace(table, pattern, namespace, heard):
    subscription = Told(event_name=pattern, namespace=namespace)
    table.declare(Told, "key", [subscription])
    assert list(table.subscribed_to(Told, "paid", "north")) == ([subscription] if heard else [])
    assert subscription.matches(Event(event_name="paid", namespace="north")) is heard


def test_the_order_of_declaration_is_kept_also_when_a_key_declares_anew(table):
    table.declare(Told, "a", [Told(event_name="paid", who="a")])
    table.declare(Told, "b", [Told(event_name="*", who="b")])
    table.declare(Told, "a", [Told(event_name="pa*", who="a again"), Told(event_name="paid", who="a twice")])
    assert names(table.subscribed_to(Told, "paid", "")) == ["a again", "a twice", "b"]
    assert names(table.all(Told)) == ["a again", "a twice", "b"]
    assert names(table.declared_by(Told, "b")) == ["b"]


def test_kinds_of_one_key_are_kept_apart(table):
    table.declare(Told, "a", [Told(event_name="paid", who="told")])
    table.declare(Planned, "a", [Planned(event_name="paid", who="planned")])
    assert names(table.subscribed_to(Told, "paid", "")) == ["told"]
    assert names(table.subscribed_to(Planned, "paid", "")) == ["planned"]
    table.declare(Told, "a", [])
    assert not table.subscribed_to(Told, "paid", "")
    assert names(table.subscribed_to(Planned, "paid", "")) == ["planned"]


def test_what_was_looked_up_before_a_declaration_is_looked_up_again(table):
    assert not table.subscribed_to(Told, "paid", "")
    assert table.possible_offsets("paid") == []
    table.declare(Told, "a", [Told(event_name="paid", offset=HOUR)])
    assert len(table.subscribed_to(Told, "paid", "")) == 1
    assert table.possible_offsets("paid") == [HOUR]
    table.declare(Told, "a", [])
    table.declare(Told, "never declared", [])
    assert not table.subscribed_to(Told, "paid", "")
    assert table.possible_offsets("paid") == []


def test_the_row_is_the_timer_of_notified_subscribers_and_reaches_planned_ones_too(table):
    table.declare(Told, "a", [Told(event_name="paid"), Told(event_name="pa*", offset=HOUR)])
    table.declare(Told, "b", [Told(event_name="paid", offset=2 * HOUR, recheck=True, namespace="north")])
    table.declare(Planned, "c", [Planned(event_name="paid", offset=3 * HOUR)])
    table.declare(Told, "d", [Told(event_name="sent", offset=4 * HOUR)])
    assert list(table.offsets("paid", "").values()) == [HOUR]
    assert list(table.offsets("paid", "north").values()) == [HOUR, 2 * HOUR]
    assert set(table.offsets("paid", "north")) == {
        each.milestone for each in table.subscribed_to(Told, "paid", "north")
    } - {""}
    assert table.possible_offsets("paid") == [HOUR, 2 * HOUR, 3 * HOUR]


def test_a_template_is_reached_by_whoever_may_hear_one_of_its_events(table):
    table.declare(Told, "one", [Told(event_name="done:7", offset=HOUR)])
    table.declare(Told, "other", [Told(event_name="sent:7", offset=2 * HOUR)])
    assert table.possible_offsets("done:{{ instance.pk }}") == [HOUR]


def test_the_cache_of_names_is_bounded(table, monkeypatch):
    monkeypatch.setattr(subscriptions, "MAX_CACHED_NAMES", 2)
    table.declare(Told, "all", [Told(event_name="done:*", who="all")])
    for number in range(5):
        assert names(table.subscribed_to(Told, f"done:{number}", "")) == ["all"]
    assert len(table._matches) == 2
