"""Triggers: events that occur at each creation or update, and their payloads."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import transaction

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import LongStay, Reservation, Room, Suite
from tests.support.event_options import Bill, confirmed, gone, hear, occurred, rows, starts
from tests.support.rows import change, effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


# -- trigger=CREATE ----------------------------------------------------------------------------------------------------


def test_create_occurs_once_when_the_condition_is_true_at_creation(declare, work):
    declare(Reservation, EventDefinition("made", confirmed, trigger=CREATE))
    hear("made")
    stay = Reservation.objects.create(status="confirmed")
    for status in ("confirmed", "pending", "confirmed"):
        change(stay, status=status)
    (row,) = rows("made")
    assert (row.status, row.trigger, row.entity_id) == ("processed", "create", str(stay.pk))
    work()
    assert effects() == [f"made {stay.pk}"]


def test_create_never_occurs_when_the_condition_turns_true_later(declare):
    declare(Reservation, EventDefinition("made", confirmed, trigger=CREATE))
    stay = Reservation.objects.create()
    change(stay, status="confirmed")
    assert rows("made") == []


def test_create_occurs_for_each_entity(declare):
    declare(Reservation, EventDefinition("made", trigger="create"))
    stays = [Reservation.objects.create() for _ in range(3)]
    assert [row.entity_id for row in rows("made")] == [str(stay.pk) for stay in stays]


def test_saves_after_the_creation_in_one_transaction_belong_to_it(declare):
    declare(Reservation, EventDefinition("made", trigger=CREATE), EventDefinition("updated", trigger=UPDATE))
    with transaction.atomic():
        stay = Reservation.objects.create()
        stay.note = "more"
        stay.save()
    assert [row.trigger for row in rows("made")] == ["create"]
    assert [row.trigger for row in rows("updated")] == ["update"]


def test_create_and_update_in_one_transaction_are_one_occurrence_of_one_definition(declare):
    declare(Reservation, EventDefinition("written", trigger=[CREATE, UPDATE]))
    with transaction.atomic():
        stay = Reservation.objects.create()
        stay.note = "more"
        stay.save()
    (row,) = rows("written")
    assert (row.status, row.trigger) == ("processed", "create")


def test_create_evaluates_the_condition_again_at_the_commit(declare):
    declare(Reservation, EventDefinition("made", confirmed, trigger=CREATE))
    with transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
        Reservation.objects.filter(pk=stay.pk).update(status="pending")
    assert occurred("made") == 0
    change(stay, status="confirmed")
    assert occurred("made") == 0  # an update is not a creation


def test_several_triggers_say_which_kind_it_was(declare, work):
    declare(Reservation, EventDefinition("written", trigger=[CREATE, UPDATE, DELETE]))
    stay = Reservation.objects.create()
    change(stay, note="1")
    change(stay, note="2").delete()
    assert [(row.trigger, row.status) for row in rows("written")] == [
        ("create", "processed"),
        ("update", "processed"),
        ("update", "processed"),
        ("delete", "processed"),
    ]


def test_a_trigger_may_be_given_as_a_text():
    definition = EventDefinition("written", trigger=["create", "delete"])
    assert definition.triggers == {CREATE, DELETE}


# -- trigger=UPDATE ----------------------------------------------------------------------------------------------------


def test_update_occurs_at_each_update_for_which_the_condition_holds(declare, work):
    declare(Reservation, EventDefinition("updated", confirmed, trigger=UPDATE))
    hear("updated")
    stay = Reservation.objects.create(status="confirmed")
    assert rows("updated") == []
    for status in ("confirmed", "pending", "confirmed", "confirmed"):
        change(stay, status=status)
    found = rows("updated")
    assert [(row.status, row.trigger) for row in found] == [("processed", "update")] * 3
    assert [row.active_key is not None for row in found] == [False, False, True]
    work()
    assert effects() == [f"updated {stay.pk}"] * 3


def test_all_saves_of_a_transaction_are_one_occurrence(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stay = Reservation.objects.create()
    for _ in range(2):
        with transaction.atomic():
            for note in "abc":
                stay.note = note
                stay.save()
    assert occurred("updated") == 2


def test_a_save_after_the_commit_is_another_update(declare):
    """A save in a project's on_commit hook, which runs before the package's hook, is a separate occurrence."""
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stay = Reservation.objects.create()
    with transaction.atomic():
        transaction.on_commit(lambda: change(stay, note="two"))
        change(stay, note="one")
    assert occurred("updated") == 2


def test_two_entities_in_one_transaction_are_two_occurrences(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stays = [Reservation.objects.create() for _ in range(2)]
    with transaction.atomic():
        for stay in stays:
            stay.save()
            stay.save()
    assert [row.entity_id for row in rows("updated")] == [str(stay.pk) for stay in stays]


def test_an_update_that_is_rolled_back_leaves_nothing(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stay = Reservation.objects.create()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        stay.save()
        raise ZeroDivisionError
    assert rows("updated") == []
    stay.save()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        stay.save()
        raise ZeroDivisionError
    (row,) = rows("updated")
    assert (row.status, row.active_key is not None) == ("processed", True)


def test_a_savepoint_that_is_rolled_back_leaves_nothing(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stay, other = Reservation.objects.create(), Reservation.objects.create()
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            stay.save()
            raise ZeroDivisionError
        other.save()
    assert [row.entity_id for row in rows("updated")] == [str(other.pk)]


def test_a_save_after_a_savepoint_that_was_rolled_back_counts(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stay = Reservation.objects.create()
    stay.save()
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            stay.save()
            raise ZeroDivisionError
        stay.save()
    assert occurred("updated") == 2


def test_a_condition_that_is_false_by_the_commit_and_the_next_update(declare):
    declare(Reservation, EventDefinition("updated", confirmed, trigger=UPDATE))
    stay = Reservation.objects.create()
    for expected in (1, 2):
        with transaction.atomic():
            change(stay, status="confirmed")
            Reservation.objects.filter(pk=stay.pk).update(status="pending")
        assert occurred("updated") == expected - 1
        change(stay, status="confirmed")
        assert occurred("updated") == expected


def test_a_condition_that_a_later_save_of_the_transaction_makes_false(declare):
    declare(Reservation, EventDefinition("updated", confirmed, trigger=UPDATE))
    stay = Reservation.objects.create()
    with transaction.atomic():
        change(stay, status="confirmed")
        change(stay, status="pending")
    assert occurred("updated") == 0
    change(stay, status="confirmed")
    assert occurred("updated") == 1


def test_update_fields_and_proxies_are_updates_too(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    declare(LongStay, *Reservation.events)
    stay = Reservation.objects.create()
    stay.save(update_fields=["note"])
    LongStay.objects.get(pk=stay.pk).save()
    assert occurred("updated") == 2
    assert {row.entity_type for row in rows("updated")} == {"app.reservation"}


def test_a_save_of_nothing_is_no_update(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stay = Reservation.objects.create()
    stay.save(update_fields=[])
    assert rows("updated") == []


def test_update_or_create_and_get_or_create(declare):
    declare(Room, EventDefinition("made", trigger=CREATE), EventDefinition("updated", trigger=UPDATE))
    for _ in range(2):
        Room.objects.get_or_create(number="12")
    assert (occurred("made"), occurred("updated")) == (1, 0)
    Room.objects.update_or_create(number="12", defaults={"is_clean": True})
    assert (occurred("made"), occurred("updated")) == (1, 1)


def test_what_goes_behind_djangos_back_is_no_write(declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), EventDefinition("updated", trigger=UPDATE))
    Reservation.objects.bulk_create([Reservation()])
    Reservation.objects.update(note="x")
    reconcile_dates(datetime.now(UTC))
    assert (rows("made"), rows("updated")) == ([], [])


def test_a_child_with_a_table_of_its_own_has_its_parents_updates(declare):
    shared = EventDefinition("updated", trigger=UPDATE)
    declare(Room, shared)
    declare(Suite, shared, EventDefinition("suite_updated", trigger=UPDATE))
    suite = Suite.objects.create(number="1")
    suite.save()
    Room.objects.get(pk="1").save()
    assert (occurred("updated"), occurred("suite_updated")) == (2, 1)
    assert {row.entity_type for row in rows("updated")} == {"app.room"}


def test_offsets_of_each_occurrence_fire_by_themselves(clock, declare, work):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE, payload=lambda stay: {"note": stay.note}))

    @on_event("updated", offset=HOUR)
    def later(event):
        leave(f"{event.payload['note']} {event.at:%H:%M}")

    stay = Reservation.objects.create()
    change(stay, note="one")
    clock.tick(timedelta(minutes=30))
    change(stay, note="two")
    clock.tick(timedelta(minutes=29))
    work()
    assert effects() == []
    clock.tick(timedelta(minutes=1))
    work()
    assert effects() == ["one 12:00"]
    clock.tick(timedelta(minutes=30))
    work()
    assert effects() == ["one 12:00", "two 12:30"]
    clock.tick(DAY)
    work()
    assert len(effects()) == 2


def test_event_workflows_start_once_for_each_occurrence(clock, declare, work):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    starts("updated", "now")
    starts("updated", "soon", offset=HOUR)
    stay = Reservation.objects.create()
    for _ in range(3):
        change(stay)
    work()
    assert effects() == ["now"] * 3
    assert WorkflowRun.objects.filter(name="soon", status="waiting").count() == 3
    clock.tick(HOUR)
    work()
    assert effects() == ["now"] * 3 + ["soon"] * 3
    assert len(set(WorkflowRun.objects.values_list("event", "name"))) == 6


def test_an_update_that_a_callback_makes_ends_as_a_storm(declare, work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 4}
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))

    @on_event("updated")
    def again(event):
        event.entity.save()

    change(Reservation.objects.create())
    for _ in range(10):
        work()
    found = rows("updated")
    assert [row.status for row in found] == ["processed"] * 5 + ["parked"]
    assert "EventStormError" in found[-1].error


def test_a_condition_that_raises_delays_that_occurrence_and_not_the_save(declare, work):
    declare(Reservation, EventDefinition("updated", lambda stay: 1 / len(stay.note) > 0, trigger=UPDATE))
    stay = Reservation.objects.create()
    change(stay, note="")
    (row,) = rows("updated")
    assert (row.status, row.attempt, "ZeroDivisionError" in row.error) == ("pending", 1, True)
    change(stay, note="fine")
    assert occurred("updated") == 1
    work(row.wake_at)
    assert occurred("updated") == 2


def test_a_cancelled_occurrence_stays_so_and_the_next_update_is_another(declare, work):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    hear("updated")
    stay = Reservation.objects.create()
    with transaction.atomic():
        change(stay)
        (row,) = rows("updated")
        assert row.cancel()
    work()
    assert effects() == []
    change(stay)
    work()
    assert effects() == [f"updated {stay.pk}"]
    assert [row.status for row in rows("updated")] == ["cancelled", "processed"]


def test_the_history_goes_and_the_latest_row_stays(clock, declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE))
    stay = Reservation.objects.create()
    for _ in range(3):
        change(stay)
    clock.tick(400 * DAY)
    cleanup_old()
    (row,) = rows("updated")
    assert row.active_key is not None


# -- fixtures ----------------------------------------------------------------------------------------------------------


def load(tmp_path, **fields) -> None:
    path = tmp_path / "bill.json"
    path.write_text(
        json.dumps([{"model": "app.bill", "pk": 5, "fields": {"changed_at": "2030-01-01T00:00Z", **fields}}])
    )
    call_command("loaddata", str(path), verbosity=0)


def test_fixtures_fire_nothing(declare, work, tmp_path):
    declare(
        Bill,
        EventDefinition("made", trigger=CREATE),
        EventDefinition("updated", trigger=UPDATE),
        EventDefinition("changed", watch_fields=["title"]),
        EventDefinition("again", lambda bill: bill.paid, rearm=True),
    )
    hear("*")
    load(tmp_path, title="a", paid=True)
    load(tmp_path, title="b", paid=True)
    assert Event.objects.occurred().count() == 0
    change(Bill.objects.get(pk=5), title="b")
    assert [row.event_name for row in Event.objects.occurred()] == ["updated"]
    change(Bill.objects.get(pk=5), title="c", paid=False)
    change(Bill.objects.get(pk=5), paid=True)
    assert [occurred(name) for name in ("made", "updated", "changed", "again")] == [0, 3, 1, 1]


# -- payloads ----------------------------------------------------------------------------------------------------------


def test_each_occurrence_has_a_payload_of_its_own(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE, payload=lambda stay: {"note": stay.note}))
    stay = Reservation.objects.create()
    for note in ("a", "b"):
        change(stay, note=note)
    assert [row.payload["note"] for row in rows("updated")] == ["a", "b"]


def test_a_payload_function_may_ask_for_the_event(declare):
    declare(
        Reservation,
        EventDefinition("written", trigger=[CREATE, DELETE], payload=lambda event: {"by": str(event.trigger)}),
    )
    Reservation.objects.create().delete()
    assert [row.payload["by"] for row in rows("written")] == ["create", "delete"]


def test_a_payload_that_is_no_dict_parks_the_deletion_event(declare):
    declare(Reservation, gone(payload=lambda stay: "text"))
    Reservation.objects.create().delete()
    (row,) = rows("gone")
    assert (row.status, "must return a dict" in row.error) == ("parked", True)
