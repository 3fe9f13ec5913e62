"""Transitions and changes of captured writes: compared with what the database held before the transaction of the
write, as for a ``save()``."""

from __future__ import annotations

from decimal import Decimal
from itertools import cycle

import pytest
from django.db import connection, transaction

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CapturedWrite, Event
from tests.apps.captured.models import CREATE, DELETE, UPDATE, Cabinet, Everything, Parcel, Shelf, Slot, WatchedSlot
from tests.support.captured_writes import VALUES, another_program, outbox, plain, stored
from tests.support.event_options import occurred, rows
from tests.support.marks import only_on

pytestmark = pytest.mark.django_db(transaction=True)

PACKED, SENT = {"state": "packed"}, {"state": "sent"}
SHIPPED = EventDefinition("shipped", was=PACKED, becomes=SENT, capture=True)


@pytest.fixture
def shipped(declare):
    """``Parcel`` has the captured event ``shipped``: from the state ``packed`` to ``sent``."""
    declare(Parcel, SHIPPED)


def changes(name: str = "shipped") -> list[dict]:
    return [row.changes for row in rows(name, status="processed")]


ONCE = [{"state": ("packed", "sent")}]


# -- as for a save() ---------------------------------------------------------------------------------------------------

DEFINITIONS = (
    SHIPPED,
    EventDefinition("became", becomes=SENT, capture=True),
    EventDefinition("became_later", becomes=SENT, trigger=UPDATE, capture=True),
    EventDefinition("left", was=PACKED, capture=True),
    EventDefinition("lost", was=PACKED, trigger=DELETE, capture=True),
    EventDefinition("heavy", becomes={"weight": lambda weight: weight >= 10}, capture=True),
    EventDefinition("heavy_and_sent", becomes={"weight": 10, "state": "sent"}, capture=True),
    EventDefinition("weighed", watch_fields=["weight", "state"], capture=True),
    EventDefinition("light", lambda parcel: parcel.weight < 5, was=PACKED, becomes=SENT, capture=True),
    EventDefinition("updated", trigger=UPDATE, capture=True),
    EventDefinition("created", trigger=CREATE, capture=True),
)

NEW = "new"
GONE = "gone"

STORIES = {
    "one by one": [[NEW], ["sent"], ["sent"], ["packed"], ["lost"], ["sent"], ["packed"], ["sent"]],
    "on the way": [[NEW], ["lost", "sent"], ["packed", "sent"], ["packed"], ["sent", "packed", "sent"]],
    "taken back": [[NEW], ["sent", "packed"], ["lost", "packed"], ["sent"]],
    "taken back and made again": [[NEW], ["sent", "packed", "sent", "packed", "sent"], ["packed"]],
    "created on the way": [[NEW, "sent"], ["packed", 10], ["sent", 1]],
    "created and left": [[NEW, "sent", "packed"], ["sent"]],
    "two fields": [[NEW], [10, "sent"], [1], ["packed"], ["sent", 10], [10], [11, 10]],
    "deleted": [[NEW], [GONE]],
    "deleted in another state": [[NEW], ["sent", GONE]],
    "deleted after a way back": [[NEW], ["sent"], ["packed", GONE]],
    "created and deleted": [[NEW, GONE], [NEW], ["sent", "packed", GONE]],
    "the key is used again": [[NEW], [GONE, NEW, "sent"], [GONE, NEW], ["sent"]],
}


def save(step) -> None:
    if step == NEW:
        Parcel.objects.create(pk=1)
        return
    parcel = Parcel.objects.get()
    if step == GONE:
        parcel.delete()
        return
    setattr(parcel, "state" if isinstance(step, str) else "weight", step)
    parcel.save()


def write(step) -> None:
    if step == NEW:
        Parcel.objects.bulk_create([Parcel(pk=1)])
    elif step == GONE:
        Parcel.objects.all()._raw_delete(connection.alias)
    else:
        Parcel.objects.update(**{"state" if isinstance(step, str) else "weight": step})


def told(story, ways, work) -> dict[str, list[object]]:
    """Return what has occurred, by event, when the steps of each transaction were made in these ways in turn."""
    ways = cycle(ways)
    for steps in story:
        with transaction.atomic():
            for step in steps:
                next(ways)(step)
        work()
    assert outbox() == []
    found: dict[str, list[object]] = {}
    for event in Event.objects.filter(status="processed").order_by("declared_as", "pk"):
        found.setdefault(event.declared_as, []).append((event.trigger, event.changes))
    Parcel.objects.all().delete()
    Event.objects.all().delete()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_captured_writes_occur_as_saves_do(declare, work, story):
    declare(Parcel, *DEFINITIONS)
    expected = told(story, [save], work)
    assert told(story, [write], work) == expected
    # In one transaction, too.
    assert told(story, [save, write], work) == expected
    assert told(story, [write, save], work) == expected
    assert told(story, [write, write, save], work) == expected


WITHOUT_DELETIONS = {name: story for name, story in STORIES.items() if not any(GONE in steps for steps in story)}
"""A deletion cancels what has not occurred yet, so it matters when a worker comes."""


@pytest.mark.parametrize("story", WITHOUT_DELETIONS.values(), ids=WITHOUT_DELETIONS)
def test_a_worker_that_comes_late_finds_each_transaction(declare, work, story):
    declare(Parcel, *(each for each in DEFINITIONS if each.condition is None))
    expected = told(story, [save], work)
    for steps in story:
        with transaction.atomic():
            for step in steps:
                write(step)
    assert told([[]], [write], work) == expected


def test_another_program_makes_transitions(declare, work):
    declare(Parcel, SHIPPED)
    parcel = Parcel.objects.create()
    with another_program() as cursor:
        cursor.execute("UPDATE captured_parcel SET state = 'sent'")
    work()
    assert changes() == ONCE
    assert rows("shipped")[0].entity_id == str(parcel.pk)


@only_on("postgresql", reason="only PostgreSQL knows the transactions of others")
def test_several_writes_of_another_program_are_one(declare, work):
    declare(Parcel, SHIPPED, EventDefinition("left", was=PACKED, capture=True))
    Parcel.objects.create()
    with another_program() as cursor:
        cursor.execute("UPDATE captured_parcel SET state = 'lost'")
        cursor.execute("UPDATE captured_parcel SET state = 'sent'")
    with another_program() as cursor:
        cursor.execute("UPDATE captured_parcel SET state = 'packed'")
        cursor.execute("UPDATE captured_parcel SET state = 'sent'")
    work()
    assert changes() == changes("left") == ONCE


# -- writes of several transactions ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shipped")
def test_a_save_does_not_take_back_what_an_earlier_transaction_has_written(work):
    parcel = Parcel.objects.create()
    Parcel.objects.update(state="sent")
    with transaction.atomic():
        for state in ("packed", "lost", "packed"):  # the save that records the write, and further ones
            parcel.state = state
            parcel.save()
    work()
    assert changes() == ONCE


@pytest.mark.usefixtures("shipped")
def test_a_save_makes_the_transition_again_that_a_captured_write_has_made(work):
    parcel = Parcel.objects.create()
    Parcel.objects.update(state="sent")
    Parcel.objects.update(state="packed")
    parcel.state = "sent"
    parcel.save()
    work()
    assert changes() == ONCE * 2


def test_a_write_of_the_open_transaction_is_not_one_of_an_earlier_transaction(declare, work):
    """The first save of the transaction is none that counts, so the second one must not pass for the earlier write."""
    declare(Parcel, EventDefinition("light", lambda parcel: parcel.weight < 5, trigger=UPDATE, capture=True))
    parcel = Parcel.objects.create()
    Parcel.objects.update(weight=1)
    with transaction.atomic():
        for weight in (7, 2):
            parcel.weight = weight
            parcel.save()
    work()
    assert occurred("light") == 2


@pytest.mark.usefixtures("shipped")
def test_a_savepoint_that_is_rolled_back_takes_its_values_with_it(work):
    parcel = Parcel.objects.create()
    with transaction.atomic():
        Parcel.objects.update(state="lost")
        with pytest.raises(RuntimeError), transaction.atomic():
            parcel.state = "sent"
            parcel.save()
            raise RuntimeError
        Parcel.objects.update(state="sent")
    work()
    assert changes() == ONCE


@pytest.mark.usefixtures("shipped")
def test_a_save_of_other_fields_leaves_the_first_old_value_to_the_bulk_write(work):
    parcel = Parcel.objects.create()
    with transaction.atomic():
        parcel.code = "x"
        parcel.save(update_fields=["code"])
        Parcel.objects.update(state="lost")
        parcel.save(update_fields=["code"])
        Parcel.objects.update(state="sent")
    work()
    assert changes() == ONCE


@pytest.mark.usefixtures("shipped")
def test_a_delete_of_django_follows_the_bulk_write_of_its_transaction(declare, work):
    declare(Parcel, EventDefinition("lost", was=PACKED, trigger=DELETE, capture=True))
    Parcel.objects.bulk_create([Parcel(pk=1), Parcel(pk=2), Parcel(pk=3, state="sent")])
    with transaction.atomic():
        Parcel.objects.filter(pk=1).update(state="sent")
        Parcel.objects.filter(pk=3).update(state="packed")
        Parcel.objects.all().delete()
    work()
    assert sorted(row.entity_id for row in rows("lost")) == ["1", "2"]
    assert changes("lost") == [{"state": ("packed", None)}] * 2


def test_only_captured_definitions_see_captured_writes(declare, work):
    declare(Parcel, SHIPPED, EventDefinition("saved", was=PACKED, becomes=SENT, capture=False))
    parcel = Parcel.objects.create()
    Parcel.objects.update(state="sent")
    parcel.refresh_from_db()
    parcel.save()
    work()
    assert (occurred("shipped"), occurred("saved")) == (1, 0)


def test_a_function_that_raises_is_called_again_with_the_same_values(declare, work):
    broken = [True]

    def is_sent(state):
        if state == "sent" and broken:
            broken.pop()
            raise RuntimeError("not now")
        return state == "sent"

    declare(Parcel, EventDefinition("shipped", becomes={"state": is_sent}, trigger=UPDATE, capture=True))
    Parcel.objects.create()
    Parcel.objects.update(state="sent")
    work()
    (row,) = rows("shipped")
    assert "not now" in row.error
    Parcel.objects.update(state="lost")
    work(row.wake_at)
    assert changes() == ONCE


# -- models ------------------------------------------------------------------------------------------------------------


def test_the_changes_of_each_column(declare, work):
    declare(Everything, EventDefinition("changed", watch_fields=list(VALUES), capture=True))
    expected = stored(VALUES)
    Everything.objects.all().delete()
    one = Everything.objects.create()
    Everything.objects.update(**VALUES)
    work()
    (row,) = rows("changed", status="processed")
    assert row.entity_id == str(one.pk)
    assert {name: plain(after) for name, (_, after) in row.changes.items()} == expected
    assert {name: before for name, (before, _) in row.changes.items()} == {**dict.fromkeys(VALUES), "flag": False}


def test_a_foreign_key_is_compared_by_its_value(declare, work):
    declare(Parcel)
    declare(Everything, EventDefinition("assigned", was={"parcel": None}, capture=True))
    parcel = Parcel.objects.create()
    Everything.objects.create()
    Everything.objects.update(parcel=parcel)
    work()
    assert changes("assigned") == [{"parcel": (None, parcel.pk)}]


def test_a_child_and_its_parent_are_one_entity(declare, work):
    cleaned = EventDefinition("cleaned", was={"is_clean": False}, becomes={"is_clean": True}, capture=True)
    grand = EventDefinition("grand", was={"is_clean": True}, becomes={"doors": 5}, capture=True)
    declare(Shelf, cleaned)
    declare(Cabinet, cleaned, grand)
    Shelf.objects.bulk_create([Shelf(number="1")])
    with transaction.atomic(), connection.cursor() as cursor:  # the parent is older than the child
        cursor.execute("INSERT INTO captured_cabinet (shelf_ptr_id, doors) VALUES ('1', 3)")
        Shelf.objects.update(is_clean=True)
    work()
    assert changes("cleaned") == [{"is_clean": (False, True)}]
    with transaction.atomic():
        Shelf.objects.update(is_clean=False)
        Cabinet.objects.update(doors=4)
        Cabinet.objects.update(doors=5)
    work()
    assert changes("grand") == [{"is_clean": (True, False), "doors": (3, 5)}]


def test_a_save_of_the_parent_is_a_transition_of_the_child(declare, work):
    declare(Shelf, EventDefinition("shelf_cleaned", lambda shelf: shelf.is_clean, capture=True))
    declare(Cabinet, EventDefinition("grand", becomes={"is_clean": True}, trigger=UPDATE, capture=True))
    Cabinet.objects.create(number="1")
    with transaction.atomic():
        for is_clean in (False, True):
            shelf = Shelf.objects.get()
            shelf.is_clean = is_clean
            shelf.save()
    work()
    assert changes("grand") == [{"is_clean": (False, True)}]


def test_a_transition_that_only_a_proxy_declares(declare, work):
    declare(WatchedSlot, EventDefinition("opened", was={"name": "closed"}, becomes={"name": "open"}, capture=True))
    Slot.objects.create(name="closed")
    for name in ("open", "closed"):
        Slot.objects.update(name=name)
    with transaction.atomic():
        for model, name in ((Slot, "away"), (WatchedSlot, "ajar"), (Slot, "open")):
            slot = model.objects.get()
            slot.name = name
            slot.save()
    work()
    assert changes("opened") == [{"name": ("closed", "open")}] * 2


def test_a_generated_column_is_compared_like_any_other(declare, work):
    declare(WatchedSlot, EventDefinition("opened", was={"label": "CLOSED"}, becomes={"label": "OPEN"}, capture=True))
    Slot.objects.bulk_create([Slot(name="closed")])
    for name in ("Closed", "open"):
        Slot.objects.update(name=name)
    work()
    assert changes("opened") == [{"label": ("CLOSED", "OPEN")}]


def test_callbacks_get_the_changes(declare, work):
    declare(Parcel, EventDefinition("weighed", watch_fields=["weight"], capture=True))
    seen = []
    on_event("weighed")(lambda event: seen.append((event.entity.pk, event.changes)))
    Parcel.objects.bulk_create([Parcel(pk=1, weight=1), Parcel(pk=2, weight=2)])
    Parcel.objects.update(weight=2)
    work()
    assert seen == [(1, {"weight": (Decimal(1), Decimal(2))})]
    assert CapturedWrite.objects.count() == 0
