"""Captured writes of models with other keys, columns and tables: UUIDs, strings, parents and children, proxies."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from django_ai.automation.events import capture
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CapturedWrite, Event
from django_ai.automation.events.recording.captured.stored_text import value_of
from tests.apps.captured.models import DELETE, UPDATE, Cabinet, Everything, Parcel, Shelf, Slot, WatchedSlot
from tests.support.captured_writes import VALUES, occurrences, outbox, plain, stored
from tests.support.rows import event_of

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)

# -- columns -----------------------------------------------------------------------------------------------------------


def test_the_old_value_of_each_column_is_what_django_would_have_read():
    expected = stored(VALUES)
    for before, after in ((VALUES, dict.fromkeys(VALUES)), (dict.fromkeys(VALUES), VALUES)):
        before, after = {**before, "flag": bool(before["flag"])}, {**after, "flag": bool(after["flag"])}
        one = Everything.objects.create(**before)
        Everything.objects.filter(pk=one.pk).update(**after)
        row = CapturedWrite.objects.get()
        assert row.entity_id == str(one.pk)
        assert set(row.old) == set(VALUES)  # all have changed, the key has not
        for name in VALUES:
            field = Everything._meta.get_field(name)
            found = plain(value_of(field, row.old[name], connection))
            wanted = expected[name] if before[name] is not None and before[name] is not False else before[name]
            assert found == wanted, name
            assert type(found) is type(wanted), name
        row.delete()


def test_only_what_has_changed_is_kept():
    one = Everything.objects.create(text="a", data={"b": 1, "a": 2})
    Everything.objects.update(text="A", number=None)
    assert CapturedWrite.objects.get().old == {"text": "a"}
    assert one.pk


def test_a_deleted_row_comes_back_from_its_old_values(work):
    seen = []

    @on_event("everything_deleted")
    def gone(event):
        seen.append({name: plain(getattr(event.entity, name)) for name in VALUES})

    expected = stored(VALUES)
    Everything.objects.all()._raw_delete(connection.alias)
    work()
    assert seen == [expected]


def test_a_uuid_is_a_key_and_the_table_has_an_odd_name(work):
    one = Everything.objects.create()
    Everything.objects.filter(pk=one.pk).update(number=1)
    assert outbox() == [("everything", str(one.pk), "update")]
    work()
    assert occurrences("everything_changed") == [str(one.pk)]
    one.number = 2
    Everything.objects.filter(pk=one.pk).update(number=3)
    one.save()
    assert outbox() == []
    assert occurrences("everything_changed") == [str(one.pk)] * 3


@pytest.mark.parametrize("number", ["7", "O'Brien's", "7/b?&x", "zimmer ü", " 7 ", '"', "\\"])
def test_a_text_is_a_key(number, work):
    Shelf.objects.bulk_create([Shelf(number=number, is_clean=True)])
    assert outbox() == [("shelf", number, "insert")]
    work()
    assert occurrences("shelf_cleaned") == [number]
    shelf = Shelf.objects.get()
    Shelf.objects.update(is_clean=False)
    shelf.save()
    assert outbox() == []
    assert occurrences("shelf_written") == [number] * 3


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_an_update_of_a_parents_column_moves_the_childs_timer(clock, work):
    cabinet = Cabinet.objects.create(number="1", due_at=clock.now + 5 * HOUR)
    assert outbox() == []
    Cabinet.objects.update(due_at=clock.now + HOUR)
    assert outbox() == [("shelf", "1", "update")]
    work()
    assert event_of(cabinet, "cabinet_due").wake_at == clock.now + HOUR
    Shelf.objects.update(due_at=clock.now + 2 * HOUR)
    work()
    assert event_of(cabinet, "cabinet_due").wake_at == clock.now + 2 * HOUR


def test_a_child_that_is_inserted_into_both_tables_is_created_once(work):
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute("INSERT INTO captured_shelf (number, is_clean) VALUES ('1', %s)", [True])
        cursor.execute("INSERT INTO captured_cabinet (shelf_ptr_id, doors) VALUES ('1', 3)")
    assert outbox() == [("shelf", "1", "insert"), ("cabinet", "1", "insert")]
    work()
    assert occurrences("shelf_cleaned") == ["1"]
    assert occurrences("cabinet_written") == ["1"]
    assert occurrences("shelf_written") == ["1"]
    assert Event.objects.filter(active_key__isnull=False).count() == 4


def test_a_write_to_the_childs_table_is_a_write_of_the_child_and_the_parent(work):
    Cabinet.objects.create(number="1")
    Cabinet.objects.update(doors=5)
    work()
    assert occurrences("cabinet_written") == ["1", "1"]
    assert occurrences("shelf_written") == ["1", "1"]


def test_a_save_of_a_child_leaves_nothing_in_the_outbox(work):
    cabinet = Cabinet.objects.create(number="1")
    cabinet.save()
    Cabinet.objects.get().save(update_fields=["doors"])
    assert outbox() == []
    work()
    assert len(occurrences("cabinet_written")) == 3
    cabinet.delete()
    assert outbox() == []
    work()
    assert len(occurrences("cabinet_written")) == 4
    assert len(occurrences("shelf_written")) == 4


@pytest.mark.exact_times
def test_a_save_of_the_parent_is_heard_by_the_child(clock, work):
    cabinet = Cabinet.objects.create(number="1", due_at=clock.now + HOUR)
    shelf = Shelf.objects.get()
    shelf.due_at = clock.now + 2 * HOUR
    shelf.save()
    assert outbox() == []
    assert event_of(cabinet, "cabinet_due").wake_at == clock.now + 2 * HOUR
    work()
    assert occurrences("shelf_written") == ["1", "1"]
    assert occurrences("cabinet_written") == ["1", "1"]


def test_a_raw_deletion_of_a_child_and_its_parent(work):
    Cabinet.objects.create(number="1", doors=9)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM captured_cabinet")
        cursor.execute("DELETE FROM captured_shelf")
    work()
    deleted = Event.objects.filter(trigger="delete", status="processed")
    assert {event.declared_as: type(event.entity) for event in deleted} == {
        "cabinet_written": Cabinet,
        "shelf_written": Shelf,
    }
    assert deleted.get(declared_as="cabinet_written").entity.doors == 9


def test_events_that_a_proxy_declares_hear_every_write_of_the_table(work):
    slot = Slot.objects.create(name="plain")
    assert outbox() == [("slot", str(slot.pk), "insert")]  # a save() of a class without events sends no signal to us
    work()
    assert occurrences("slot_written") == [str(slot.pk)]
    assert isinstance(Event.objects.get().entity, WatchedSlot)
    WatchedSlot.objects.get().save()
    assert outbox() == []
    Slot.objects.get().delete()
    work()
    assert len(occurrences("slot_written")) == 3


def test_fixtures_fire_nothing(work, tmp_path):
    Cabinet.objects.create(number="1")
    work()
    Event.objects.all().delete()
    path = tmp_path / "shelves.json"
    rows = [
        {"model": "captured.shelf", "pk": "1", "fields": {"is_clean": True}},
        {"model": "captured.shelf", "pk": "2", "fields": {"is_clean": True}},
        {"model": "captured.cabinet", "pk": "2", "fields": {"doors": 5}},
        {"model": "captured.parcel", "pk": 1, "fields": {"state": "sent", "weight": 5}},
    ]
    path.write_text(json.dumps(rows))
    for _ in range(2):
        call_command("loaddata", str(path), verbosity=0)
        assert outbox() == []
        work()
        assert not Event.objects.occurred().exists()
    Parcel.objects.update(weight=6)
    work()
    assert occurrences("parcel_weighed") == ["1"]


# -- what is captured --------------------------------------------------------------------------------------------------


def test_the_tables_of_parents_are_captured_under_their_root():
    tables = capture.captured_tables()
    assert tables[Cabinet] is tables[Shelf] is Shelf
    assert tables[Slot] is Slot
    assert WatchedSlot not in tables


def test_an_event_is_read_from_the_class_with_most_tables():
    readers = {reader.model: [each.definition.name for each in reader.declared] for reader in capture.readers_of(Shelf)}
    assert list(readers) == [Cabinet, Shelf]
    assert readers[Cabinet] == ["shelf_cleaned", "shelf_written", "cabinet_written", "cabinet_due"]
    assert readers[Shelf] == ["shelf_cleaned", "shelf_written"]


def test_a_class_may_not_record_all_events_of_its_table():
    assert capture.not_recorded_by(Shelf)
    assert not capture.not_recorded_by(Cabinet)
    assert not capture.not_recorded_by(Parcel)


def test_what_is_captured_changes_with_the_declarations(declare, settings):
    declare(Parcel, EventDefinition("a", trigger=UPDATE), EventDefinition("b", trigger=DELETE, capture=True))
    assert [each.definition.name for each in capture.captured_on(Parcel)] == ["b"]
    settings.AUTOMATION = {**settings.AUTOMATION, "CAPTURE": True}
    assert [each.definition.name for each in capture.captured_on(Parcel)] == ["a", "b"]
