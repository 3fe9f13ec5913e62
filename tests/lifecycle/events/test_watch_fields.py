"""Watched fields: an event occurs if and only if one of them has changed."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import product

import pytest
from django.db import transaction
from django.db.models import F, Value
from django.db.models.functions import Concat

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from tests.apps.reservations.models import Guest, Room, Suite
from tests.support.event_options import Bill, hear, occurred, rows
from tests.support.rows import change, effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


def watch(declare, *names, **options):
    """Declare an event on ``Bill`` that watches the fields ``names``."""
    declare(Bill, EventDefinition("changed", watch_fields=names, **options))


def test_a_watched_field_that_changes_and_one_that_does_not(declare, work):
    watch(declare, "title", "number")
    hear("changed")
    bill = Bill.objects.create(title="a")
    assert [(row.status, row.trigger) for row in rows("changed")] == [("pending", "")]
    change(bill, paid=True)
    assert occurred("changed") == 0
    change(bill, title="b")
    change(bill, number=2)
    change(bill, number=2, title="b")
    assert [(row.status, row.trigger) for row in rows("changed")] == [("processed", "update")] * 2
    work()
    assert effects() == [f"changed {bill.pk}"] * 2


def test_what_hung_on_an_older_change_of_a_deleted_entity_gets_the_snapshot(declare, work):
    watch(declare, "title")
    titles = []
    on_event("changed", name="titles")(lambda event: titles.append((event.entity.title, event.is_valid)))
    bill = Bill.objects.create(title="a")
    pk = bill.pk
    change(bill, title="b")
    change(bill, title="c").delete()
    # A new entity reuses the primary key; the older changes do not belong to it.
    change(Bill.objects.create(pk=pk, title="x"), title="y")
    work()
    assert titles == [("c", False), ("c", False), ("y", True)]


def test_there_and_back_is_two_changes(declare):
    watch(declare, "title")
    bill = Bill.objects.create(title="a")
    change(bill, title="b")
    change(bill, title="a")
    assert occurred("changed") == 2


def test_saves_of_a_transaction_are_one_change(declare):
    watch(declare, "title")
    bill = Bill.objects.create(title="a")
    with transaction.atomic():
        change(bill, title="b")
        change(bill, title="c")
    assert occurred("changed") == 1
    change(bill, title="c")
    assert occurred("changed") == 1
    change(bill, title="b")
    assert occurred("changed") == 2


def test_a_change_in_the_transaction_that_makes_the_entity_counts(declare):
    watch(declare, "title")
    with transaction.atomic():
        bill = Bill.objects.create(title="a")
        change(bill, title="b")
    assert occurred("changed") == 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_change_in_a_savepoint(declare, kept):
    watch(declare, "title")
    bill = Bill.objects.create(title="a")
    with transaction.atomic():
        try:
            with transaction.atomic():
                change(bill, title="b")
                if not kept:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    assert occurred("changed") == kept
    change(bill, title="b")
    assert occurred("changed") == 1


def test_a_change_while_the_condition_is_false_is_recorded_and_not_notified(declare):
    watch(declare, "title", condition=lambda bill: bill.paid)
    bill = Bill.objects.create(title="a")
    change(bill, title="b")
    change(bill, paid=True)
    assert occurred("changed") == 0
    change(bill, title="c")
    assert occurred("changed") == 1


def test_a_condition_that_is_false_again_by_the_commit(declare):
    watch(declare, "title", condition=lambda bill: bill.paid)
    bill = Bill.objects.create(title="a", paid=True)
    with transaction.atomic():
        change(bill, title="b")
        Bill.objects.update(paid=False)
    assert occurred("changed") == 0
    change(bill, paid=True)
    assert occurred("changed") == 0
    change(bill, title="c")
    assert occurred("changed") == 1


def test_only_what_update_fields_names_was_saved(declare):
    watch(declare, "title")
    bill = Bill.objects.create(title="a")
    bill.title = "b"
    bill.save(update_fields=["number"])
    assert occurred("changed") == 0
    bill.save(update_fields=["title"])
    assert occurred("changed") == 1
    bill.save()
    assert occurred("changed") == 1


def test_update_fields_that_name_one_watched_field_of_two(declare):
    watch(declare, "title", "number")
    bill = Bill.objects.create(title="a", number=1)
    bill.title, bill.number = "b", 2
    bill.save(update_fields=["number"])
    assert occurred("changed") == 1
    bill.save()
    assert occurred("changed") == 2


def test_a_stale_instance_that_puts_the_old_value_back_is_a_change(declare):
    watch(declare, "title")
    bill = Bill.objects.create(title="a")
    stale = Bill.objects.get(pk=bill.pk)
    change(bill, title="b")
    stale.save()
    assert occurred("changed") == 2


def test_expressions_are_read_from_the_database(declare):
    watch(declare, "number", "title")
    bill = Bill.objects.create(title="a")
    bill.number = F("number") + 1
    bill.save()
    assert occurred("changed") == 1
    bill.refresh_from_db()
    bill.save()
    assert occurred("changed") == 1
    bill.number = F("number")
    bill.title = Concat(F("title"), Value(""))
    bill.save()
    assert occurred("changed") == 1


def test_an_entity_that_is_created_with_an_expression(declare):
    watch(declare, "title")
    bill = Bill.objects.create(title=Concat(Value("a"), Value("b")))
    change(bill, number=1)
    assert occurred("changed") == 0
    change(bill, title="abc")
    assert occurred("changed") == 1


def test_deferred_fields_were_not_saved(declare):
    watch(declare, "title", "number")
    bill = Bill.objects.create(title="a")
    partly = Bill.objects.only("paid").get(pk=bill.pk)
    partly.paid = True
    partly.save()
    assert occurred("changed") == 0
    partly = Bill.objects.defer("title").get(pk=bill.pk)
    partly.number = 5
    partly.save()
    assert occurred("changed") == 1
    partly = Bill.objects.only("paid").get(pk=bill.pk)
    partly.title = "b"
    partly.save()
    assert occurred("changed") == 2
    Bill.objects.get(pk=bill.pk).save()
    assert occurred("changed") == 2


def test_a_row_made_or_changed_behind_djangos_back_is_a_baseline(declare):
    watch(declare, "title")
    Bill.objects.bulk_create([Bill(title="a")])
    bill = Bill.objects.get()
    assert rows("changed") == []
    change(bill, title="b")  # the previous value is unknown
    (row,) = rows("changed")
    assert (row.status, row.armed, row.trigger) == ("pending", False, "")
    change(bill, title="b")
    assert occurred("changed") == 0
    change(bill, title="c")
    assert occurred("changed") == 1


def test_the_first_save_after_the_deployment_of_the_definition_is_a_baseline(declare):
    bill = Bill.objects.create(title="a")
    watch(declare, "title")
    change(bill, title="b")
    assert occurred("changed") == 0
    change(bill, title="c")
    assert occurred("changed") == 1


def test_both_saves_in_the_transaction_that_records_the_baseline(declare):
    bill = Bill.objects.create(title="a")
    watch(declare, "title")
    with transaction.atomic():
        change(bill, title="b")
        change(bill, title="c")
    assert occurred("changed") == 1


def test_watching_creations_too(declare):
    watch(declare, "title", trigger=[CREATE, UPDATE])
    bill = Bill.objects.create(title="a")
    change(bill, number=1)
    change(bill, title="b")
    assert [(row.status, row.trigger) for row in rows("changed")] == [
        ("processed", "create"),
        ("processed", "update"),
    ]


SAME_VALUES = {
    "decimal": ("amount", Decimal("1.5"), Decimal("1.50")),
    "decimal as text": ("amount", "1.5", Decimal("1.50")),
    "decimal as float": ("amount", 1.1, Decimal("1.10")),
    "decimal as int": ("amount", 2, Decimal("2.00")),
    "decimal with more places": ("amount", Decimal("1.004"), Decimal("1.00")),
    "negative decimal": ("amount", Decimal("-0.004"), Decimal("0.00")),
    "float": ("share", 0.1, 0.1),
    "float as text": ("share", "0.5", 0.5),
    "integer as text": ("number", "5", 5),
    "text as integer": ("title", 5, "5"),
    "datetime": (
        "due_at",
        datetime(2030, 1, 1, 12, tzinfo=UTC),
        datetime(2030, 1, 1, 13, tzinfo=timezone(HOUR)),
    ),
    "datetime as text": ("due_at", "2030-01-01T12:00:00+00:00", datetime(2030, 1, 1, 12, tzinfo=UTC)),
    "datetime with microseconds": (
        "due_at",
        datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC),
        datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC),
    ),
    "date as text": ("day", "2030-01-01", date(2030, 1, 1)),
    "date as datetime": ("day", datetime(2030, 1, 1, 12, tzinfo=UTC), date(2030, 1, 1)),
    "duration": ("lasts", timedelta(hours=1), timedelta(minutes=60)),
    "uuid as text": ("token", "00000000-0000-0000-0000-000000000005", uuid.UUID(int=5)),
    "bytes": ("raw", b"\x00abc", b"\x00abc"),
    "json": ("details", {"b": [1, 2], "a": {"x": None}}, {"a": {"x": None}, "b": [1, 2]}),
    "json with a tuple": ("details", {"a": (1, 2)}, {"a": [1, 2]}),
    "json with number keys": ("details", {1: "a"}, {"1": "a"}),
    "json list": ("details", [3, 1], [3, 1]),
    "json text": ("details", "plain", "plain"),
    "json with a decimal": ("details", {"x": Decimal("1.50")}, {"x": "1.50"}),
    "bool as number": ("paid", 1, True),
}


def test_a_value_that_is_written_otherwise_is_the_same(declare):
    false_changes = []
    for title, (field, given, same) in SAME_VALUES.items():
        watch(declare, field)
        bill = Bill.objects.create(**{field: given})
        bill.save()
        change(bill)
        change(bill, **{field: same})
        change(bill, **{field: given})
        if occurred("changed", entity_id=bill.pk):
            false_changes.append(title)
    assert false_changes == []


def test_what_the_database_rounds_is_no_change(declare):
    """PostgreSQL rounds 1.005 to 1.01, Python and SQLite to 1.00; the stored value counts."""
    watch(declare, "amount")
    bill = Bill.objects.create(amount=Decimal("1.005"))
    change(bill)
    assert occurred("changed") == 0
    change(bill, amount=Decimal("1.005"))
    assert occurred("changed") == 0


def test_json_is_compared_as_the_database_keeps_it(declare):
    watch(declare, "details")
    bill = Bill.objects.create(details={"at": datetime(2030, 1, 1, 12, tzinfo=UTC)})
    change(bill)
    change(bill, details={"at": "2030-01-01T12:00:00Z"})
    assert occurred("changed") == 0


OTHER_VALUES = {
    "decimal": ("amount", Decimal("1.50"), Decimal("1.51")),
    "datetime": ("due_at", datetime(2030, 1, 1, 12, tzinfo=UTC), datetime(2030, 1, 1, 12, 0, 0, 1, tzinfo=UTC)),
    "null": ("due_at", None, datetime(2030, 1, 1, 12, tzinfo=UTC)),
    "date": ("day", date(2030, 1, 1), date(2030, 1, 2)),
    "json": ("details", {"a": [1, 2]}, {"a": [2, 1]}),
    "json of two types": ("details", {"a": 1}, {"a": "1"}),
    "json null and empty": ("details", {"a": None}, {}),
    "uuid": ("token", uuid.UUID(int=5), uuid.UUID(int=6)),
    "text and empty": ("title", "", " "),
    "bytes": ("raw", b"a", b"b"),
}


def test_another_value_is_a_change_both_ways(declare):
    found = {}
    for title, (field, one, other) in OTHER_VALUES.items():
        watch(declare, field)
        bill = Bill.objects.create(**{field: one})
        change(bill, **{field: other})
        change(bill, **{field: one})
        found[title] = occurred("changed", entity_id=bill.pk)
    assert found == dict.fromkeys(OTHER_VALUES, 2)


def test_json_that_is_changed_in_place(declare):
    watch(declare, "details")
    bill = Bill.objects.create(details={"a": [1]})
    fresh = Bill.objects.get(pk=bill.pk)
    fresh.details["a"].append(2)
    fresh.save()
    assert occurred("changed") == 1


@pytest.mark.parametrize("watched", ["guest", "guest_id"])
def test_a_relation_is_watched_by_its_key(declare, watched):
    watch(declare, watched)
    one, two = Guest.objects.create(name="one"), Guest.objects.create(name="two")
    bill = Bill.objects.create(guest=one)
    change(bill, guest_id=one.pk)
    change(bill, guest=one)
    one.name = "renamed"
    one.save()
    change(bill)
    assert occurred("changed") == 0
    change(bill, guest=two)
    change(bill, guest=None)
    assert occurred("changed") == 2


def test_a_relation_whose_key_is_given_as_text(declare):
    watch(declare, "guest")
    guest = Guest.objects.create(name="one")
    bill = Bill.objects.create(guest_id=str(guest.pk))
    change(bill)
    change(bill, guest_id=str(guest.pk))
    assert occurred("changed") == 0


def test_update_fields_may_name_a_relation_or_its_column(declare):
    found = {}
    guest = Guest.objects.create(name="one")
    for watched, saved in product(["guest", "guest_id"], ["guest", "guest_id"]):
        watch(declare, watched)
        bill = Bill.objects.create()
        bill.guest = guest
        bill.save(update_fields=[saved])
        found[watched, saved] = occurred("changed", entity_id=bill.pk)
    assert set(found.values()) == {1}, found


@pytest.mark.exact_times
def test_a_field_that_each_save_sets(declare, clock):
    watch(declare, "changed_at")
    bill = Bill.objects.create()
    change(bill)
    assert occurred("changed") == 0
    clock.tick(SECOND)
    change(bill)
    assert occurred("changed") == 1


def test_the_offsets_of_each_change(clock, declare, work):
    watch(declare, "title", payload=lambda bill: {"title": bill.title})

    @on_event("changed", offset=HOUR)
    def later(event):
        leave(event.payload["title"])

    bill = Bill.objects.create(title="a")
    change(bill, title="b")
    clock.tick(SECOND)
    change(bill, title="c")
    clock.tick(HOUR)
    work()
    assert effects() == ["b", "c"]


def test_a_baseline_that_was_cancelled_does_not_silence_the_changes(declare, work):
    watch(declare, "title")
    bill = Bill.objects.create(title="a")
    assert rows("changed")[0].cancel()
    change(bill, title="b")
    change(bill, title="c")
    assert occurred("changed") == 2


def test_two_definitions_watch_different_fields(declare):
    declare(
        Bill,
        EventDefinition("titled", watch_fields=["title"]),
        EventDefinition("numbered", watch_fields=["number"]),
        EventDefinition("bill_paid", lambda bill: bill.paid),
    )
    bill = Bill.objects.create()
    change(bill, title="a", paid=True)
    change(bill, number=1, paid=False)
    change(bill, number=2, title="b")
    assert (occurred("titled"), occurred("numbered"), occurred("bill_paid")) == (2, 2, 1)


def test_an_entity_that_is_made_again_under_the_same_key_starts_afresh(declare):
    declare(Room, EventDefinition("changed", watch_fields=["is_clean"]))
    Room.objects.create(number="7", is_clean=True).delete()
    room = Room.objects.create(number="7", is_clean=False)
    assert occurred("changed") == 0
    change(room, is_clean=True)
    assert occurred("changed") == 1


def test_a_child_and_its_parent_watch_one_column(declare):
    shared = EventDefinition("changed", watch_fields=["is_clean"])
    declare(Room, shared)
    declare(Suite, shared)
    suite = Suite.objects.create(number="1")
    change(suite, is_clean=True)
    change(Room.objects.get(pk="1"), is_clean=False)
    change(suite, stars=3)
    assert occurred("changed") == 2
