"""Match: expressions on the Context, and equal keys for a match and the entities that fit it."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel

from django_ai.automation.events.declarations import declared_events
from django_ai.automation.events.matching.context_expressions import check_expression, evaluate
from django_ai.automation.events.matching.match import Match, address, entity_keys
from django_ai.automation.events.matching.typed_values import canonical, resolve_field
from django_ai.automation.exceptions import DefinitionError
from tests.apps.reservations.models import Document, Guest, Reservation, Ticket


class Stay(BaseModel):
    city: str = "Lübeck"


class Context(BaseModel):
    guest_id: int = 5
    name: str = "O'Brien <b>"
    tags: list[str] = ["a", "b"]
    nothing: str | None = None
    stay: Stay = Stay()
    extra: dict[str, int] = {"beds": 2}

    @property
    def secret(self) -> str:
        return "reached"

    def method(self) -> str:
        return "called"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{{ ctx.guest_id }}", 5),
        ("{{ctx.guest_id}}", 5),
        ("{{ context.guest_id }}", 5),
        ("  {{ ctx.guest_id }}  ", 5),
        ("{{ ctx.tags }}", ["a", "b"]),
        ("{{ ctx.nothing }}", None),
        ("{{ ctx.stay.city }}", "Lübeck"),
        ("{{ ctx.extra.beds }}", 2),
        ("{{ ctx.name }}", "O'Brien <b>"),
    ],
)
def test_an_expression_alone_gives_the_native_value(text, value):
    check_expression(text, "match")
    found = evaluate(text, Context())
    assert found == value
    assert type(found) is type(value)


def test_text_around_an_expression_gives_text():
    assert evaluate("guest-{{ ctx.guest_id }}-{{ ctx.name }}", Context()) == "guest-5-O'Brien <b>"


@pytest.mark.parametrize("value", [5, None, "plain", True, Decimal("1.5")])
def test_what_is_no_expression_is_itself(value):
    assert evaluate(value, Context()) is value


@pytest.mark.parametrize(
    "text",
    [
        "{{ ctx.__class__ }}",
        "{{ ctx._private }}",
        "{{ ctx.guest_id.__class__ }}",
        "{{ ctx.method() }}",
        "{{ ctx.name|upper }}",
        "{{ ctx['name'] }}",
        "{{ ctx }}",
        "{{ settings.SECRET_KEY }}",
        "{{ guest_id }}",
        "{{ 1 + 1 }}",
        "{{ }}",
        "{% load static %}",
        "{# comment #}",
        "{{ ctx.guest_id",
        "ctx.guest_id }}",
    ],
)
def test_expressions_reach_no_further_than_fields(text):
    with pytest.raises(DefinitionError):
        check_expression(text, "wait_for_event('x')")
    with pytest.raises(DefinitionError):
        Match.of({"guest_id": text}, "wait_for_event('x')")


@pytest.mark.parametrize(
    "text", ["{{ ctx.secret }}", "{{ ctx.method }}", "{{ ctx.model_fields }}", "{{ ctx.gast_id }}"]
)
def test_only_fields_of_the_context_have_values(text):
    with pytest.raises(DefinitionError, match="has no field"):
        evaluate(text, Context())


@pytest.mark.parametrize("wrong", [["guest_id"], "guest_id", {"guest id": 1}, {1: 1}, {"a": {"b": 1}}])
def test_what_is_no_match_is_refused(wrong):
    with pytest.raises(DefinitionError):
        Match.of(wrong, "wait_for_event('x')")


def test_the_shape_does_not_depend_on_the_order():
    one = Match.of({"a": 1, "b__exact": 2}, "x")
    two = Match.of({"b": 2, "a": 1}, "x")
    assert one == two
    assert one.shapes([]) == two.shapes([]) == ["a,b"]


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (5, 5.0),
        (5, Decimal("5.00")),
        (Decimal("1.50"), 1.5),
        (Decimal("1E+2"), 100),
        (0, Decimal("-0")),
        (Colour.RED, "red"),
        (datetime(2030, 1, 1, 12, tzinfo=UTC), datetime(2030, 1, 1, 13, tzinfo=ZoneInfo("Europe/Berlin"))),
        (date(2030, 1, 1), date(2030, 1, 1)),
    ],
)
def test_values_that_a_database_calls_equal_are_equal(one, other):
    assert canonical(one) == canonical(other)


def test_other_values_are_different():
    values = [None, "", "null", 0, 1, True, False, "1", "True", date(2030, 1, 1), "2030-01-01", uuid.UUID(int=1)]
    assert len({canonical(value) for value in values}) == len(values)


def both(event: str, entity: Any, **match: Any) -> tuple[str, list[str]]:
    """Return the key of the match, and the keys of the entity."""
    shape = ",".join(sorted(match))
    (key,) = address(event, match, declared_events()[event]).keys
    return key, entity_keys(event, entity, [shape])


def meets(event: str, entity: Any, **match: Any) -> bool:
    mine, theirs = both(event, entity, **match)
    return [mine] == theirs


def test_values_are_typed_by_the_field():
    document = Document(pk=9, reservation_id=5, kind="5")
    assert meets("document_uploaded", document, reservation_id=5)
    assert meets("document_uploaded", document, reservation_id="5")
    assert meets("document_uploaded", document, pk="9")
    assert meets("document_uploaded", document, kind=5)
    assert not meets("document_uploaded", document, reservation_id=6)
    assert not meets("document_uploaded", document, reservation_id="five")


def test_relations_are_followed():
    guest = Guest(pk=3, name="O'Brien")
    document = Document(reservation=Reservation(pk=5, guest=guest))
    assert meets("document_uploaded", document, reservation__guest__name="O'Brien")
    assert meets("document_uploaded", document, reservation__guest=3)
    assert meets("document_uploaded", document, reservation__guest_id="3", kind="passport")
    assert not meets("document_uploaded", document, reservation__guest__name="OBrien")


def test_a_relation_that_is_empty_is_null():
    document = Document(reservation=Reservation(pk=5, guest=None))
    assert meets("document_uploaded", document, reservation__guest=None)
    assert not meets("document_uploaded", document, reservation__guest=0)


def test_uuids_and_dates_come_as_text_from_json():
    ticket = Ticket(due_at=datetime(2030, 1, 1, 12, tzinfo=UTC))
    assert meets("ticket_due", ticket, pk=str(ticket.pk))
    assert meets("ticket_due", ticket, id=str(ticket.pk).upper())
    assert meets("ticket_due", ticket, due_at="2030-01-01T13:00:00+01:00")
    assert not meets("ticket_due", ticket, pk=str(uuid.uuid4()))


def test_a_relation_is_compared_by_its_key_without_a_query():
    assert meets("document_uploaded", Document(reservation_id=5), reservation="5")


def test_a_model_instance_stands_for_its_key():
    assert meets("document_uploaded", Document(reservation_id=5), reservation=Reservation(pk=5))


def test_an_entity_without_the_field_has_no_key():
    assert entity_keys("x", Guest(pk=1), ["reservation_id"]) == []


def test_no_text_in_a_value_can_pass_for_another_value():
    one = address("e", {"a": "x", "b": "y"}, []).keys
    assert one != address("e", {"a": "x\x1ftext:y", "b": ""}, []).keys
    assert address("e", {"a": "1"}, []).keys != address("f", {"a": "1"}, []).keys
    assert address("e", {"a": "1"}, []).keys != address("e", {"b": "1"}, []).keys


@pytest.mark.parametrize("lookup", ["status__in", "nothing", "guest__nothing", "status__iexact"])
def test_what_is_no_field_is_not_found(lookup):
    with pytest.raises(Exception, match=lookup.split("__")[-1]):
        resolve_field(Reservation, lookup)
