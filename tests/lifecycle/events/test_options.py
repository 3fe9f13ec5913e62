"""What an event may ask for: triggers, watched fields, occurring again, namespaces, templated names, patterns."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import product

import pytest
from django.core.management import call_command
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.events.recording.reconcile import reconcile_dates
from django_ai.automation.queues.runtimes.tasks import cleanup_old, poll_due
from django_ai.automation.workflows.core import (
    complete,
    engine,
    event_workflow,
    get_wake,
    step,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Chore, Document, Errand, Guest, LongStay, Reservation, Room, Suite, Ticket
from tests.support.rows import effects, leave, the_run, use_up_attempts

pytestmark = pytest.mark.django_db(transaction=True)

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


class Bill(models.Model):
    """A column of each kind that two texts may mean the same for. Its table is made with those of the suite."""

    guest = models.ForeignKey(Guest, null=True, on_delete=models.CASCADE)
    amount = models.DecimalField(max_digits=8, decimal_places=2, default=0)
    share = models.FloatField(default=0)
    number = models.IntegerField(default=0)
    due_at = models.DateTimeField(null=True)
    day = models.DateField(null=True)
    lasts = models.DurationField(null=True)
    token = models.UUIDField(null=True)
    raw = models.BinaryField(default=b"")
    details = models.JSONField(default=dict, encoder=DjangoJSONEncoder)
    title = models.CharField(max_length=50, default="", blank=True)
    paid = models.BooleanField(default=False)
    changed_at = models.DateTimeField(auto_now=True)

    events = [EventDefinition("bill_paid", condition=lambda bill: bill.paid)]

    class Meta:
        app_label = "app"

    def __str__(self) -> str:
        return f"bill {self.pk}"


def confirmed(stay) -> bool:
    return stay.status == "confirmed"


def rows(name: str, **lookups) -> list[Event]:
    """The rows of an event, the eldest first."""
    return list(Event.objects.filter(declared_as=name, **lookups).order_by("pk"))


def occurred(name: str, **lookups) -> int:
    return len(rows(name, status="processed", **lookups))


def change(entity, **values):
    """Save ``entity`` with other values, as a view does that has just read it."""
    fresh = type(entity).objects.get(pk=entity.pk)
    for name, value in values.items():
        setattr(fresh, name, value)
    fresh.save()
    return fresh


def hear(name: str, **options) -> None:
    @on_event(name, name=f"hear {name} {sorted(options)}", **options)
    def heard(event):
        leave(f"{event.event_name} {event.entity_id}")


def starts(event: str, name: str = "started", **options) -> None:
    """Declare a workflow that the event starts; it leaves its event's number."""

    @event_workflow(event, name=name, **options)
    class Started:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            leave(name)
            return complete()


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


def test_create_judges_the_condition_again_at_the_commit(declare):
    declare(Reservation, EventDefinition("made", confirmed, trigger=CREATE))
    with transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
        Reservation.objects.filter(pk=stay.pk).update(status="pending")
    assert occurred("made") == 0
    change(stay, status="confirmed")
    assert occurred("made") == 0  # an update is no creation


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
    """A hook of the project runs before ours, and saves in a transaction of its own."""
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


# -- watch_fields ------------------------------------------------------------------------------------------------------


def watch(declare, *names, **options):
    """Let ``Bill`` watch its fields ``names``."""
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
    # The same primary key once more: the older changes are not its.
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


def test_a_change_while_the_condition_is_false_is_seen_and_not_told(declare):
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
    change(bill, title="b")  # nobody knows what it was before
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
    """PostgreSQL rounds 1.005 to 1.01, Python and SQLite to 1.00; what is in the table counts."""
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


# -- rearm -------------------------------------------------------------------------------------------------------------


@pytest.mark.exact_times
def test_a_condition_that_turns_true_again(clock, declare, work):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    hear("on")
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="confirmed", note="x")
    assert occurred("on") == 1
    change(stay, status="pending")
    assert occurred("on") == 1
    clock.tick(HOUR)
    change(stay, status="confirmed")
    found = rows("on")
    assert [(row.status, row.occurred_at) for row in found] == [("processed", clock() - HOUR), ("processed", clock())]
    assert [row.active_key is not None for row in found] == [False, True]
    work()
    assert effects() == [f"on {stay.pk}"] * 2


def test_without_rearm_it_does_not_occur_again(declare):
    declare(Reservation, EventDefinition("on", confirmed))
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    change(stay, status="confirmed")
    assert len(rows("on")) == 1


def test_there_and_back_in_one_transaction_is_one_more(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create(status="confirmed")
    with transaction.atomic():
        change(stay, status="pending")
        change(stay, status="confirmed")
        change(stay, status="pending")
        change(stay, status="confirmed")
    assert occurred("on") == 2


def test_a_rearmed_event_that_is_rolled_back(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change(stay, status="confirmed")
        raise ZeroDivisionError
    (row,) = rows("on")
    assert (row.active_key is not None, row.armed) == (True, False)
    change(stay, status="confirmed")
    assert occurred("on") == 2


def test_a_rearmed_condition_that_is_false_by_the_commit(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    with transaction.atomic():
        change(stay, status="confirmed")
        Reservation.objects.update(status="pending")
    assert occurred("on") == 1
    change(stay, status="confirmed")
    assert occurred("on") == 2


def test_rearm_starts_its_workflows_again(declare, work):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    starts("on")
    stay = Reservation.objects.create(status="confirmed")
    change(stay, status="pending")
    change(stay, status="confirmed")
    work()
    assert effects() == ["started"] * 2


def test_offsets_of_a_rearmed_event(clock, declare, work):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))

    @on_event("on", offset=HOUR)
    def later(event):
        leave(f"{event.at:%H:%M}")

    stay = Reservation.objects.create(status="confirmed")
    clock.tick(timedelta(minutes=10))
    change(stay, status="pending")
    clock.tick(timedelta(minutes=10))
    change(stay, status="confirmed")
    clock.tick(timedelta(minutes=40))
    work()
    clock.tick(timedelta(minutes=20))
    work()
    assert effects() == ["12:00", "12:20"]


def test_a_cancelled_event_does_not_occur_though_it_could_again(declare):
    declare(Reservation, EventDefinition("on", confirmed, rearm=True))
    stay = Reservation.objects.create()
    assert rows("on")[0].cancel()
    change(stay, status="confirmed")
    assert [row.status for row in rows("on")] == ["cancelled"]


def test_a_parked_event_is_not_armed_again(declare, work):
    declare(Reservation, EventDefinition("on", lambda stay: stay.status in stay.note[0], rearm=True))
    stay = Reservation.objects.create()
    use_up_attempts(rows("on")[0], work)
    assert [row.status for row in rows("on")] == ["parked"]
    change(stay, note="pending")
    assert [row.status for row in rows("on")] == ["parked"]


@pytest.fixture
def scheduled(clock, declare):
    """``checkin`` may occur again, ``checkout`` may not; -1 h, 0 and +1 h are heard."""
    declare(
        Reservation,
        EventDefinition("in", date_field="checkin_at", rearm=True),
        EventDefinition("out", date_field="checkout_at"),
    )
    for name in ("in", "out"):
        for title, offset in (("before", -HOUR), ("at", None), ("after", HOUR)):

            @on_event(name, offset=offset, name=f"{title} {name}")
            def heard(event, title=title, name=name):
                leave(f"{title} {name}")

    def make(**dates):
        return Reservation.objects.create(**{name: clock() + delta for name, delta in dates.items()})

    return make


def pass_by(clock, work, hours: float) -> list[str]:
    """Let time go by in small steps; return what came."""
    before = len(effects())
    for _ in range(int(hours * 2)):
        clock.tick(HOUR / 2)
        work()
    return effects()[before:]


def test_a_date_that_moves_after_it_has_occurred(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR, checkout_at=2 * HOUR)
    whole = ["before in", "before out", "at in", "at out", "after in", "after out"]
    assert sorted(pass_by(clock, work, 4)) == sorted(whole)
    change(stay, checkin_at=clock() + 2 * HOUR, checkout_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 4) == ["before in", "at in", "after in"]
    assert [row.status for row in rows("in")] == ["processed"] * 2
    assert [row.status for row in rows("out")] == ["processed"]
    assert [row.active_key is not None for row in rows("in")] == [False, True]


def test_the_same_date_again_is_no_move(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 4)
    change(stay, note="x")
    change(stay, checkin_at=stay.checkin_at)
    assert pass_by(clock, work, 4) == []
    assert len(rows("in")) == 1


def test_a_date_that_moves_after_its_negative_offset_has_fired(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR, checkout_at=2 * HOUR)
    assert sorted(pass_by(clock, work, 1.5)) == ["before in", "before out"]
    change(stay, checkin_at=clock() + 2 * HOUR, checkout_at=clock() + 2 * HOUR)
    came = pass_by(clock, work, 4)
    assert [each for each in came if each.endswith("in")] == ["before in", "at in", "after in"]
    assert [each for each in came if each.endswith("out")] == ["at out", "after out"]
    assert [row.status for row in rows("in")] == ["cancelled", "processed"]


def test_a_date_that_moves_before_anything_has_fired_is_one_event(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR)
    change(stay, checkin_at=clock() + 3 * HOUR)
    assert pass_by(clock, work, 5) == ["before in", "at in", "after in"]
    assert len(rows("in")) == 1


def test_a_date_that_moves_before_the_positive_offset_takes_it_along(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    assert pass_by(clock, work, 1) == ["before in", "at in"]
    change(stay, checkin_at=clock() + 5 * HOUR)
    assert pass_by(clock, work, 7) == ["before in", "at in", "after in"]


def test_a_date_that_is_taken_away_and_given_again(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    change(stay, checkin_at=None)
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 4) == ["before in", "at in", "after in"]


def test_a_date_that_moves_to_where_it_is_too_late(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    change(stay, checkin_at=clock() - 3 * DAY)
    assert pass_by(clock, work, 1) == []
    assert len(rows("in")) == 1


def test_a_date_that_moves_twice(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    change(stay, checkin_at=clock() + 2 * HOUR)
    change(stay, checkin_at=clock() + 4 * HOUR)
    assert pass_by(clock, work, 6) == ["before in", "at in", "after in"]
    assert len(rows("in")) == 2


def test_a_move_that_is_rolled_back(clock, scheduled, work):
    stay = scheduled(checkin_at=HOUR)
    pass_by(clock, work, 3)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change(stay, checkin_at=clock() + HOUR)
        raise ZeroDivisionError
    assert pass_by(clock, work, 3) == []
    assert len(rows("in")) == 1


def test_a_date_that_moves_behind_djangos_back_after_it_has_occurred(clock, scheduled):
    scheduled(checkin_at=HOUR)
    pass_by(clock, poll_due, 3)
    Reservation.objects.update(checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, poll_due, 4) == ["before in", "at in", "after in"]


def test_a_date_that_moves_behind_djangos_back_while_an_offset_is_still_to_come(clock, scheduled):
    """The offset's wake reads the entity before anybody reconciles: it must not make the move look like old news."""
    scheduled(checkin_at=HOUR)
    assert pass_by(clock, poll_due, 1) == ["before in", "at in"]
    Reservation.objects.update(checkin_at=clock() + 10 * HOUR)
    assert pass_by(clock, poll_due, 12) == ["before in", "at in", "after in"]


def test_rearm_of_a_date_plans_its_workflows_again(clock, declare, work):
    declare(Reservation, EventDefinition("in", date_field="checkin_at", rearm=True))
    starts("in", "early", offset=-HOUR)
    starts("in", "sharp")
    stay = Reservation.objects.create(checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 3) == ["early", "sharp"]
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 1.5) == ["early"]
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 3) == ["early", "sharp"]
    assert WorkflowRun.objects.filter(status="completed").count() == 5


def test_a_cancelled_date_does_not_come_back_by_moving(clock, scheduled, work):
    stay = scheduled(checkin_at=2 * HOUR)
    assert rows("in")[0].cancel()
    change(stay, checkin_at=clock() + 3 * HOUR)
    assert pass_by(clock, work, 5) == []


def test_what_moved_is_not_told_as_cancelled(clock, scheduled, work):
    """The event goes on at its new date; ``on_event_cancelled`` is for what does not come any more."""

    @on_event_cancelled("in")
    def gone(event):
        leave("cancelled")

    stay = scheduled(checkin_at=2 * HOUR)
    pass_by(clock, work, 1)
    change(stay, checkin_at=clock() + 2 * HOUR)
    assert pass_by(clock, work, 4) == ["before in", "at in", "after in"]


# -- trigger=DELETE ----------------------------------------------------------------------------------------------------


def gone(**options) -> EventDefinition:
    return EventDefinition("gone", trigger=DELETE, **options)


@pytest.mark.exact_times
def test_a_deletion_occurs_after_its_commit_with_the_snapshot(clock, declare, work):
    declare(Reservation, gone(payload=lambda stay: {"guest": stay.guest.name}))

    @on_event("gone")
    def heard(event):
        entity = event.entity
        leave(f"{entity.pk} {entity.note} {event.payload['guest']} {Reservation.objects.filter(pk=entity.pk).exists()}")

    stay = Reservation.objects.create(guest=Guest.objects.create(name="Ann"), note="bye")
    pk = stay.pk
    change(stay, note="farewell")
    with transaction.atomic():
        Reservation.objects.get(pk=pk).delete()
        assert [row.status for row in rows("gone")] == ["pending"]
    (row,) = rows("gone")
    assert (row.status, row.trigger, row.occurred_at, row.is_valid) == ("processed", "delete", clock(), True)
    assert row.payload == {
        "event_id": row.pk,
        "event_name": "gone",
        "entity_id": str(pk),
        "event_at": clock().isoformat(),
        "guest": "Ann",
    }
    work()
    assert effects() == [f"{pk} farewell Ann False"]


def test_the_condition_is_judged_at_the_deletion(declare):
    declare(Reservation, gone(condition=confirmed))
    Reservation.objects.create(status="confirmed").delete()
    Reservation.objects.create(status="pending").delete()
    assert occurred("gone") == 1
    assert len(rows("gone")) == 1


def test_a_condition_that_asks_the_database_is_not_asked_again(declare):
    declare(Reservation, gone(condition=lambda stay: stay.guest is not None and stay.guest.name == "Ann"))
    guest = Guest.objects.create(name="Ann")
    with transaction.atomic():
        Reservation.objects.create(guest=guest).delete()
        guest.delete()
    assert occurred("gone") == 1


@pytest.mark.parametrize("inner", [True, False])
def test_a_deletion_that_is_rolled_back(declare, inner):
    declare(Reservation, gone())
    stay = Reservation.objects.create()
    with transaction.atomic() if inner else pytest.raises(ZeroDivisionError):
        try:
            with transaction.atomic():
                Reservation.objects.get(pk=stay.pk).delete()
                raise ZeroDivisionError
        except ZeroDivisionError:
            if not inner:
                raise
    assert rows("gone") == []
    assert Reservation.objects.filter(pk=stay.pk).exists()


@pytest.mark.parametrize("partly", [lambda rows: rows.only("pk"), lambda rows: rows.defer("note", "status")])
def test_a_deletion_of_what_was_loaded_in_part(declare, partly):
    declare(Reservation, gone(condition=confirmed))
    stay = Reservation.objects.create(status="confirmed", note="whole")
    partly(Reservation.objects).get(pk=stay.pk).delete()
    (row,) = rows("gone")
    assert (row.status, row.entity.note, row.entity.status) == ("processed", "whole", "confirmed")


def test_queryset_delete_and_cascades(declare):
    declare(Reservation, gone())
    declare(Document, EventDefinition("document_gone", trigger=DELETE, payload=lambda d: {"of": d.reservation.note}))
    guest = Guest.objects.create(name="Ann")
    for note in ("a", "b"):
        Document.objects.create(reservation=Reservation.objects.create(guest=guest, note=note))
    Reservation.objects.create(note="of nobody")
    guest.delete()
    assert sorted(row.entity.note for row in rows("gone", status="processed")) == ["a", "b"]
    assert sorted(row.payload["of"] for row in rows("document_gone", status="processed")) == ["a", "b"]
    Reservation.objects.filter(note="of nobody").delete()
    assert occurred("gone") == 3


def test_a_payload_that_raises_parks_the_event_and_not_the_deletion(declare):
    declare(Reservation, gone(payload=lambda stay: {"name": stay.guest.name}))
    Reservation.objects.create().delete()
    (row,) = rows("gone")
    assert (row.status, "AttributeError" in row.error) == ("parked", True)
    assert not Reservation.objects.exists()


def test_a_condition_that_raises_parks_the_event_and_not_the_deletion(declare):
    declare(Reservation, gone(condition=lambda stay: stay.guest.name))
    Reservation.objects.create().delete()
    (row,) = rows("gone")
    assert (row.status, "AttributeError" in row.error) == ("parked", True)


@pytest.mark.parametrize("through", [Suite, Room])
def test_each_part_of_a_child_with_a_table_of_its_own_is_deleted_once(declare, through):
    shared = EventDefinition("room_gone", trigger=DELETE)
    declare(Room, shared)
    declare(Suite, shared, EventDefinition("suite_gone", trigger=DELETE, payload=lambda suite: {"stars": suite.stars}))
    Suite.objects.create(number="1", stars=3)
    through.objects.get(pk="1").delete()
    assert [(row.entity_type, row.status) for row in rows("room_gone")] == [("app.room", "processed")]
    assert [(row.entity_type, row.status, row.payload["stars"]) for row in rows("suite_gone")] == [
        ("app.suite", "processed", 3)
    ]


def test_the_snapshot_of_a_child_has_the_key_of_its_parent(declare):
    declare(Suite, EventDefinition("suite_gone", trigger=DELETE))
    suite = Suite.objects.create(number="1", stars=3)
    number = suite.number
    suite.delete()
    entity = rows("suite_gone")[0].entity
    assert (entity.pk, entity.number, entity.stars, entity.is_clean) == (number, number, 3, False)


def test_a_deletion_cancels_what_was_pending_and_occurs(declare, work):
    declare(Reservation, EventDefinition("confirmed", confirmed), gone())
    hear("gone")

    @on_event_cancelled("confirmed")
    def never(event):
        leave("never confirmed")

    Reservation.objects.create().delete()
    work()
    assert {(row.event_name, row.status) for row in Event.objects.all()} == {
        ("confirmed", "cancelled"),
        ("gone", "processed"),
    }
    assert sorted(effects())[-1] == "never confirmed"
    assert len(effects()) == 2


def test_the_same_key_may_come_and_go_again(declare):
    declare(Room, gone())
    for _ in range(2):
        Room.objects.create(number="7").delete()
    assert occurred("gone") == 2
    assert [row.active_key for row in rows("gone")] == [None, None]


def test_an_entity_that_is_created_and_deleted_in_one_transaction(declare):
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone())
    with transaction.atomic():
        Reservation.objects.create().delete()
    assert [row.status for row in rows("made")] == ["cancelled"]
    assert occurred("gone") == 1


def test_a_stale_instance_that_is_deleted_once_more_is_no_deletion(declare):
    declare(Reservation, gone())
    stay = Reservation.objects.create()
    stale = Reservation.objects.get(pk=stay.pk)
    stay.delete()
    assert stale.delete()[0] == 0
    assert occurred("gone") == 1


def test_offsets_after_a_deletion(clock, declare, work):
    declare(Reservation, gone(payload=lambda stay: {"note": stay.note}))
    starts("gone", "flow", offset=2 * HOUR)

    @on_event("gone", offset=HOUR)
    def later(event):
        leave(f"{event.entity.note} {event.payload['note']}")

    Reservation.objects.create(note="x").delete()
    work()
    assert effects() == []
    clock.tick(HOUR)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["x x", "flow"]


def test_a_workflow_starts_with_a_deletion(declare, work):
    declare(Reservation, gone())

    @event_workflow("gone", name="farewell")
    class Farewell:
        class Context(BaseModel):
            note: str

        @classmethod
        def create_context(cls, event):
            return cls.Context(note=event.entity.note)

        @step(start=True)
        def first(self):
            leave(self.context.note)
            return complete()

    Reservation.objects.create(note="farewell").delete()
    work()
    assert effects() == ["farewell"]


def own_waiter(name: str, **options) -> None:
    @event_workflow("made", name="own waiter")
    class OwnWaiter:
        class Context(BaseModel):
            entity_id: str = ""

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["event_name"])
                return complete()
            return wait_for_event(name, **options)


def test_a_run_waits_for_the_deletion_of_its_own_entity(declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone())
    own_waiter("gone")
    mine, other = Reservation.objects.create(), Reservation.objects.create()
    work()
    run, others = WorkflowRun.objects.order_by("pk")
    mine.delete()
    work()
    run.refresh_from_db()
    others.refresh_from_db()
    assert (run.status, run.error, others.status) == ("completed", "", "suspended")
    other.delete()
    work()
    assert effects() == ["gone", "gone"]


def test_a_deletion_that_came_before_the_wait_registered(clock, declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone())

    @event_workflow("made", name="own waiter")
    class OwnWaiter:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave("heard")
                return complete()
            Reservation.objects.get().delete()
            return wait_for_event("gone")

    Reservation.objects.create()
    work()
    work()
    assert (the_run().status, effects()) == ("completed", ["heard"])


def test_a_deletion_whose_condition_was_false_ends_no_wait_for_ever(declare, work):
    """It can still be said that it does not come any more; the run must not wait for what is gone."""
    declare(Reservation, EventDefinition("made", trigger=CREATE), gone(condition=confirmed))
    own_waiter("gone")
    stay = Reservation.objects.create()
    work()
    stay.delete()
    work()
    assert the_run().status == "cancelled"
    assert "deleted" in the_run().error


def test_a_run_that_waits_for_another_event_of_a_deleted_entity_ends(declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), EventDefinition("updated", trigger=UPDATE), gone())
    own_waiter("updated")
    stay = Reservation.objects.create()
    work()
    stay.delete()
    work()
    assert the_run().status == "cancelled"


# -- namespace ---------------------------------------------------------------------------------------------------------


def test_a_namespace_is_kept_on_the_row(declare):
    declare(
        Reservation,
        EventDefinition("fixed", confirmed, namespace="north"),
        EventDefinition("own", confirmed, namespace=lambda stay: stay.note),
        EventDefinition("none", confirmed, namespace=lambda stay: None),
        EventDefinition("plain", confirmed),
    )
    Reservation.objects.create(note="south")
    assert dict(Event.objects.values_list("event_name", "namespace")) == {
        "fixed": "north",
        "own": "south",
        "none": "",
        "plain": "",
    }


@pytest.fixture
def spaces(declare):
    """``on`` and ``due`` of a reservation are in the namespace that its note names."""
    declare(
        Reservation,
        EventDefinition("on", confirmed, namespace=lambda stay: stay.note),
        EventDefinition("due", date_field="checkin_at", namespace=lambda stay: stay.note),
    )


def test_subscribers_hear_only_their_namespace(spaces, work):
    for namespace in ("north", "south", None):
        on_event("on", namespace=namespace, name=f"on {namespace}")(lambda event, n=namespace: leave(f"on {n}"))
        on_event_created("on", namespace=namespace, name=f"created {namespace}")(
            lambda event, n=namespace: leave(f"created {n}")
        )
        starts("on", f"flow {namespace}", namespace=namespace)
    Reservation.objects.create(status="confirmed", note="north")
    work()
    assert sorted(effects()) == ["created None", "created north", "flow None", "flow north", "on None", "on north"]
    Reservation.objects.create(status="confirmed", note="")
    work()
    assert sorted(effects()[6:]) == ["created None", "flow None", "on None"]


def test_cancellations_are_heard_in_their_namespace(spaces, work):
    for namespace in ("north", "south"):
        on_event_cancelled("on", namespace=namespace, name=namespace)(lambda event, n=namespace: leave(n))
    Reservation.objects.create(note="south").delete()
    work()
    assert effects() == ["south"]


def test_the_namespace_follows_the_entity_while_the_event_is_pending(clock, spaces, work):
    hear("due", namespace="north")
    hear("due", namespace="south", offset=HOUR)
    stay = Reservation.objects.create(note="north", checkin_at=clock() + HOUR)
    change(stay, note="south")
    assert rows("due")[0].namespace == "south"
    pass_by(clock, work, 1)
    change(stay, note="north")
    assert rows("due")[0].namespace == "south"  # it has occurred
    assert pass_by(clock, work, 2) == [f"due {stay.pk}"]


def test_a_namespace_that_changes_behind_djangos_back_is_read_when_it_occurs(clock, spaces, work):
    hear("due", namespace="south")
    stay = Reservation.objects.create(note="north", checkin_at=clock() + HOUR)
    Reservation.objects.update(note="south")
    assert pass_by(clock, work, 2) == [f"due {stay.pk}"]


def planned() -> list[str]:
    return sorted(run.name for run in WorkflowRun.objects.exclude(status="withdrawn"))


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_planned_runs_follow_the_namespace(clock, spaces, work, offset):
    starts("due", "north", namespace="north", offset=offset)
    starts("due", "south", namespace="south", offset=offset)
    stay = Reservation.objects.create(note="north", checkin_at=clock() + 3 * HOUR)
    assert [run.name for run in WorkflowRun.objects.all()] == ["north"]
    change(stay, note="south")
    assert planned() == ["south"]
    assert pass_by(clock, work, 5) == ["south"]


def waits_in(name: str, workflow_name: str = "waiter", **options) -> WorkflowRun:
    @workflow(workflow_name)
    class Waiter:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(f"{workflow_name} {get_wake().payload['entity_id']}")
                return complete()
            return wait_for_event(name, **options)

    return engine.start(workflow_name)


@pytest.mark.parametrize("match", [{}, {"status": "confirmed"}, {"status__in": ["confirmed"]}])
def test_waits_hear_only_their_namespace(spaces, work, match):
    for namespace in ("north", "south", None):
        waits_in("on", f"in {namespace}", match=match, namespace=namespace)
    work()
    stay = Reservation.objects.create(status="confirmed", note="north")
    work()
    assert sorted(effects()) == [f"in None {stay.pk}", f"in north {stay.pk}"]


@pytest.mark.parametrize("match", [{}, {"status": "confirmed"}, {"status__in": ["confirmed"]}])
def test_waits_that_look_back_see_only_their_namespace(spaces, work, match):
    @workflow("late")
    class Late:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["entity_id"])
                return complete()
            if not Reservation.objects.exists():
                for note in ("south", "north", "north"):
                    Reservation.objects.create(status="confirmed", note=note)
            return wait_for_event("on", match=match, namespace="north")

    engine.start("late")
    work()
    work()
    assert effects() == [str(Reservation.objects.filter(note="north").first().pk)]


@pytest.mark.parametrize("namespace", ["north", lambda stay: stay.note])
def test_a_wait_in_a_namespace_ends_with_its_own_entity(declare, work, namespace):
    declare(Reservation, EventDefinition("made", trigger=CREATE), EventDefinition("on", confirmed, namespace=namespace))
    own_waiter("on", namespace="north")
    stay = Reservation.objects.create(note="north")
    work()
    assert the_run().status == "suspended"
    stay.delete()
    work()
    assert the_run().status == "cancelled"


def test_a_wait_in_a_namespace_for_its_own_entity(spaces, declare, work):
    declare(Reservation, EventDefinition("made", trigger=CREATE), *Reservation.events)
    own_waiter("on", namespace="north")
    south, north = (Reservation.objects.create(note=note) for note in ("south", "north"))
    work()
    for stay in (south, north):
        change(stay, status="confirmed")
    work()
    assert [run.status for run in WorkflowRun.objects.order_by("pk")] == ["suspended", "completed"]


@pytest.mark.parametrize(
    ("namespace", "named", "status"),
    [
        (lambda stay: 1 / 0, "ZeroDivisionError", "pending"),
        (lambda stay: "x" * 101, "100", "parked"),
        (lambda stay: 5, "returned 5", "parked"),
    ],
)
def test_a_namespace_function_that_fails_sets_the_event_aside_and_not_the_save(declare, namespace, named, status):
    declare(Reservation, EventDefinition("on", confirmed, namespace=namespace))
    stay = Reservation.objects.create(status="confirmed")
    (row,) = rows("on")
    assert (row.status, named in row.error) == (status, True)
    assert Reservation.objects.filter(pk=stay.pk).exists()
    assert rows("on")[0].namespace == ""


def test_a_namespace_function_that_is_mended(declare, work):
    trouble = [True]

    def namespace(stay):
        if trouble:
            raise RuntimeError
        return "north"

    declare(Reservation, EventDefinition("on", confirmed, namespace=namespace))
    Reservation.objects.create(status="confirmed")
    trouble.clear()
    (row,) = rows("on")
    work(row.wake_at)
    (row,) = rows("on")
    assert (row.status, row.namespace) == ("processed", "north")


def test_a_deletion_has_its_namespace(declare, work):
    declare(Reservation, gone(namespace=lambda stay: stay.note))
    hear("gone", namespace="north")
    Reservation.objects.create(note="south").delete()
    Reservation.objects.create(note="north").delete()
    work()
    assert len(effects()) == 1
    assert [row.namespace for row in rows("gone")] == ["south", "north"]


def test_each_update_has_the_namespace_of_its_moment(declare):
    declare(Reservation, EventDefinition("updated", trigger=UPDATE, namespace=lambda stay: stay.note))
    stay = Reservation.objects.create()
    for note in ("north", "south"):
        change(stay, note=note)
    assert [row.namespace for row in rows("updated")] == ["north", "south"]


# -- templated names ---------------------------------------------------------------------------------------------------

DONE = "task_done:{{ instance.pk }}"


@pytest.fixture
def tasks(declare):
    declare(Chore, EventDefinition(DONE, lambda task: task.done))


def test_rows_carry_rendered_names(tasks):
    one, two = Chore.objects.create(done=True), Chore.objects.create()
    assert [(row.event_name, row.status) for row in rows(DONE)] == [
        (f"task_done:{one.pk}", "processed"),
        (f"task_done:{two.pk}", "pending"),
    ]


def test_a_subscriber_names_one_a_pattern_or_the_template(tasks, work):
    one, two = Chore.objects.create(), Chore.objects.create()
    for pattern in (f"task_done:{one.pk}", "task_done:*", DONE, "*", "*done*", "task_done:{{ instance.other }}", "x*"):
        on_event(pattern, name=pattern)(lambda event, p=pattern: leave(f"{p} {event.entity_id}"))
    change(one, done=True)
    work()
    everybody = {"task_done:*", DONE, "*", "*done*", "task_done:{{ instance.other }}"}
    assert set(effects()) == {f"{pattern} {one.pk}" for pattern in {*everybody, f"task_done:{one.pk}"}}
    change(two, done=True)
    work()
    assert set(effects()[6:]) == {f"{pattern} {two.pk}" for pattern in everybody}


def test_workflows_on_a_pattern_and_a_template(tasks, work):
    one = Chore.objects.create()
    starts(f"task_done:{one.pk}", "exact")
    starts("task_done:*", "pattern")
    starts(DONE, "template")
    starts("*", "all")
    change(one, done=True)
    Chore.objects.create(done=True)
    work()
    assert sorted(effects()) == ["all", "all", "exact", "pattern", "pattern", "template", "template"]


def test_offsets_of_a_pattern(clock, tasks, work):
    hear("task_done:*", offset=HOUR)
    starts(DONE, "flow", offset=HOUR)
    chore = Chore.objects.create(done=True)
    assert sorted(pass_by(clock, work, 1)) == ["flow", f"task_done:{chore.pk} {chore.pk}"]


def test_percent_underscore_and_dots_are_text(declare, work):
    declare(Room, EventDefinition("a.b_%:{{ instance.number }}", lambda room: room.is_clean))
    hear("a.b_%:*")
    hear("aXb_%:*")
    hear("a.b_%:(x*")
    Room.objects.create(number="(x", is_clean=True)
    work()
    assert effects() == ["a.b_%:(x (x"] * 2


def test_a_name_with_a_line_break_is_meant_by_a_pattern_too(declare, work):
    declare(Room, EventDefinition("cleaned:{{ instance.number }}", lambda room: room.is_clean))
    hear("cleaned:*")
    Room.objects.create(number="1\n2", is_clean=True)
    work()
    assert effects() == ["cleaned:1\n2 1\n2"]


def test_a_value_that_looks_like_a_pattern_or_a_template_is_only_a_value(declare, work):
    declare(Room, EventDefinition("cleaned:{{ instance.number }}", lambda room: room.is_clean))
    hear("cleaned:7")
    for number in ("*", "{{ instance.pk }}"):
        Room.objects.create(number=number, is_clean=True)
    work()
    assert effects() == []
    assert [row.event_name for row in rows("cleaned:{{ instance.number }}")] == [
        "cleaned:*",
        "cleaned:{{ instance.pk }}",
    ]


def test_a_name_of_a_relation(declare, work):
    declare(Document, EventDefinition("uploaded:{{ instance.reservation.guest.name }}"))
    hear("uploaded:O'Brien")
    guest = Guest.objects.create(name="O'Brien")
    document = Document.objects.create(reservation=Reservation.objects.create(guest=guest))
    work()
    assert effects() == [f"uploaded:O'Brien {document.pk}"]


def test_a_relation_that_is_empty_parks_the_event_and_not_the_save(declare, work):
    declare(Document, EventDefinition("uploaded:{{ instance.reservation.guest.name }}"))
    Document.objects.create(reservation=Reservation.objects.create())
    (row,) = Event.objects.filter(entity_type="app.document")
    use_up_attempts(row, work)
    assert (row.status, "AttributeError" in row.error) == ("parked", True)
    assert row.event_name == "uploaded:{{ instance.reservation.guest.name }}"


def test_a_name_that_gets_too_long_parks_the_event_and_not_the_save(declare):
    declare(Reservation, EventDefinition("x" * 150 + "{{ instance.note }}", confirmed))
    Reservation.objects.create(note="y" * 51)
    row = Event.objects.get()
    assert (row.status, "longer than 200" in row.error) == ("parked", True)
    Event.objects.all().delete()
    Reservation.objects.create(note="y" * 50)
    assert Event.objects.get().status == "pending"


def test_a_name_follows_the_entity_while_the_event_is_pending(clock, declare, work):
    declare(Reservation, EventDefinition("due:{{ instance.note }}", date_field="checkin_at"))
    hear("due:a")
    hear("due:b")
    stay = Reservation.objects.create(note="a", checkin_at=clock() + HOUR)
    change(stay, note="b")
    assert [row.event_name for row in rows("due:{{ instance.note }}")] == ["due:b"]
    assert pass_by(clock, work, 1) == [f"due:b {stay.pk}"]
    change(stay, note="a")
    assert [row.event_name for row in rows("due:{{ instance.note }}")] == ["due:b"]


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_planned_runs_follow_the_name(clock, declare, work, offset):
    declare(Reservation, EventDefinition("due:{{ instance.note }}", date_field="checkin_at"))
    starts("due:a", "a", offset=offset)
    starts("due:b", "b", offset=offset)
    starts("due:*", "all", offset=offset)
    stay = Reservation.objects.create(note="a", checkin_at=clock() + 3 * HOUR)
    change(stay, note="b")
    assert planned() == ["all", "b"]
    assert sorted(pass_by(clock, work, 5)) == ["all", "b"]


def test_a_new_name_brings_its_subscribers_offsets(clock, declare, work):
    declare(Reservation, EventDefinition("due:{{ instance.note }}", date_field="checkin_at"))
    hear("due:b", offset=-2 * HOUR)
    stay = Reservation.objects.create(note="a", checkin_at=clock() + 3 * HOUR)
    change(stay, note="b")
    assert pass_by(clock, work, 1) == [f"due:b {stay.pk}"]


def test_a_templated_name_with_update_and_delete(declare):
    name = "note:{{ instance.note }}"
    declare(Reservation, EventDefinition(name, trigger=[UPDATE, DELETE]))
    stay = Reservation.objects.create()
    for note in ("a", "b"):
        stay = change(stay, note=note)
    stay.delete()
    assert [(row.event_name, row.trigger) for row in rows(name)] == [
        ("note:a", "update"),
        ("note:b", "update"),
        ("note:b", "delete"),
    ]


def task_waiter(name: str = "task_done:{{ ctx.task_id }}", **options) -> None:
    @workflow("task waiter")
    class TaskWaiter:
        class Context(BaseModel):
            task_id: int = 0
            wanted: str = ""

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(f"{self.context.task_id} {get_wake().payload['event_name']}")
                return complete()
            return wait_for_event(name, **options)


def test_a_wait_names_one_task(tasks, work):
    task_waiter()
    one, two = Chore.objects.create(), Chore.objects.create()
    runs = [engine.start("task waiter", task_id=task.pk) for task in (one, two)]
    work()
    change(two, done=True)
    work()
    for run in runs:
        run.refresh_from_db()
    assert [run.status for run in runs] == ["suspended", "completed"]
    assert effects() == [f"{two.pk} task_done:{two.pk}"]


def test_a_wait_for_a_task_that_was_done_before_it_registered(tasks, work):
    @workflow("task waiter")
    class TaskWaiter:
        class Context(BaseModel):
            task_id: int

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                return complete()
            for task in Chore.objects.order_by("-pk"):
                change(task, done=task.pk == self.context.task_id or task.done)
            return wait_for_event("task_done:{{ ctx.task_id }}")

    one, two = Chore.objects.create(), Chore.objects.create()
    runs = []
    for task in (one, two):
        runs.append(engine.start("task waiter", task_id=task.pk))
        work()
        work()
        runs[-1].refresh_from_db()
    assert [run.status for run in runs] == ["completed", "completed"]


@pytest.mark.parametrize("match", [{"done": True}, {"pk": "{{ ctx.task_id }}"}, {"pk__in": [1, 2, 3], "done": True}])
@pytest.mark.parametrize("before", [True, False])
def test_a_name_and_a_match_together(declare, work, match, before):
    declare(Chore, EventDefinition("saved:{{ instance.pk }}", trigger=UPDATE))
    Chore.objects.bulk_create([Chore(pk=pk) for pk in (1, 2)])

    @workflow("both")
    class Both:
        class Context(BaseModel):
            task_id: int = 2

        @step(start=True)
        def first(self):
            if get_wake().reason == "event":
                leave(get_wake().payload["event_name"])
                return complete()
            if before:
                for pk in (1, 2):
                    Chore(pk=pk, done=True).save()
            return wait_for_event("saved:{{ ctx.task_id }}", match=match)

    run = engine.start("both")
    work()
    if not before:
        for pk in (1, 2):
            Chore(pk=pk, done=True).save()
    work()
    run.refresh_from_db()
    assert (run.status, effects()) == ("completed", ["saved:2"])


def test_a_name_with_a_match_that_does_not_fit(tasks, work):
    task_waiter(match={"done": False})
    chore = Chore.objects.create()
    run = engine.start("task waiter", task_id=chore.pk)
    work()
    change(chore, done=True)
    work()
    run.refresh_from_db()
    assert run.status == "suspended"


def test_a_wait_on_a_templated_event_with_a_timeout(clock, tasks, work):
    @workflow("patient")
    class Patient:
        class Context(BaseModel):
            task_id: int

        @step(start=True)
        def first(self):
            return wait_for_event("task_done:{{ ctx.task_id }}", timeout=HOUR, on_timeout=self.late)

        @step()
        def late(self):
            leave("late")
            return complete()

    engine.start("patient", task_id=Chore.objects.create().pk)
    work()
    clock.tick(HOUR)
    work()
    assert effects() == ["late"]


def test_a_wait_whose_name_gets_too_long_fails_the_run(tasks, work):
    task_waiter("task_done:{{ ctx.wanted }}")
    engine.start("task waiter", wanted="x" * 250)
    work()
    assert the_run().status == "failed"
    assert "of 260 characters" in the_run().error


def test_a_wait_whose_context_lacks_the_field_fails_the_run(tasks, work):
    task_waiter("task_done:{{ ctx.nothing }}")
    engine.start("task waiter")
    work()
    assert the_run().status == "failed"
    assert "'nothing'" in the_run().error


def test_a_value_of_the_context_with_a_star_waits_for_just_that_name(declare, work):
    declare(Room, EventDefinition("cleaned:{{ instance.number }}", lambda room: room.is_clean))
    task_waiter("cleaned:{{ ctx.wanted }}")
    run = engine.start("task waiter", wanted="*")
    work()
    Room.objects.create(number="7", is_clean=True)
    work()
    run.refresh_from_db()
    assert run.status == "suspended"
    Room.objects.create(number="*", is_clean=True)
    work()
    run.refresh_from_db()
    assert run.status == "completed"


# -- "*" ---------------------------------------------------------------------------------------------------------------


def test_a_subscriber_to_everything(work):
    hear("*")
    stay = Reservation.objects.create(status="confirmed")
    document = Document.objects.create(reservation=stay)
    Errand.objects.create(done=True)
    work()
    assert sorted(effects()) == sorted(
        [
            f"reservation_confirmed {stay.pk}",
            f"document_uploaded {document.pk}",
            f"task_done {Errand.objects.get().pk}",
        ]
    )


def test_a_prefix(work):
    hear("ticket_*")
    starts("ticket_*")
    Reservation.objects.create(status="confirmed")
    ticket = Ticket.objects.create(open=False)
    work()
    assert sorted(effects()) == ["started", f"ticket_closed {ticket.pk}"]


def test_everything_that_is_created_and_cancelled(work):
    on_event_created("*", name="created")(lambda event: leave(f"created {event.event_name}"))
    on_event_cancelled("*", name="cancelled")(lambda event: leave(f"cancelled {event.event_name}"))
    chore = Chore.objects.create()
    work()
    chore.delete()
    work()
    assert effects() == ["created task_done", "cancelled task_done"]


def test_a_function_that_hears_an_event_by_two_names_is_called_for_each(work):
    @on_event("task_done", name="by name")
    @on_event("*", name="by star")
    def heard(event):
        leave("heard")

    Chore.objects.create(done=True)
    work()
    assert effects() == ["heard"] * 2


def test_a_subscriber_to_everything_that_saves_is_a_storm(work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 5}

    @on_event("*")
    def echo(event):
        Chore.objects.create(done=True)

    Chore.objects.create(done=True)
    for _ in range(12):
        work()
    found = Event.objects.order_by("pk")
    assert [row.status for row in found] == ["processed"] * 6 + ["parked"]
    assert "EventStormError" in found[6].error
    assert "MAX_DEPTH" in found[6].error


def test_a_workflow_on_everything_that_saves_is_a_storm(work, settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_DEPTH": 6}

    @event_workflow("*", name="echo")
    class Echo:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            Chore.objects.create(done=True)
            return complete()

    Chore.objects.create(done=True)
    for _ in range(12):
        work()
    statuses = list(Event.objects.order_by("pk").values_list("status", flat=True))
    assert statuses[-1] == "parked"
    assert statuses.count("parked") == 1


def test_signals_are_no_events(work):
    hear("*")
    engine.signal("anything")
    work()
    assert effects() == []


# -- the payload -------------------------------------------------------------------------------------------------------


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
