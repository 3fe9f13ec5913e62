"""``was=`` and ``becomes=``: which changes count, and which arguments are refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum

import pytest
from django.db import models

from django_ai.automation.events.changes import Change, as_stored, changes_of
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.exceptions import DefinitionError
from tests.apps.reservations.models import Guest, Reservation
from tests.support.event_options import Bill

CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


class Status(models.TextChoices):
    PENDING = "pending"
    CONFIRMED = "confirmed"


class Plain(Enum):
    PENDING = "pending"


def holds(definition: EventDefinition, before, after) -> bool:
    transition = definition.transition
    assert transition is not None
    return transition.holds(Reservation, before, after)


def status(value: str | None):
    return None if value is None else {"status": value}


BOTH = {"was": {"status": "pending"}, "becomes": {"status": "confirmed"}}
BECOMES = {"becomes": {"status": "confirmed"}}
WAS = {"was": {"status": "pending"}}
SEVERAL = {"was": {"status": ["pending", "asked"]}, "becomes": {"status": ("asked", "confirmed")}}
LONG = {"becomes": {"status": lambda value: len(value) > 5}}


@pytest.mark.parametrize(
    ("arguments", "before", "after", "expected"),
    [
        (BOTH, "pending", "confirmed", True),
        (BOTH, "other", "confirmed", False),
        (BOTH, "pending", "other", False),
        (BOTH, "confirmed", "confirmed", False),
        (BOTH, None, "confirmed", False),
        (BOTH, "pending", None, False),
        (BECOMES, "other", "confirmed", True),
        (BECOMES, None, "confirmed", True),
        (BECOMES, "confirmed", "confirmed", False),
        (BECOMES, "confirmed", "other", False),
        (BECOMES, "confirmed", None, False),
        (WAS, "pending", "other", True),
        (WAS, "pending", None, True),
        (WAS, "pending", "pending", False),
        (WAS, "other", "pending", False),
        (WAS, None, "pending", False),
        (SEVERAL, "pending", "asked", True),
        (SEVERAL, "asked", "confirmed", True),
        (SEVERAL, "asked", "asked", False),
        (SEVERAL, "pending", "pending", False),
        (LONG, "short", "longer than five", True),
        (LONG, "as long as that", "longer than five", False),
        ({"was": {"status": Status.PENDING}}, "pending", "other", True),
        ({"was": {"status": Plain.PENDING}}, "pending", "other", True),
    ],
)
def test_which_changes_count(arguments, before, after, expected):
    assert holds(EventDefinition("changed", **arguments), status(before), status(after)) is expected


def test_of_several_fields_all_must_match_and_one_must_change():
    ready = EventDefinition("ready", becomes={"status": "confirmed", "docs": True})
    assert holds(ready, {"status": "confirmed", "docs": False}, {"status": "confirmed", "docs": True})
    assert not holds(ready, {"status": "confirmed", "docs": True}, {"status": "confirmed", "docs": True})
    assert not holds(ready, {"status": "pending", "docs": False}, {"status": "confirmed", "docs": False})
    crossed = EventDefinition("crossed", was={"status": "pending"}, becomes={"docs": True})
    assert holds(crossed, {"status": "pending", "docs": False}, {"status": "pending", "docs": True})
    assert holds(crossed, {"status": "pending", "docs": True}, {"status": "confirmed", "docs": True})
    assert not holds(crossed, {"status": "pending", "docs": True}, {"status": "pending", "docs": True})
    assert crossed.compared_fields == ("status", "docs")


@pytest.mark.parametrize(
    ("field", "wanted", "actual"),
    [
        ("amount", 5, Decimal("5.00")),
        ("amount", "5", Decimal("5.00")),
        ("amount", 1.1, Decimal("1.10")),
        ("number", "5", 5),
        ("day", "2030-01-01", date(2030, 1, 1)),
        ("due_at", datetime(2030, 1, 1, 13, tzinfo=timezone(timedelta(hours=1))), datetime(2030, 1, 1, 12, tzinfo=UTC)),
        ("details", {"b": 1, "a": [None]}, {"a": [None], "b": 1}),
        ("details", [[1, 2]], [1, 2]),
        ("guest", 7, 7),
        ("guest_id", "7", 7),
        ("guest", Guest(pk=7), 7),
        ("due_at", None, None),
        ("paid", 1, True),
    ],
)
def test_values_are_compared_with_the_type_of_the_field(field, wanted, actual):
    transition = EventDefinition("changed", becomes={field: wanted}).transition
    assert transition is not None
    assert transition.holds(Bill, None, {field: actual})
    assert not transition.holds(Bill, None, {field: "something else"})


@pytest.mark.parametrize(
    ("arguments", "triggers"),
    [
        (BOTH, {UPDATE}),
        (WAS, {UPDATE}),
        (BECOMES, {CREATE, UPDATE}),
        ({**BECOMES, "trigger": UPDATE}, {UPDATE}),
        ({**BECOMES, "trigger": "create"}, {CREATE}),
        ({**WAS, "trigger": DELETE}, {DELETE}),
        ({**WAS, "trigger": [UPDATE, DELETE]}, {UPDATE, DELETE}),
    ],
)
def test_which_kinds_of_write_can_be_a_transition(arguments, triggers):
    assert EventDefinition("changed", **arguments).triggers == triggers


async def later(value):
    return True


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"was": "draft"}, "was='draft' must be a dict"),
        ({"becomes": {}}, "becomes={} must be a dict"),
        ({"becomes": {"": 1}}, "becomes names ''"),
        ({"becomes": {5: 1}}, "becomes names 5"),
        ({"becomes": {"status__in": ["a"]}}, "lookups are not supported"),
        ({"becomes": {"status": []}}, "status=[] must be a list of one value or more"),
        ({"becomes": {"status": [str.isupper]}}, "without functions"),
        ({"becomes": {"status": Status}}, "is a class"),
        ({"becomes": {"status": later}}, "async_to_sync"),
        ({"becomes": {"status": lambda: True}}, "is called with (value)"),
        ({"was": {"status": "a"}, "becomes": {"status": "a"}}, "it never occurs"),
        ({**BECOMES, "watch_fields": ["status"]}, "watch_fields= has no effect"),
        ({**BECOMES, "date_field": "checkin_at"}, "immediate events"),
        ({**BOTH, "trigger": CREATE}, "trigger=CREATE and was= contradict"),
        ({**WAS, "trigger": CREATE}, "trigger=CREATE and was= contradict"),
        ({**BOTH, "trigger": DELETE}, "trigger=DELETE and becomes= contradict"),
        ({**BECOMES, "trigger": [UPDATE, DELETE]}, "trigger=DELETE and becomes= contradict"),
        ({**BECOMES, "trigger": "written"}, "trigger='written' must be"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, named):
    with pytest.raises(DefinitionError) as raised:
        EventDefinition("changed", **arguments)
    assert named in str(raised.value)


def test_a_definition_keeps_its_own_copy():
    wanted = {"status": "confirmed"}
    definition = EventDefinition("changed", becomes=wanted)
    wanted["status"] = "other"
    assert holds(definition, None, {"status": "confirmed"})


# -- changes -----------------------------------------------------------------------------------------------------------

VALUES = {
    "amount": (Decimal("1.50"), Decimal("-2.00")),
    "share": (0.1, 1e300),
    "number": (5, -7),
    "due_at": (datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC), None),
    "day": (date(2030, 1, 1), date(2030, 1, 2)),
    "lasts": (timedelta(hours=1, microseconds=5), timedelta(0)),
    "raw": (b"\x00abc", b""),
    "details": ({"a": [1, None, "x"]}, [1, 2]),
    "title": ("a", "ü\n"),
    "paid": (False, True),
    "guest": (None, 7),
}


def test_changes_keep_their_types_through_json():
    before = {name: pair[0] for name, pair in VALUES.items()}
    after = {name: pair[1] for name, pair in VALUES.items()}
    stored = Change(before, after).stored(Bill, VALUES, changed_only=True)
    assert changes_of("app.bill", stored) == VALUES
    assert Change(before, before).stored(Bill, VALUES, changed_only=True) == {}
    assert changes_of("app.bill", Change(before, before).stored(Bill, VALUES, changed_only=False)) == {}


def test_what_does_not_exist_has_no_values():
    assert Change(None, {"number": 5}).stored(Bill, ["number"], changed_only=True) == {"number": [None, 5]}
    assert Change({"number": 5}, None).stored(Bill, ["number"], changed_only=True) == {"number": [5, None]}


@pytest.mark.parametrize(
    ("field", "old", "value"),
    [("share", 1.0, float("nan")), ("share", 1.0, float("inf")), ("title", "a", "\x00"), ("details", [], ["\ud800"])],
)
def test_what_json_cannot_hold_is_none(field, old, value):
    stored = Change({field: old}, {field: value}).stored(Bill, [field], changed_only=True)
    assert stored == {field: [old, None]}


def test_changes_of_a_field_or_model_that_was_removed_are_shown_as_they_were_stored():
    assert changes_of("app.bill", {"colour": ["red", "blue"]}) == {"colour": ("red", "blue")}
    assert changes_of("app.gone", {"colour": ["red", "blue"]}) == {"colour": ("red", "blue")}
    assert changes_of("app.bill", {"number": ["many", 5]}) == {"number": ("many", 5)}
    assert changes_of("app.bill", None) == {}


@pytest.mark.parametrize(
    ("field", "given", "stored"),
    [
        ("amount", Decimal("1.004"), Decimal("1.00")),
        ("number", "5", 5),
        ("raw", memoryview(b"a"), b"a"),
        ("details", {1: (2, Decimal("1.5"))}, {"1": [2, "1.5"]}),
        ("guest", "7", 7),
        ("title", None, None),
    ],
)
def test_values_are_as_the_database_returns_them(field, given, stored):
    assert as_stored(Bill._meta.get_field(field), given) == stored
