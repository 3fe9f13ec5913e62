"""Declarations of events without a model, and the fields of their payloads."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from django.db.models import Q
from pydantic import BaseModel, ConfigDict

from django_ai.automation import EventDefinition, FreeEvent, emit
from django_ai.automation.events import free_events
from django_ai.automation.events.declarations import listed
from django_ai.automation.events.free_events import find_free_event, free_event_named, free_events_matching
from django_ai.automation.events.matching.lookups import payload_satisfies
from django_ai.automation.events.matching.match import address, payload_keys
from django_ai.automation.events.matching.payload_fields import (
    annotation_of,
    has_field,
    problem_with_field,
    read_field,
    split_lookup,
    typed_field,
)
from django_ai.automation.events.matching.payload_filter import payload_filter
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, UnknownEventError


class Customer(BaseModel):
    number: int
    email: str = ""


class Payment(BaseModel):
    order_id: int
    token: uuid.UUID | None = None
    cents: Decimal = Decimal(0)
    paid_at: datetime | None = None
    customer: Customer | None = None
    tags: list[str] = []
    text: str = ""


class Kind(Enum):
    CARD = "card"


# -- declarations ------------------------------------------------------------------------------------------------------


def test_a_declaration_is_found_by_its_name():
    paid = FreeEvent("unit.paid", payload=Payment)
    assert find_free_event("unit.paid") is paid is free_event_named("unit.paid")
    assert (paid.name, paid.schema, paid.is_family, paid.label) == ("unit.paid", Payment, False, "")
    assert repr(paid) == "<FreeEvent 'unit.paid'>"
    assert free_events_matching("unit.*") == [paid] == free_events_matching("unit.paid")
    assert free_events_matching("unit.sold") == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("",), "1 to 200 characters"),
        ((5,), "1 to 200 characters"),
        (("x" * 201,), "1 to 200 characters"),
        (("*",), r"more than '\*'"),
        (("paid {{ instance.pk }}",), "no instance to read a field of"),
        (("paid", dict), "must be a Pydantic model"),
        (("paid", Payment(order_id=1)), "must be a Pydantic model"),
    ],
)
def test_invalid_declarations_are_refused(arguments, problem):
    with pytest.raises(DefinitionError, match=problem):
        FreeEvent(*arguments)


def test_the_same_module_may_declare_an_event_again():
    first = FreeEvent("unit.paid")
    second = FreeEvent("unit.paid")
    assert find_free_event("unit.paid") is second is not first


def test_another_module_may_not():
    code = "from django_ai.automation import FreeEvent\nFreeEvent('unit.paid')"
    exec(code, {"__name__": "elsewhere.automations"})
    with pytest.raises(DefinitionError, match=r"elsewhere\.automations declares an event of this name already"):
        FreeEvent("unit.paid")


def test_a_family_stands_for_the_names_that_match():
    family, one = FreeEvent("unit:*"), FreeEvent("unit:a.*")
    exact = FreeEvent("unit:a.b")
    assert free_event_named("unit:x") is family
    assert free_event_named("unit:a.c") is one
    assert free_event_named("unit:a.b") is exact
    assert free_event_named("other") is None
    assert free_events_matching("unit:a.b") == [exact]
    assert free_events_matching("unit:a.*") == [family, one, exact]


def test_a_model_that_lists_one_does_not_declare_it():
    class Holder:
        events = [FreeEvent("unit.paid"), EventDefinition("saved")]

    assert [each.name for each in listed(Holder)] == ["saved"]


def test_forgetting_one_forgets_what_was_looked_up():
    paid = FreeEvent("unit.paid")
    assert free_events_matching("unit.paid") == [paid]
    free_events.unregister(paid)
    assert free_events_matching("unit.paid") == []


# -- what emit refuses before it asks the database ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "options", "problem"),
    [
        (5, {}, "give a FreeEvent, or its name"),
        ("", {}, "give a FreeEvent, or its name"),
        ("unit:*", {}, r"without '\*'"),
        ("x" * 201, {}, "1 to 200 characters"),
        ("unit.paid", {"payload": [1]}, "must be a dict"),
        ("unit.paid", {"key": ""}, "key=''"),
        ("unit.paid", {"key": 5}, "key=5"),
        ("unit.paid", {"key": "x" * 256}, "1 to 255 characters"),
        ("unit.paid", {"key": "a\x00"}, "without NUL"),
        ("unit.paid", {"namespace": ""}, "namespace=''"),
        ("unit.paid", {"namespace": "x" * 101}, "1 to 100 characters"),
    ],
)
def test_invalid_arguments_of_emit(event, options, problem):
    FreeEvent("unit.paid")
    with pytest.raises(DefinitionError, match=problem):
        emit(event, **options)


def test_an_unknown_name_has_a_suggestion():
    FreeEvent("unit.paid")
    with pytest.raises(UnknownEventError, match=r"no FreeEvent has this name\. Did you mean 'unit\.paid'\?"):
        emit("unit.payed")
    with pytest.raises(UnknownEventError, match=r"Declare it, as in X = FreeEvent\('something'\)\."):
        emit("something")


def test_an_event_of_a_model_is_not_emitted():
    with pytest.raises(UnknownEventError, match=r"occurs when app\.Reservation is saved"):
        emit("reservation_confirmed")
    with pytest.raises(DefinitionError, match="occurs when its model is saved"):
        emit(EventDefinition("saved"))


def test_a_family_is_not_emitted_as_such():
    with pytest.raises(DefinitionError, match="Give the full name of one"):
        emit(FreeEvent("unit:*"))


# -- fields of a payload -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("amount", ("amount", "")),
        ("amount__gte", ("amount", "gte")),
        ("a__b__in", ("a__b", "in")),
        ("a__b", ("a__b", "")),
        ("in", ("in", "")),
        ("text__icontains", ("text", "icontains")),
        ("booking__date", ("booking__date", "")),
    ],
)
def test_a_lookup_is_split_from_its_path(name, split):
    assert split_lookup(name) == split


def test_fields_of_a_schema():
    assert [name for name in ("order_id", "customer__email", "tags") if has_field(Payment, name)] != []
    assert not has_field(Payment, "order")
    assert not has_field(Payment, "order_id__gte")
    assert not has_field(Payment, "customer__name")
    assert has_field(None, "anything__at__all")
    assert not has_field(None, "anything__gte")
    assert problem_with_field(Payment, "order_i") == "Payment has no field 'order_i'. Did you mean 'order_id'?"
    assert problem_with_field(Payment, "customer__zip").startswith("Customer has no field 'zip'. It has: number, email")
    assert problem_with_field(Payment, "text__icontains").startswith("A payload is compared for equality and by __in")
    assert problem_with_field(None, "text__icontains") != ""
    assert problem_with_field(Payment, "order_id__gte") == problem_with_field(None, "x") == ""
    assert annotation_of(Payment, "tags") == list[str]
    assert annotation_of(None, "tags") is None


def test_a_schema_that_allows_more_fields_has_every_field():
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        known: int = 0

    assert has_field(Open, "known")
    assert has_field(Open, "other")


@pytest.mark.parametrize(
    ("path", "given", "typed"),
    [
        ("order_id", "7", 7),
        ("order_id", "seven", "seven"),
        ("cents", "1.50", Decimal("1.5")),
        ("customer__number", "3", 3),
        ("text", 7, "7"),
        ("token", "6E4BF3F3-5E3F-4B0B-8B1B-1F2E3D4C5B6A", uuid.UUID("6e4bf3f3-5e3f-4b0b-8b1b-1f2e3d4c5b6a")),
    ],
)
def test_values_are_converted_by_the_schema(path, given, typed):
    assert typed_field(Payment, path, given) == typed


def test_without_a_schema_values_are_compared_as_json():
    token = uuid.uuid4()
    assert typed_field(None, "x", token) == str(token)
    assert typed_field(None, "x", datetime(2030, 1, 7, 12, tzinfo=UTC)) == "2030-01-07T12:00:00+00:00"
    assert typed_field(None, "x", date(2030, 1, 7)) == "2030-01-07"
    assert typed_field(None, "x", "7") == "7"


def test_a_field_is_read_by_its_path():
    payload = {"a": {"b": 1}, "a__c": 2, "none": None}
    assert read_field(payload, "a__b") == 1
    assert read_field(payload, "a__c") == 2
    assert read_field(payload, "none") is None
    for path in ("b", "a__x", "none__x"):
        with pytest.raises(LookupError):
            read_field(payload, path)


# -- keys --------------------------------------------------------------------------------------------------------------


def event_with(name: str, payload: dict[str, Any]) -> Event:
    return Event(event_name=name, declared_as=name, payload=payload)


@pytest.mark.parametrize(
    ("schema", "value", "stored", "is_equal"),
    [
        (None, 7, 7, True),
        (None, 7, 7.0, True),
        (None, "7", 7, False),
        (None, True, True, True),
        (None, None, None, True),
        (None, Kind.CARD, "card", True),
        (None, Decimal("1.50"), 1.5, True),
        (Payment, "7", 7, True),
        (Payment, 7, "7", True),
        (Payment, 8, 7, False),
    ],
)
def test_both_sides_compute_the_same_key(schema, value, stored, is_equal):
    source = FreeEvent("unit.paid", payload=schema)
    where = address("scope", {"order_id": value}, [source])
    theirs = payload_keys("scope", event_with("unit.paid", {"order_id": stored}), [where.shape])
    assert (set(where.keys) == set(theirs)) is is_equal
    assert where.residual == {}


def test_a_payload_without_the_field_has_no_key():
    FreeEvent("unit.paid")
    assert payload_keys("scope", event_with("unit.paid", {"other": 1}), ["order_id"]) == []
    assert len(payload_keys("scope", event_with("unit.paid", {"other": 1}), [""])) == 1


def test_lookups_that_are_no_equality_are_residual():
    source = FreeEvent("unit.paid", payload=Payment)
    where = address("scope", {"order_id": 7, "cents__gte": "100"}, [source])
    assert (where.shape, where.residual) == ("order_id", {"cents__gte": "100"})
    assert payload_satisfies([source], {"cents": "100.5"}, where.residual)
    assert not payload_satisfies([source], {"cents": "99"}, where.residual)
    assert not payload_satisfies([source], {}, where.residual)
    assert payload_satisfies([source], {"text": "a"}, {"text__in": ["a", "b"]})
    assert payload_satisfies([source], {"paid_at": None}, {"paid_at__isnull": True})
    assert not payload_satisfies([source], {"text": "abc"}, {"text__icontains": "b"})
    assert not payload_satisfies([source], {"text": "abc"}, {"text__gte": {}})


def test_a_list_becomes_one_key_for_each_value():
    source = FreeEvent("unit.paid")
    where = address("scope", {"order_id__in": [1, 2]}, [source], spread=True)
    assert (where.shape, len(where.keys), where.residual) == ("order_id", 2, {})


# -- what the database leaves out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "values", "condition"),
    [
        (None, {"order_id": 7}, Q(payload__order_id__in=[7, 7.0, "7"])),
        (None, {"customer__email": "a@b.de"}, Q(payload__customer__email__in=["a@b.de"])),
        (None, {"kind": Kind.CARD}, Q(payload__kind__in=["card"])),
        (Payment, {"order_id": "7"}, Q(payload__order_id__in=[7, 7.0, "7"])),
        (None, {"order_id__gte": 7}, Q()),
        (None, {"order_id": 7.5}, Q()),
        (None, {"order_id": True}, Q()),
        (None, {"order_id": None}, Q()),
        (None, {"order_id": 2**60}, Q()),
        (None, {"name": 'a"b'}, Q()),
        (None, {"name": "Zoë"}, Q()),
        (None, {"a_": 1}, Q()),
        (Payment, {"paid_at": "2030-01-07T12:00:00Z"}, Q()),
    ],
)
def test_only_plain_values_are_compared_by_the_database(schema, values, condition):
    assert payload_filter([FreeEvent("unit.paid", payload=schema)], values) == condition


def test_a_uuid_may_have_been_stored_in_several_forms():
    token = uuid.uuid4()
    found = payload_filter([FreeEvent("unit.paid", payload=Payment)], {"token": token})
    ((_, forms),) = found.children
    assert {str(token), token.hex} <= set(forms)
