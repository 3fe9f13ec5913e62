"""Transitions, by how the entity is saved, what its model is, and which values and subscribers it has."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat, Upper
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import register_events
from django_ai.automation.agents.core import agent, handler
from django_ai.automation.events.callbacks import on_event, on_event_created
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import complete, event_workflow, get_wake, step, wait_for_event
from tests.apps.reservations.models import Chore, Guest, LongStay, Reservation, Room, Suite, VipStay, Ware
from tests.support.event_options import Bill, occurred, rows
from tests.support.rows import change, effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE
DRAFT, PUBLISHED = {"title": "draft"}, {"title": "published"}


@pytest.fixture
def published(declare):
    """``Bill`` has the event ``published``: from the title ``draft`` to ``published``."""
    declare(Bill, EventDefinition("published", was=DRAFT, becomes=PUBLISHED))


def changes(name: str = "published") -> list[dict]:
    return [row.changes for row in rows(name, status="processed")]


ONCE = [{"title": ("draft", "published")}]


# -- how it is saved ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_only_what_update_fields_names_was_saved():
    bill = Bill.objects.create(title="draft")
    bill.title = "published"
    bill.save(update_fields=["number"])
    assert rows("published") == []
    bill.save(update_fields=["title"])
    assert changes() == ONCE
    bill.save()
    assert changes() == ONCE


def test_update_fields_that_name_one_of_two_fields(declare):
    declare(Bill, EventDefinition("ready", lambda bill: bill.number == 5, becomes={"title": "published", "paid": True}))
    bill = Bill.objects.create(title="draft", number=0)
    stale = Bill.objects.get(pk=bill.pk)
    Bill.objects.update(paid=True, number=5)
    stale.title = "published"
    stale.save(update_fields=["title"])  # its own paid and number are out of date
    assert changes("ready") == [{"title": ("draft", "published")}]
    stale.paid = True
    stale.title = "not saved"
    stale.save(update_fields=["paid"])
    assert occurred("ready") == 1


def test_update_fields_take_back_what_they_have_made_in_the_transaction(declare):
    declare(Bill, EventDefinition("ready", becomes={"title": "published", "paid": True}, trigger=UPDATE))
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        change(bill, title="published", paid=True)
        bill.title = "draft"
        bill.save(update_fields=["title"])
    assert occurred("ready") == 0
    with transaction.atomic():
        bill.title = "published"
        bill.save(update_fields=["title"])
        bill.paid = True
        bill.save(update_fields=["paid"])
    assert changes("ready") == [{"title": ("draft", "published")}]


@pytest.mark.usefixtures("published")
def test_deferred_fields_were_not_saved():
    bill = Bill.objects.create(title="draft")
    partly = Bill.objects.defer("title").get(pk=bill.pk)
    partly.number = 5
    partly.save()
    assert rows("published") == []
    partly = Bill.objects.only("number").get(pk=bill.pk)
    partly.title = "published"
    partly.save()
    assert changes() == ONCE


def test_expressions_are_read_from_the_database(declare):
    declare(
        Bill,
        EventDefinition("many", becomes={"number": lambda number: number >= 10}),
        EventDefinition("loud", becomes={"title": "DRAFT"}),
    )
    bill = Bill.objects.create(title="draft", number=8)
    for _ in range(3):
        bill.number = F("number") + 1
        bill.save()
    assert changes("many") == [{"number": (9, 10)}]
    bill.refresh_from_db()
    bill.title = Upper("title")
    bill.save(update_fields=["title"])
    assert changes("loud") == [{"title": ("draft", "DRAFT")}]
    Bill.objects.create(title=Concat(Value("DR"), Value("AFT")))
    assert changes("loud")[1:] == [{"title": (None, "DRAFT")}]


def test_a_generated_field_is_compared_like_any_other(declare):
    declare(Ware, EventDefinition("many", becomes={"double": lambda value: value > 10}, trigger=UPDATE))
    ware = Ware.objects.create(code="1", pieces=5)
    for pieces in (6, 7):
        ware.pieces = pieces
        ware.save()
    assert changes("many") == [{"double": (10, 12)}]


def test_get_or_create_and_update_or_create(declare):
    declare(Room, EventDefinition("cleaned", becomes={"is_clean": True}))
    Room.objects.get_or_create(number="1", defaults={"is_clean": True})
    for clean in (True, False, True):
        Room.objects.update_or_create(number="1", defaults={"is_clean": clean})
    assert changes("cleaned") == [{"is_clean": (None, True)}, {"is_clean": (False, True)}]


@pytest.mark.usefixtures("published")
def test_writes_that_bypass_the_signals_are_not_noticed():
    bill = Bill.objects.create(title="draft")
    Bill.objects.update(title="published")
    change(bill, number=1)
    Bill.objects.bulk_create([Bill(title="published")])
    assert rows("published") == []


@pytest.mark.usefixtures("published")
def test_fixtures_fire_nothing(tmp_path):
    path = tmp_path / "bill.json"
    fields = {"changed_at": "2030-01-01T00:00Z", "title": "published"}
    Bill.objects.create(pk=5, title="draft")
    path.write_text(json.dumps([{"model": "app.bill", "pk": 5, "fields": fields}]))
    call_command("loaddata", str(path), verbosity=0)
    assert rows("published") == []
    change(Bill.objects.get(pk=5), title="draft")
    change(Bill.objects.get(pk=5), title="published")
    assert changes() == ONCE


# -- kinds of models ---------------------------------------------------------------------------------------------------


def test_a_proxy_saves_the_same_entity(declare):
    shared = EventDefinition("confirmed", was={"status": "pending"}, becomes={"status": "confirmed"})
    noted = EventDefinition("noted", becomes={"note": "here"}, trigger=UPDATE)
    declare(Reservation, shared)
    declare(LongStay, shared)
    declare(VipStay, shared, noted)
    stay = Reservation.objects.create()
    with transaction.atomic():
        change(stay, status="other", note="here")
        change(LongStay.objects.get(pk=stay.pk), status="confirmed")
        change(VipStay.objects.get(pk=stay.pk), docs=True)
    assert changes("confirmed") == [{"status": ("pending", "confirmed")}]
    assert changes("noted") == [{"note": ("", "here")}]


def test_a_child_and_its_parent_are_one_entity(declare):
    cleaned = EventDefinition("cleaned", was={"is_clean": False}, becomes={"is_clean": True})
    grand = EventDefinition("grand", was={"is_clean": True}, becomes={"stars": 5})
    declare(Room, cleaned)
    declare(Suite, cleaned, grand)
    suite = Suite.objects.create(number="1", stars=3)
    with transaction.atomic():
        change(Room.objects.get(pk="1"), is_clean=True)
        suite.refresh_from_db()
        change(suite, stars=4)
    assert changes("cleaned") == [{"is_clean": (False, True)}]
    with transaction.atomic():
        change(suite, stars=1, is_clean=False)
        change(suite, stars=5)
    assert changes("grand") == [{"is_clean": (True, False), "stars": (4, 5)}]
    assert {row.entity_type for row in rows("cleaned")} == {"app.room"}


def test_a_row_of_a_parent_that_gets_a_child_was_there_before(declare):
    cleaned = EventDefinition("cleaned", was={"is_clean": False}, becomes={"is_clean": True})
    declare(Room, cleaned)
    declare(Suite, cleaned)
    Room.objects.create(number="1")
    Suite(room_ptr_id="1", number="1", is_clean=True).save()
    assert changes("cleaned") == [{"is_clean": (False, True)}]


def test_abstract_models_hand_transitions_down(declare):
    declare(Chore, EventDefinition("done", becomes={"done": True}))
    change(Chore.objects.create(), done=True)
    assert changes("done") == [{"done": (False, True)}]


def test_models_of_other_packages_have_transitions_too():
    register_events(Guest, EventDefinition("renamed", was={"name": "ada"}))
    change(Guest.objects.create(name="ada"), name="eve")
    assert changes("renamed") == [{"name": ("ada", "eve")}]


# -- the values --------------------------------------------------------------------------------------------------------

NOON = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
VALUES = {
    "amount": (Decimal("1.50"), Decimal("2.00")),
    "share": (0.1, 2.5),
    "number": (5, 6),
    "due_at": (NOON, None),
    "day": (date(2030, 1, 1), date(2030, 1, 2)),
    "lasts": (timedelta(hours=1, microseconds=5), timedelta(0)),
    "token": (None, uuid.UUID(int=5)),
    "raw": (b"a", b"b"),
    "details": ({"a": [1, None]}, {"a": [1, 2], "at": "2030-01-01T12:00:00Z"}),
    "title": ("a", "ü"),
    "paid": (False, True),
}


def test_changes_have_the_types_of_the_fields(declare):
    declare(Bill, EventDefinition("changed", watch_fields=VALUES))
    bill = Bill.objects.create(**{name: before for name, (before, _) in VALUES.items()})
    given = {name: after for name, (_, after) in VALUES.items()}
    given |= {"amount": "2", "details": {"a": (1, 2), "at": datetime(2030, 1, 1, 12, tzinfo=UTC)}}
    change(bill, **given)
    assert changes("changed") == [VALUES]


@pytest.mark.parametrize("name", ["guest", "guest_id"])
def test_a_relation_is_its_key(declare, name):
    one, two = Guest.objects.create(name="one"), Guest.objects.create(name="two")
    declare(Bill, EventDefinition("given", was={name: one}, becomes={name: [two.pk, None]}))
    bill = Bill.objects.create(guest=one)
    change(bill, guest=two)
    change(bill, guest_id=str(one.pk))
    change(bill, guest=None)
    assert changes("given") == [{name: (one.pk, two.pk)}, {name: (one.pk, None)}]


def test_a_value_that_is_written_otherwise_is_the_same(declare):
    declare(Bill, EventDefinition("moved", was={"due_at": lambda value: value is not None}, trigger=UPDATE))
    bill = Bill.objects.create(due_at=NOON)
    change(bill, due_at=NOON.isoformat())
    change(bill, due_at=None)
    assert changes("moved") == [{"due_at": (NOON, None)}]


def test_changes_of_watched_fields(declare):
    declare(Bill, EventDefinition("changed", watch_fields=["title", "number"]))
    bill = Bill.objects.create(title="a")
    change(bill, title="b")
    with transaction.atomic():
        change(bill, title="c", number=1)
        change(bill, title="d")
    Bill.objects.update(title="e")
    change(bill, number=2)
    assert changes("changed") == [{"title": ("a", "b")}, {"title": ("b", "d"), "number": (0, 1)}, {"number": (1, 2)}]


def test_a_watched_change_that_is_taken_back_in_its_transaction_does_not_occur(declare):
    declare(Bill, EventDefinition("changed", watch_fields=["title"]))
    bill = Bill.objects.create(title="a")
    with transaction.atomic():
        change(bill, title="b")
        change(bill, title="a")
    assert occurred("changed") == 0
    change(bill, title="b")
    assert changes("changed") == [{"title": ("a", "b")}]


# -- who gets the changes ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_callbacks_handlers_steps_and_payloads_have_the_changes(work):
    @on_event("published")
    def heard(event):
        leave(f"callback {event.changes}")

    @on_event_created("published")
    def created(event):
        leave(f"created {event.changes}")

    @event_workflow("published", name="flow")
    class Flow:
        class Context(BaseModel):
            before: str
            changes: dict = {}

        @classmethod
        def create_context(cls, event):
            return cls.Context(before=event.changes["title"][0])

        @step(start=True)
        def begin(self):
            leave(f"step {self.context.before}")
            return wait_for_event("published", then=self.end)

        @step()
        def end(self):
            leave(f"woken {get_wake().payload['changes']} {self.context.changes}")
            return complete()

    @agent("keeper", spawn_on="published")
    class Keeper:
        class Context(BaseModel):
            before: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(before=event.changes["title"][0])

        @handler("published", condition=lambda event, ctx: event.changes["title"][1] == "published")
        def handle(self, ctx, event):
            leave(f"handler {ctx.before} {event.changes}")

    bill = Bill.objects.create(title="draft")
    change(bill, title="published")
    work()
    change(bill, title="draft")
    change(bill, title="published")
    work()
    pair, stored = {"title": ("draft", "published")}, {"title": ["draft", "published"]}
    assert {"step draft", f"callback {pair}", f"created {pair}", f"handler draft {pair}"} <= set(effects())
    assert f"woken {stored} {stored}" in effects()


def test_changes_that_make_the_payload_too_large_are_left_out_of_it(declare, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_JSON_BYTES": 400}
    declare(Bill, EventDefinition("changed", watch_fields=["details"], payload=lambda bill: {"more": "x" * 50}))
    bill = Bill.objects.create(details="a" * 150)
    change(bill, details="b" * 150)
    (row,) = rows("changed")
    assert (row.status, "changes" in row.payload, row.payload["more"]) == ("processed", False, "x" * 50)
    assert row.changes == {"details": ("a" * 150, "b" * 150)}
    change(bill, details="c" * 500)
    assert changes("changed")[1:] == [{"details": ("b" * 150, None)}]


def test_an_event_that_compares_nothing_has_no_changes(work):
    stay = Reservation.objects.create(status="confirmed")
    work()
    event = Event.objects.of(stay).get(event_name="reservation_confirmed")
    assert (event.changes, event.changed_values, "changes" in event.payload) == ({}, None, False)


# -- costs -------------------------------------------------------------------------------------------------------------


def statements(act) -> list[str]:
    with transaction.atomic():
        Guest.objects.exists()
        with CaptureQueriesContext(connection) as queries:
            act()
    return [query["sql"] for query in queries]


def test_what_a_save_costs(declare):
    declare(Bill, EventDefinition("published", was=DRAFT, becomes=PUBLISHED))
    bill = Bill.objects.get(pk=Bill.objects.create(title="a").pk)
    assert len(statements(bill.save)) == 2  # the row before, the update
    assert len(statements(lambda: [bill.save() for _ in range(3)])) == 4
    assert len(statements(lambda: bill.save(update_fields=["number"]))) == 1
    assert len(statements(lambda: bill.save(update_fields=["title"]))) == 2
    new = Bill(title="draft", amount=Decimal(0), share=0.0)
    assert len(statements(new.save)) == 1


def test_models_that_compare_nothing_read_nothing():
    stay = Reservation.objects.create()
    assert not any("FOR NO KEY UPDATE" in each or "FOR UPDATE" in each for each in statements(stay.save))
    assert len(statements(stay.save)) == 2  # the update, and the rows of its events


def test_a_long_transaction_searches_its_hooks_once_for_each_rollback(declare):
    """Ten times as many saves take ten times as long, not a hundred times: counted in looks at the hooks."""
    declare(Bill, EventDefinition("published", becomes=PUBLISHED))
    bills = [Bill.objects.create(title="draft") for _ in range(30)]
    with transaction.atomic():
        for bill in bills:
            with transaction.atomic():
                change(bill, title="published")
        hooks = [hook for _, hook, *_ in connection.run_on_commit]
    assert occurred("published") == 30
    assert len(hooks) == 60  # for each savepoint its values and its batch
