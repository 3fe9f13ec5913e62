"""Captured writes: bulk and raw writes are heard through database triggers, and each occurs as often as a save()."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction
from django.db.models import F

from django_ai.automation import agent, handler
from django_ai.automation.events.callbacks import on_event, on_event_cancelled
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import CapturedWrite, Event
from django_ai.automation.events.operations import uncaptured
from django_ai.automation.queues import notifier
from django_ai.automation.queues.drain import drain
from tests.apps.captured.models import UPDATE, Note, Parcel
from tests.support.agents import Entity
from tests.support.captured_writes import another_program, occurrences, outbox
from tests.support.marks import only_on
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def ids(*parcels: Parcel) -> list[str]:
    return [str(parcel.pk) for parcel in parcels]


# -- each kind of write ------------------------------------------------------------------------------------------------


def test_bulk_create_is_heard(work):
    parcels = Parcel.objects.bulk_create([Parcel(state="sent"), Parcel()])
    work()
    assert occurrences("parcel_created") == ids(*parcels)
    assert occurrences("parcel_sent") == ids(parcels[0])
    assert occurrences("parcel_updated") == []
    assert outbox() == []


def test_an_update_is_heard(work):
    parcels = [Parcel.objects.create(), Parcel.objects.create()]
    Parcel.objects.filter(pk=parcels[1].pk).update(state="sent")
    work()
    assert occurrences("parcel_updated") == ids(parcels[1])
    assert occurrences("parcel_sent") == ids(parcels[1])


@pytest.mark.exact_times
def test_an_update_moves_the_timer_at_once(clock, work):
    parcel = Parcel.objects.create(due_at=clock.now + 5 * HOUR)
    Parcel.objects.update(due_at=clock.now + HOUR)
    work()
    assert event_of(parcel, "parcel_due").wake_at == clock.now + HOUR
    Parcel.objects.update(due_at=F("due_at") + 2 * HOUR)
    work(clock.tick(HOUR))
    assert occurrences("parcel_due") == []
    work(clock.tick(2 * HOUR))
    assert occurrences("parcel_due") == ids(parcel)


def test_bulk_created_rows_have_timers(clock, work):
    parcels = Parcel.objects.bulk_create([Parcel(due_at=clock.now + HOUR), Parcel(due_at=clock.now - 48 * HOUR)])
    work()
    work(clock.tick(HOUR))
    assert occurrences("parcel_due") == ids(parcels[0])
    assert event_of(parcels[1], "parcel_due").status == "expired"  # as when it is saved


def test_bulk_update_is_heard(work):
    parcels = [Parcel.objects.create(), Parcel.objects.create()]
    for number, parcel in enumerate(parcels):
        parcel.weight = number
    Parcel.objects.bulk_update(parcels, ["weight"])
    work()
    assert occurrences("parcel_weighed") == ids(parcels[1])
    assert sorted(occurrences("parcel_updated")) == sorted(ids(*parcels))


def test_a_raw_deletion_is_heard_with_the_values_of_the_row(clock, work):
    seen = []

    @on_event("parcel_deleted")
    def gone(event):
        seen.append((event.entity.code, event.entity.weight, event.entity.due_at))

    @on_event_cancelled("parcel_due")
    def cancelled(event):
        seen.append(event.entity.code)

    due_at = clock.now + HOUR
    parcel = Parcel.objects.create(code="a 'b' \"c\"\n\\ü", weight="12.345", due_at=due_at)
    Parcel.objects.filter(pk=parcel.pk)._raw_delete(connection.alias)
    work()
    assert sorted(seen, key=str) == [(parcel.code, Decimal("12.345"), due_at), parcel.code]
    assert occurrences("parcel_deleted") == ids(parcel)
    assert Event.objects.get(declared_as="parcel_due").status == "cancelled"
    assert not Event.objects.filter(active_key__isnull=False).exists()


def test_a_queryset_deletes_as_always(work):
    parcels = [Parcel.objects.create(), Parcel.objects.create()]
    Parcel.objects.all().delete()
    assert outbox() == []
    work()
    assert sorted(occurrences("parcel_deleted")) == sorted(ids(*parcels))


def test_get_or_create_of_conflicts_counts_what_it_does(work):
    kept = Parcel.objects.create(code="kept")
    Parcel.objects.bulk_create([Parcel(pk=kept.pk, code="other"), Parcel(pk=9_001)], ignore_conflicts=True)
    work()
    assert occurrences("parcel_created") == [str(kept.pk), "9001"]
    Parcel.objects.bulk_create(
        [Parcel(pk=kept.pk, weight=5), Parcel(pk=9_002)],
        update_conflicts=True,
        update_fields=["weight"],
        **({} if connection.vendor == "mysql" else {"unique_fields": ["pk"]}),
    )
    work()
    assert occurrences("parcel_created") == [str(kept.pk), "9001", "9002"]
    assert occurrences("parcel_weighed") == [str(kept.pk)]


def test_another_program_is_heard(work):
    with another_program() as cursor:
        cursor.execute("INSERT INTO captured_parcel (code, state, weight) VALUES ('x', 'sent', 1)")
    parcel = Parcel.objects.get()
    assert outbox() == [("parcel", str(parcel.pk), "insert")]
    work()
    assert occurrences("parcel_sent") == ids(parcel)
    with another_program() as cursor:
        cursor.execute("UPDATE captured_parcel SET weight = 2")
    work()
    assert occurrences("parcel_weighed") == ids(parcel)
    with another_program() as cursor:
        cursor.execute("DELETE FROM captured_parcel")
    work()
    assert occurrences("parcel_deleted") == ids(parcel)


@only_on("postgresql", reason="COPY is PostgreSQL's")
def test_copy_is_heard(work):
    with connection.cursor() as cursor, cursor.copy("COPY captured_parcel (code, state, weight) FROM STDIN") as copy:
        for number in range(3):
            copy.write_row((f"c{number}", "sent", 0))
    work()
    assert occurrences("parcel_sent") == ids(*Parcel.objects.order_by("pk"))


def test_raw_sql_through_django_is_heard(work):
    parcel = Parcel.objects.create()
    with connection.cursor() as cursor:
        cursor.execute("update captured_parcel set state = %s where id = %s", ["sent", parcel.pk])
    work()
    assert occurrences("parcel_sent") == ids(parcel)


def test_a_key_that_changes_is_a_deletion_and_a_creation(work):
    parcel = Parcel.objects.create(due_at=None)
    Parcel.objects.filter(pk=parcel.pk).update(id=9_009)
    assert outbox() == [("parcel", str(parcel.pk), "delete"), ("parcel", "9009", "insert")]
    work()
    assert occurrences("parcel_deleted") == ids(parcel)
    assert occurrences("parcel_created") == [str(parcel.pk), "9009"]


def test_uncaptured_writes_are_left_out(work):
    parcels = [Parcel.objects.create(), Parcel.objects.create()]
    with uncaptured():
        Parcel.objects.bulk_create([Parcel(pk=9_001)])
        Parcel.objects.update(weight=1)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE captured_parcel SET weight = %s", [2])
        Parcel.objects.filter(pk=9_001)._raw_delete(connection.alias)
        with transaction.atomic():
            parcels[0].weight = 3
            parcels[0].save()
            Parcel.objects.update(weight=4)
        parcels[1].delete()
        assert outbox() == []
    work()
    assert occurrences("parcel_weighed") == ids(parcels[0])
    assert len(occurrences("parcel_deleted")) == 1
    Parcel.objects.update(weight=5)
    assert len(outbox()) == 1
    work()
    assert occurrences("parcel_weighed") == ids(parcels[0], parcels[0])


@only_on("postgresql", reason="psycopg composes statements")
def test_a_composed_statement_is_heard(bell):
    Parcel.objects.create()
    bell.rings.clear()
    from psycopg.sql import SQL, Identifier

    with connection.cursor() as cursor:
        cursor.execute(SQL("UPDATE {} SET weight = 1").format(Identifier("captured_parcel")))
    assert bell.rings == [("events",)]


@only_on("postgresql", reason="COPY is PostgreSQL's")
def test_a_save_does_not_take_what_it_has_not_written_for_its_own(work):
    """Django does not see a COPY of the same transaction."""
    with transaction.atomic():
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY captured_parcel (id, code, state, weight) FROM STDIN") as copy,
        ):
            copy.write_row((9_001, "", "packed", 0))
        parcel = Parcel.objects.get()
        parcel.weight = 2
        parcel.save()
    work()
    assert occurrences("parcel_created") == occurrences("parcel_weighed") == ["9001"]


# -- as often as a save() ----------------------------------------------------------------------------------------------


def test_each_transaction_counts_once(work):
    parcel = Parcel.objects.create()
    rows = Parcel.objects.filter(pk=parcel.pk)
    with transaction.atomic():
        rows.update(weight=1)
        rows.update(weight=2)
    rows.update(weight=3)
    rows.update(code="same weight")
    work()
    assert occurrences("parcel_updated") == ids(*[parcel] * 3)
    assert occurrences("parcel_weighed") == ids(*[parcel] * 2)


def test_what_is_rolled_back_is_not_heard(work):
    parcel = Parcel.objects.create()
    with pytest.raises(RuntimeError), transaction.atomic():
        Parcel.objects.update(state="sent")
        raise RuntimeError
    with transaction.atomic():
        Parcel.objects.update(weight=1)
        with pytest.raises(RuntimeError), transaction.atomic():
            Parcel.objects.update(state="sent")
            raise RuntimeError
        Parcel.objects.update(weight=2)
    work()
    assert occurrences("parcel_sent") == []
    assert occurrences("parcel_updated") == ids(parcel)


def test_a_condition_sees_the_entity_as_each_write_left_it(work):
    parcel = Parcel.objects.create(state="sent")
    assert occurrences("parcel_sent") == ids(parcel)
    Parcel.objects.update(state="packed")
    Parcel.objects.update(state="sent")  # true again: the event is rearmed in between
    work()
    assert occurrences("parcel_sent") == ids(parcel, parcel)


def test_a_row_that_came_back_is_another_entity(work):
    parcel = Parcel.objects.create(state="sent")
    Parcel.objects.filter(pk=parcel.pk)._raw_delete(connection.alias)
    Parcel.objects.bulk_create([Parcel(pk=parcel.pk, state="sent")])
    work()
    assert occurrences("parcel_deleted") == ids(parcel)
    assert occurrences("parcel_created") == ids(parcel, parcel)
    assert occurrences("parcel_sent") == ids(parcel, parcel)


def test_what_is_created_and_deleted_before_a_worker_looks_was_there(work):
    Parcel.objects.bulk_create([Parcel(pk=9_001, state="sent", code="short")])
    Parcel.objects.filter(pk=9_001)._raw_delete(connection.alias)
    work()
    assert occurrences("parcel_deleted") == ["9001"]
    assert Event.objects.get(declared_as="parcel_created").status == "cancelled"  # as where no process was left
    assert Event.objects.get(declared_as="parcel_deleted").entity.code == "short"


def test_a_row_older_than_the_definition_is_compared_with_what_it_was(declare, work):
    declare(Parcel)
    Parcel.objects.create(pk=1, state="sent")
    Parcel.objects.create(pk=2)
    CapturedWrite.objects.all().delete()  # they were written before there were triggers
    declare(Parcel, EventDefinition("parcel_sent", lambda parcel: parcel.state == "sent", capture=True))
    Parcel.objects.update(state="sent", code="touched")
    work()
    assert occurrences("parcel_sent") == ["2"]
    assert Event.objects.get(entity_id="1").status == "expired"


def test_only_captured_events_are_recorded(work):
    Note.objects.bulk_create([Note(pk=1)])
    work()
    assert occurrences("note_written") == ["1"]
    assert occurrences("note_saved") == []
    Note.objects.get().save()
    assert occurrences("note_saved") == ["1"]


def test_the_setting_captures_every_event(settings, declare, work):
    declare(Parcel, EventDefinition("a", trigger=UPDATE), EventDefinition("b", trigger=UPDATE, capture=False))
    settings.AUTOMATION = {**settings.AUTOMATION, "CAPTURE": True}
    Parcel.objects.bulk_create([Parcel(pk=1)])
    Parcel.objects.update(code="x")
    work()
    assert (occurrences("a"), occurrences("b")) == (["1"], [])


def test_a_condition_that_raises_is_retried(clock, declare, work):
    def doubtful(parcel):
        raise ValueError("who knows")

    declare(Parcel, EventDefinition("doubtful", doubtful, capture=True))
    Parcel.objects.bulk_create([Parcel(pk=1)])
    work()
    assert outbox() == []
    event = Event.objects.get()
    assert event.attempt == 1
    assert "who knows" in event.error


# -- causes, doorbells -------------------------------------------------------------------------------------------------


def test_a_write_of_a_callback_has_its_cause(work):
    @on_event("parcel_created")
    def weigh(event):
        Parcel.objects.filter(pk=event.entity_id).update(weight=7)

    @on_event("parcel_weighed")
    def weighed(event):
        leave(event.caused_by.partition(":")[0])

    Parcel.objects.bulk_create([Parcel(pk=1)])
    work()
    assert effects() == ["callback"]
    assert Event.objects.get(declared_as="parcel_weighed", status="processed").depth > 0


def test_a_storm_of_captured_writes_ends(settings, work):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 5}

    @on_event("parcel_updated")
    def again(event):
        Parcel.objects.update(weight=F("weight") + 1)

    Parcel.objects.bulk_create([Parcel(pk=1)])
    Parcel.objects.update(weight=1)
    work()
    assert "EventStormError" in Event.objects.get(status="parked", declared_as="parcel_updated").error


class Bell:
    def __init__(self) -> None:
        self.rings: list[tuple[str, ...]] = []

    def ring(self, alias, queues=()):
        self.rings.append(tuple(sorted(queues)))


@pytest.fixture
def bell():
    found = Bell()
    notifier.set_notifier(found)
    yield found
    notifier.set_notifier(None)


def test_a_commit_of_bulk_writes_rings(bell):
    Parcel.objects.bulk_create([Parcel(pk=1), Parcel(pk=2)])
    assert bell.rings == [("events",)]
    with transaction.atomic():
        Parcel.objects.update(weight=1)
        Parcel.objects.update(weight=2)
        assert len(bell.rings) == 1
    assert len(bell.rings) == 2


def test_a_save_does_not_ring_for_its_own_writes(bell, declare):
    rings = []
    for is_captured in (False, True):
        declare(Parcel, EventDefinition("parcel_due", date_field="due_at", capture=is_captured))
        CapturedWrite.objects.all().delete()
        bell.rings.clear()
        parcel = Parcel.objects.create()
        parcel.save()
        assert bell.rings == []
        parcel.delete()  # its pending event is cancelled
        rings.append([*bell.rings])
    assert rings[0] == rings[1]
    assert outbox() == []


@only_on("postgresql", reason="NOTIFY is PostgreSQL's")
def test_a_write_that_django_does_not_see_notifies():
    with connection.cursor() as cursor:
        cursor.execute("LISTEN django_ai_automation")
    raw = connection.connection
    Parcel.objects.bulk_create([Parcel(pk=1)])
    assert list(raw.notifies(timeout=0)) == []  # this process rings itself
    with another_program() as cursor:
        cursor.execute("UPDATE captured_parcel SET weight = 2")
        cursor.execute("UPDATE captured_parcel SET weight = 3")
        cursor.execute("UPDATE captured_parcel SET weight = 3 WHERE false")
    assert [each.payload for each in raw.notifies(timeout=5, stop_after=1)] == ["events"]


def test_inline_performs_at_once():
    notifier.set_notifier(notifier.InlineNotifier())
    try:
        Parcel.objects.bulk_create([Parcel(pk=1, state="sent")])
        assert occurrences("parcel_sent") == ["1"]
    finally:
        notifier.set_notifier(None)


def test_an_agent_hears_what_was_saved_after_the_write_that_spawns_it(work):
    """A worker records the write later than what was saved in between has occurred."""

    @agent("keeper", spawn_on="parcel_sent")
    class Keeper:
        Context = Entity

        @handler("note_saved", match={"parcel_id": "{{ ctx.entity_id }}"})
        def noted(self, event):
            leave(event.entity.text)

    parcel = Parcel.objects.create()
    Note.objects.create(parcel=parcel, text="before")
    drain()
    Parcel.objects.update(state="sent")
    Note.objects.create(parcel=parcel, text="after")
    assert occurrences("parcel_sent") == []
    work()
    work()
    assert effects() == ["after"]


# -- the rows of the outbox --------------------------------------------------------------------------------------------


def test_a_write_of_an_unknown_table_is_parked_until_the_code_is_there(clock, declare):
    definitions = Parcel.events
    declare(Parcel)
    Parcel.objects.bulk_create([Parcel(pk=1)])
    drain(clock.now)
    row = CapturedWrite.objects.get()
    assert row.status == "parked"
    assert "automation_capture" in row.error
    assert row.waits_for(clock.now).startswith("missing code")
    declare(Parcel, *definitions)
    drain(clock.tick(HOUR))
    assert occurrences("parcel_created") == ["1"]
    assert outbox() == []


@pytest.mark.slow
def test_many_are_performed_in_batches(work):
    Parcel.objects.bulk_create([Parcel(state="sent") for _ in range(700)])
    work()
    assert len(occurrences("parcel_sent")) == 700
    assert outbox() == []
    Parcel.objects.update(weight=3)
    Parcel.objects.update(state="packed")
    work()
    assert len(occurrences("parcel_updated")) == 1400
    assert len(occurrences("parcel_weighed")) == 700
