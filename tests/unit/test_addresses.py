"""Addresses of matches: their shapes and keys, the residual lookups, and lookups that do not exist."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum

import pytest
from pydantic import BaseModel

from django_ai.automation.events.declarations import declared_events
from django_ai.automation.events.matching.context_expressions import check_expression, field_named
from django_ai.automation.events.matching.lookups import is_deleted, problem_with, satisfies
from django_ai.automation.events.matching.match import MAX_LIST_KEYS, Match, address, entity_keys, shape_of
from django_ai.automation.events.matching.typed_values import is_exact, json_value
from django_ai.automation.events.snapshots import restore_snapshot, take_snapshot
from django_ai.automation.exceptions import DefinitionError
from tests.apps.reservations.models import Document, Guest, Reservation, Room, Suite, Ticket

DOCUMENTS = declared_events()["document_uploaded"]


class Context(BaseModel):
    guest_id: int = 5
    kinds: list[str] = ["visa", "permit"]
    name: str = "O'Brien"


def of(match, sources=DOCUMENTS, **options):
    return address("e", match, sources, **options)


# -- Match.of ----------------------------------------------------------------------------------------------------------


def test_a_match_is_immutable_and_knows_no_order():
    one, two = Match.of({"b": 2, "a__exact": "1"}, "x"), Match.of({"a": "1", "b": 2}, "x")
    assert one == two
    assert hash(one) == hash(two)
    assert one.names() == ("a", "b")
    with pytest.raises(AttributeError):
        one.lookups = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("lookups", "named"),
    [
        ("kind", "'kind' must be a dict"),
        (["kind"], "must be a dict"),
        ({"kind name": 1}, "'kind name' is not a field lookup"),
        ({"_private": 1}, "'_private' is not a field lookup"),
        ({5: 1}, "5 is not a field lookup"),
        ({"": 1}, "'' is not a field lookup"),
        ({"a;b": 1}, "is not a field lookup"),
        ({"kind": {"a": 1}}, "'kind' is compared with {'a': 1}"),
        ({"kind": "{{ ctx.method() }}"}, "no calls"),
        ({"kind": "{% now %}"}, "template tag"),
        ({"kind": "{{ ctx.kind"}, "not closed"),
    ],
)
def test_what_is_no_match_is_refused(lookups, named):
    with pytest.raises(DefinitionError) as raised:
        Match.of(lookups, "wait_for_event('x')")
    assert named in str(raised.value)
    assert str(raised.value).startswith("wait_for_event('x')")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{{ ctx.guest }}", "Did you mean 'guest_id'?"),
        ("{{ ctx.zzz }}", "It has: guest_id, kinds, name."),
        ("guest-{{ ctx.nam }}", "Did you mean 'name'?"),
    ],
)
def test_where_the_context_is_known_its_fields_are_checked(text, named):
    with pytest.raises(DefinitionError) as raised:
        Match.of({"kind": text}, "x", Context)
    assert named in str(raised.value)
    assert "its Context has no field" in str(raised.value)
    Match.of({"kind": text}, "x")  # the Context is unknown here, so the error appears at run time
    check_expression("{{ context.name }}", "x", Context)


def test_values_come_from_the_context():
    match = Match.of({"reservation__guest": "{{ ctx.guest_id }}", "kind__in": "{{ ctx.kinds }}", "pk": 3}, "x")
    assert match.values_from(Context()) == {"reservation__guest": 5, "kind__in": ["visa", "permit"], "pk": 3}
    with pytest.raises(DefinitionError, match="'guest'"):
        Match.of({"pk": "{{ ctx.guest }}"}, "x").values_from(Context())


def test_the_field_that_an_expression_stands_for_alone():
    assert field_named("{{ ctx.kinds }}", Context) is Context.model_fields["kinds"]
    assert field_named(" {{context.kinds}} ", Context) is Context.model_fields["kinds"]
    for other in ("{{ ctx.nothing }}", "a {{ ctx.kinds }}", "{{ ctx.kinds.x }}", "{{ ctx }}", "kinds", 5, None, []):
        assert field_named(other, Context) is None


class Colour(Enum):
    RED = "red"


def test_the_string_of_a_match_is_its_own():
    matches = [
        {},
        {"a": 1},
        {"a": "1"},
        {"a": None},
        {"a": "None"},
        {"a": True},
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": "[1, 2]"},
        {"a": 1, "b": 1},
        {"a": "{{ ctx.name }}"},
    ]
    assert len({Match.of(match, "x").identity for match in matches}) == len(matches)
    assert Match.of({"a": Colour.RED}, "x").identity == Match.of({"a": "red"}, "x").identity


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (5, 5),
        (1.5, 1.5),
        (None, None),
        (True, True),
        ("x", "x"),
        (Decimal("1.50"), "1.50"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (date(2030, 1, 1), "2030-01-01"),
        (datetime(2030, 1, 1, 12, tzinfo=UTC), "2030-01-01T12:00:00+00:00"),
        (Colour.RED, "red"),
        (Guest(pk=7), 7),
        (Ticket(pk=uuid.UUID(int=5)), "00000000-0000-0000-0000-000000000005"),
        ([Guest(pk=7), None, Colour.RED], [7, None, "red"]),
        ((1, [2]), [1, [2]]),
        (frozenset({3}), [3]),
    ],
)
def test_values_as_json_keeps_them(value, kept):
    assert json_value(value) == kept


# -- shapes and addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "shape", "residual"),
    [
        ({}, "", {}),
        ({"kind": "visa"}, "kind", {}),
        ({"pk": 5, "kind": "visa"}, "kind,pk", {}),
        ({"reservation__guest__name": "Ann", "reservation": 5}, "reservation,reservation__guest__name", {}),
        ({"kind__in": ["a"]}, "", {"kind__in": ["a"]}),
        ({"kind__in": ("a", "b"), "pk": 5}, "pk", {"kind__in": ("a", "b")}),
        ({"kind__in": {"b", "a"}}, "", {"kind__in": ["a", "b"]}),
        ({"pk__gte": 5}, "", {"pk__gte": 5}),
        ({"kind__icontains": "v", "reservation_id": 5}, "reservation_id", {"kind__icontains": "v"}),
        ({"reservation__documents": 5}, "", {"reservation__documents": 5}),
    ],
)
def test_equality_is_the_key_and_the_rest_is_compared(match, shape, residual):
    where = of(match)
    assert (where.shape, where.residual, len(where.keys)) == (shape, residual, 1)
    exact = not residual
    found = Match.of(match, "x")
    assert found.is_all_exact(DOCUMENTS) is exact
    assert found.shapes(DOCUMENTS)[-1] == shape


def test_the_key_is_of_the_scope_the_fields_and_the_values():
    keys = {
        of({"kind": "visa"}).keys,
        of({"kind": "permit"}).keys,
        of({"pk": 5}).keys,
        of({"pk": 6}).keys,
        of({}).keys,
        address("other", {"kind": "visa"}, DOCUMENTS).keys,
    }
    assert len(keys) == 6
    assert of({"pk": 5, "kind__gte": "x"}).keys == of({"pk": "5"}).keys


def test_a_short_list_may_become_a_key_for_each_value():
    where = of({"kind__in": ["visa", "permit", "visa"], "pk": 5}, spread=True)
    assert (where.shape, where.residual, len(where.keys)) == ("kind,pk", {}, 2)
    assert set(where.keys) == {*of({"kind": "visa", "pk": 5}).keys, *of({"kind": "permit", "pk": 5}).keys}
    assert Match.of({"kind__in": "{{ ctx.kinds }}", "pk": 5}, "x").shapes(DOCUMENTS) == ["kind,pk", "pk"]


def test_two_lists_become_every_pair():
    where = of({"kind__in": ["a", "b"], "reservation_id__in": [1, "2", 2]}, spread=True)
    assert (where.shape, len(where.keys), where.residual) == ("kind,reservation_id", 4, {})
    (key,) = of({"kind": "b", "reservation_id": "2"}).keys
    assert key in where.keys


def test_a_list_that_is_too_long_is_compared():
    most = of({"pk__in": list(range(MAX_LIST_KEYS))}, spread=True)
    assert (len(most.keys), most.residual) == (MAX_LIST_KEYS, {})
    more = of({"pk__in": list(range(MAX_LIST_KEYS + 1))}, spread=True)
    assert (more.shape, len(more.keys), len(more.residual["pk__in"])) == ("", 1, MAX_LIST_KEYS + 1)
    both = of({"kind__in": [str(n) for n in range(20)], "pk__in": list(range(20))}, spread=True)
    assert (both.shape, len(both.keys), list(both.residual)) == ("kind", 20, ["pk__in"])


def test_an_empty_list_has_no_key_at_all():
    where = of({"kind__in": [], "pk": 5}, spread=True)
    assert (where.shape, where.keys) == ("kind,pk", ())
    where = of({"kind__in": [], "pk__in": [1, 2]}, spread=True)
    assert where.keys == ()


@pytest.mark.parametrize("value", ["visa", 5, None, {"a": 1}, Guest(pk=1)])
@pytest.mark.parametrize("spread", [True, False])
def test_in_needs_a_list(value, spread):
    with pytest.raises(DefinitionError, match="'kind__in' needs a list of values"):
        of({"kind__in": value}, spread=spread)


def test_where_nobody_declares_the_event_every_name_is_a_field():
    assert is_exact([], "anything")
    where = of({"anything": 1}, [])
    assert (where.shape, where.residual) == ("anything", {})


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("kind", True),
        ("pk", True),
        ("id", True),
        ("reservation", True),
        ("reservation_id", True),
        ("reservation__guest__name", True),
        ("reservation__guest_id", True),
        ("reservation__pk", True),
        ("kind__in", False),
        ("kind__exact", False),
        ("kind__name", False),
        ("reservation__documents", False),
        ("reservation__documents__kind", False),
        ("nothing", False),
    ],
)
def test_what_is_a_field_of_one_value(name, exact):
    assert is_exact([Document], name) is exact


def test_a_field_of_one_owner_of_two():
    assert is_exact([Room, Ticket], "title")
    assert not is_exact([Room, Ticket], "kind")


def test_the_shape_is_in_order():
    assert shape_of(["b", "a", "c"]) == "a,b,c"
    assert shape_of([]) == ""


def test_the_entitys_side_has_the_shapes_that_it_has_the_fields_for():
    document = Document(pk=9, reservation_id=5, kind="visa")
    shapes = ["", "kind", "kind,reservation_id", "nothing", "kind,nothing", "reservation__guest"]
    keys = entity_keys("e", document, shapes[:5])
    assert keys == [
        *of({}).keys,
        *of({"kind": "visa"}).keys,
        *of({"kind": "visa", "reservation_id": "5"}).keys,
    ]
    assert entity_keys("e", None, shapes) == []


def test_the_entitys_side_reads_fields_and_no_code():
    class Loud(Document):
        class Meta:
            app_label = "app"
            proxy = True

        @property
        def secret(self):
            raise AssertionError("called")

    assert entity_keys("e", Loud(pk=1), ["secret", "delete", "_state", "objects"]) == []


# -- residual lookups --------------------------------------------------------------------------------------------------


def snapshot(entity):
    found = restore_snapshot(take_snapshot(entity))
    assert is_deleted(found)
    return found


NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("residual", "fits"),
    [
        ({}, True),
        ({"status__in": ["confirmed", "paid"]}, True),
        ({"status__in": ["paid"]}, False),
        ({"status__in": []}, False),
        ({"pk__in": ["5", "6"]}, True),
        ({"pk__gt": 4}, True),
        ({"pk__gt": "5"}, False),
        ({"pk__gte": "5"}, True),
        ({"pk__lt": 6}, True),
        ({"pk__lte": 4}, False),
        ({"guest__in": [7]}, True),
        ({"guest_id__in": ["7"]}, True),
        ({"guest__gte": 8}, False),
        ({"checkin_at__lte": "2030-01-01T13:00:00+01:00"}, True),
        ({"checkin_at__lt": NOON}, False),
        ({"checkout_at__isnull": True}, True),
        ({"checkout_at__isnull": False}, False),
        ({"checkin_at__isnull": True}, False),
        ({"checkout_at__gt": NOON}, False),
        ({"checkout_at__in": [None]}, False),
        ({"status__in": ["confirmed"], "pk__gt": 4}, True),
        ({"status__in": ["confirmed"], "pk__gt": 5}, False),
        ({"pk__gt": "five"}, False),
        ({"pk__gt": None}, False),
        ({"nothing__in": [1]}, False),
        ({"status__regex": "."}, False),
        ({"documents__kind": "visa"}, False),
        ({"status__iexact": "confirmed"}, False),
    ],
)
def test_a_snapshot_is_compared_without_the_database(residual, fits):
    stay = snapshot(Reservation(pk=5, status="confirmed", guest_id=7, checkin_at=NOON))
    assert satisfies(stay, residual) is fits


def test_a_snapshot_of_a_child_has_its_parents_columns():
    suite = snapshot(Suite(room_ptr_id="1", number="1", stars=3))
    assert satisfies(suite, {"stars__gte": "3", "number__in": ["1"]})
    assert not satisfies(suite, {"stars__gt": 3})


# -- unknown lookups ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "kind",
        "pk",
        "kind__in",
        "kind__iexact",
        "kind__regex",
        "pk__in",
        "pk__range",
        "pk__isnull",
        "pk__gte",
        "reservation",
        "reservation__in",
        "reservation__isnull",
        "reservation_id__in",
        "reservation__gte",
        "reservation__guest__name__startswith",
        "reservation__guest__in",
        "reservation__documents__kind__in",
        "reservation__checkin_at__year",
        "reservation__checkin_at__date__gte",
        "reservation__checkin_at__range",
        "reservation__docs",
    ],
)
def test_lookups_that_django_understands(name):
    assert problem_with(Document, name) == ""


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("kimd", "Did you mean 'kind'?"),
        ("kimd__in", "Did you mean 'kind'?"),
        ("reservatoin__guest", "Did you mean 'reservation'?"),
        ("reservation__gast", "gast"),
        ("kind__containz", "contains"),
        ("kind__startwith", "startswith"),
        ("zzz", "Choices are"),
    ],
)
def test_lookups_that_it_does_not(name, named):
    problem = problem_with(Document, name)
    assert named in problem
    assert "Did you mean 'kind'?" not in problem or not name.startswith("kind")
