"""Transitions: an event occurs each time that a committed transaction changes an entity from one state to another."""

from __future__ import annotations

import unittest

import pytest
from django.db import transaction
from django.test import TestCase

from django_ai.automation import register_events
from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.commit_batch import CommitBatch
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.testing import time_machine
from tests.apps.reservations.models import Guest
from tests.support.event_options import Bill, hear, occurred, rows
from tests.support.rows import change, effects, leave, use_up_attempts

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


# -- what occurs -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_a_transition_occurs_each_time(work):
    hear("published")
    bill = Bill.objects.create(title="draft")
    assert rows("published") == []
    for title in ("published", "published", "draft", "review", "published", "draft", "published"):
        change(bill, title=title)
    work()
    assert effects() == [f"published {bill.pk}"] * 2
    assert changes() == ONCE * 2
    assert [(row.trigger, row.active_key is not None) for row in rows("published")] == [
        ("update", False),
        ("update", True),
    ]


def test_becomes_alone_counts_creations_too(declare):
    declare(Bill, EventDefinition("published", becomes=PUBLISHED))
    bill = Bill.objects.create(title="published")
    change(bill, number=1)
    change(bill, title="other")
    change(bill, title="published")
    assert changes() == [{"title": (None, "published")}, {"title": ("other", "published")}]
    assert [row.trigger for row in rows("published")] == ["create", "update"]


def test_becomes_with_trigger_update_leaves_creations_out(declare):
    declare(Bill, EventDefinition("published", becomes=PUBLISHED, trigger=UPDATE))
    with transaction.atomic():
        change(Bill.objects.create(title="draft"), title="published")
    change(Bill.objects.create(title="published"), number=1)
    assert rows("published") == []


def test_was_alone_is_left_by_any_change(declare):
    declare(Bill, EventDefinition("sent", was=DRAFT))
    bill = Bill.objects.create(title="draft")
    change(bill, number=1)
    change(bill, title="a")
    change(bill, title="b")
    change(bill, title="draft").delete()
    assert changes("sent") == [{"title": ("draft", "a")}]


def test_was_alone_with_trigger_delete_is_a_deletion_in_that_state(declare, work):
    lost = EventDefinition("lost", was={"paid": False}, trigger=DELETE, payload=lambda event: {"seen": event.changes})
    declare(Bill, lost)
    seen = []
    on_event("lost")(lambda event: seen.append((event.entity.title, event.entity.pk, event.changes)))
    bill, paid = Bill.objects.create(title="a"), Bill.objects.create(title="b", paid=True)
    with transaction.atomic():
        Bill.objects.create(title="c").delete()  # was nothing before this transaction
    with transaction.atomic():
        change(paid, paid=False).delete()  # was paid before this transaction
    pk = bill.pk
    Bill.objects.only("number").get(pk=pk).delete()
    work()
    assert seen == [("a", pk, {"paid": (False, None)})]
    (row,) = rows("lost")
    assert (row.trigger, row.payload["changes"]) == ("delete", {"paid": [False, None]})
    assert row.payload["seen"] == {"paid": [False, None]}


def test_the_condition_is_evaluated_too_and_again_at_the_commit(declare):
    declare(Bill, EventDefinition("published", lambda bill: bill.paid, was=DRAFT, becomes=PUBLISHED))
    bill = Bill.objects.create(title="draft")
    change(bill, title="published")
    change(bill, title="draft", paid=True)
    assert rows("published") == []
    with transaction.atomic():
        change(bill, title="published")
        Bill.objects.update(paid=False)
    assert occurred("published") == 0
    change(bill, title="draft")
    change(bill, title="published", paid=True)
    assert occurred("published") == 1


def test_a_later_transaction_does_not_take_a_transition_back(declare, monkeypatch, work):
    """What has been committed has happened, even if a worker performs it only after the next change."""
    declare(Bill, EventDefinition("published", was=DRAFT, becomes=PUBLISHED))
    bill = Bill.objects.create(title="draft")
    with monkeypatch.context() as patch:
        patch.setattr(CommitBatch, "__call__", lambda self: None)
        for title in ("published", "draft", "published", "other"):
            change(bill, title=title)
    assert [row.status for row in rows("published")] == ["pending"] * 2
    work(max(row.wake_at for row in rows("published")))
    assert changes() == ONCE * 2


# -- what it was before the transaction --------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_what_an_instance_was_loaded_with_does_not_count():
    bill = Bill.objects.create(title="draft")
    stale = Bill.objects.get(pk=bill.pk)
    change(bill, title="published")
    stale.title = "published"
    stale.save()
    assert changes() == ONCE
    made_by_hand = Bill(pk=bill.pk, title="draft")
    made_by_hand.save()
    Bill(pk=bill.pk, title="published", details={}).save()
    assert changes() == ONCE * 2
    Bill.objects.update(title="draft")
    stale.save()  # holds "published" since long
    assert changes() == ONCE * 3


@pytest.mark.usefixtures("published")
def test_saves_of_a_transaction_are_one_write():
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        for title in ("review", "published", "proof", "published"):
            change(bill, title=title)
    assert changes() == ONCE
    with transaction.atomic():
        change(bill, title="draft")
        change(bill, title="published")
    assert changes() == ONCE


@pytest.mark.usefixtures("published")
def test_a_transition_that_is_taken_back_in_its_transaction_does_not_occur(work):
    for decorator in (on_event, on_event_created, on_event_cancelled):
        decorator("published", name=decorator.__name__)(lambda event: leave(event.event_name))
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        change(bill, title="published")
        change(bill, title="draft")
    work()
    assert effects() == []
    (row,) = rows("published")
    assert (row.status, row.armed, row.wake_at) == ("pending", False, None)
    assert row.waits_for(row.event_created_at) == "a save that makes its transition"
    with transaction.atomic():
        change(bill, title="published")
        change(bill, title="draft")
        change(bill, title="published")
    work()
    assert effects() == ["published", "published"]  # created, occurred
    assert changes() == ONCE
    assert len(rows("published")) == 1


@pytest.mark.parametrize("end", ["delete", "cancel"])
@pytest.mark.usefixtures("published")
def test_a_transition_that_was_taken_back_is_not_cancelled_later(end, work):
    on_event_cancelled("published")(lambda event: leave(f"cancelled {event.changes}"))
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        change(bill, title="published")
        change(bill, title="draft")
    (row,) = rows("published")
    assert row.cancel() if end == "cancel" else bill.delete()
    work()
    assert effects() == []


@pytest.mark.parametrize("end", ["delete", "cancel"])
@pytest.mark.usefixtures("published")
def test_a_transition_that_was_made_again_is_cancelled(end, monkeypatch, work):
    on_event_cancelled("published")(lambda event: leave("cancelled"))
    monkeypatch.setattr(CommitBatch, "__call__", lambda self: None)
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        change(bill, title="published")
        change(bill, title="draft")
        change(bill, title="published")
    (row,) = rows("published")
    assert row.cancel() if end == "cancel" else bill.delete()
    work()
    assert effects() == ["cancelled"]


@pytest.mark.usefixtures("published")
def test_a_save_of_other_fields_takes_nothing_back():
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        change(bill, title="published")
        again = Bill.objects.get(pk=bill.pk)
        again.number = 5
        again.save()
        again.title = "stale and not saved"
        again.save(update_fields=["number"])
    assert changes() == ONCE


@pytest.mark.parametrize("titles", [["draft", "published"], ["published"], ["published", "draft", "published"]])
def test_what_the_transaction_has_inserted_is_created(declare, titles):
    declare(
        Bill,
        EventDefinition("published", was=DRAFT, becomes=PUBLISHED),
        EventDefinition("became", becomes=PUBLISHED),
        EventDefinition("sent", was=DRAFT),
    )
    with transaction.atomic():
        bill = Bill.objects.create(title=titles[0])
        for title in titles[1:]:
            change(bill, title=title)
    assert (rows("published"), rows("sent")) == ([], [])
    assert changes("became") == [{"title": (None, "published")}]
    assert [row.trigger for row in rows("became")] == ["create"]


def test_a_creation_that_is_taken_back_before_the_commit(declare):
    declare(Bill, EventDefinition("became", becomes=PUBLISHED))
    with transaction.atomic():
        bill = Bill.objects.create(title="published")
        change(bill, title="draft")
    assert occurred("became") == 0
    change(bill, title="published")
    assert changes("became") == [{"title": ("draft", "published")}]


@pytest.mark.usefixtures("published")
def test_a_key_that_is_used_again_in_one_transaction_is_another_entity(declare):
    bill = Bill.objects.create(title="draft")
    pk = bill.pk
    with transaction.atomic():
        bill.delete()
        Bill.objects.create(pk=pk, title="published")
    assert rows("published") == []
    with transaction.atomic():
        Bill.objects.get(pk=pk).delete()
        again = Bill(pk=pk, title="draft")
        again.save()
        change(again, title="published")
    assert rows("published") == []


# -- rollbacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_a_transaction_that_is_rolled_back_leaves_nothing():
    bill = Bill.objects.create(title="draft")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        change(bill, title="review")
        change(bill, title="published")
        raise ZeroDivisionError
    assert rows("published") == []
    change(bill, title="published")
    assert changes() == ONCE


def saved_and_rolled_back(bill, *titles):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        for title in titles:
            change(bill, title=title)
        raise ZeroDivisionError


@pytest.mark.usefixtures("published")
def test_a_savepoint_that_is_rolled_back_did_not_happen():
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        saved_and_rolled_back(bill, "published")
    assert rows("published") == []
    with transaction.atomic():
        saved_and_rolled_back(bill, "other")
        change(bill, title="published")
    assert changes() == ONCE
    with transaction.atomic():
        change(bill, title="draft")
        saved_and_rolled_back(bill, "published", "other")
    assert changes() == ONCE
    with transaction.atomic():
        change(bill, title="review")
        with transaction.atomic():
            change(bill, title="published")
        saved_and_rolled_back(bill, "draft")
    assert changes() == ONCE * 2


@pytest.mark.usefixtures("published")
def test_what_was_read_before_a_savepoint_outlives_its_rollback():
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        change(bill, title="review")
        saved_and_rolled_back(bill, "other")
        change(bill, title="published")
    assert changes() == ONCE


@pytest.mark.usefixtures("published")
def test_a_released_savepoint_inside_one_that_is_rolled_back():
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            with transaction.atomic():
                change(bill, title="published")
            raise ZeroDivisionError
        Bill.objects.update(title="review")  # nobody was told; the savepoint may have given up its lock as well
        change(bill, title="published")
    assert rows("published") == []


@pytest.mark.usefixtures("published")
def test_a_deletion_in_a_savepoint_that_is_rolled_back():
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        change(bill, title="review")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Bill.objects.get(pk=bill.pk).delete()
            Bill.objects.create(pk=bill.pk, title="draft")
            raise ZeroDivisionError
        change(bill, title="published")
    assert changes() == ONCE


@pytest.mark.usefixtures("published")
def test_a_decorated_function_is_a_transaction_each_time():
    bill = Bill.objects.create(title="other")

    @transaction.atomic
    def save(title):
        change(bill, title=title)

    for title in ("draft", "published", "draft", "published"):
        save(title)
    assert changes() == ONCE * 2


@pytest.mark.usefixtures("published")
def test_saves_in_a_commit_hook_belong_to_another_transaction():
    bill = Bill.objects.create(title="draft")
    with transaction.atomic():
        transaction.on_commit(lambda: change(bill, title="draft"))
        transaction.on_commit(lambda: change(bill, title="published"))
        change(bill, title="published")
    assert changes() == ONCE * 2


@pytest.mark.usefixtures("published")
def test_transactions_without_autocommit():
    bill = Bill.objects.create(title="other")
    transaction.set_autocommit(False)
    try:
        for title in ("draft", "published", "draft"):
            change(bill, title=title)
            transaction.commit()
        with transaction.atomic():
            change(bill, title="review")
            change(bill, title="published")
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert len(rows("published")) == 2
    assert {str(row.changes) for row in rows("published")} == {str(ONCE[0])}


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("title", "expected"), [("published", 1), ("draft", 0)])
def test_a_function_that_raises_is_called_again_with_the_same_values(declare, work, title, expected):
    broken = [True, True]

    def is_published(value):
        if value == title and broken:
            broken.pop()
            raise RuntimeError("not now")
        return value == "published"

    declare(Bill, EventDefinition("published", becomes={"title": is_published}, trigger=UPDATE))
    bill = Bill.objects.create(title="x")
    change(bill, title=title)
    (row,) = rows("published")
    assert (row.status, row.attempt, "not now" in row.error) == ("pending", 1, True)
    Bill.objects.update(title="something else")  # what it has become since does not matter
    for _ in range(5):
        (row,) = rows("published")
        if row.wake_at is not None:
            work(row.wake_at)
    assert occurred("published") == expected
    assert broken == []
    if expected:
        assert changes() == [{"title": ("x", "published")}]


def test_a_function_that_always_raises_parks_the_event_and_saves_the_entity(declare, work):
    declare(Bill, EventDefinition("published", becomes={"title": lambda value: 1 / 0}, trigger=UPDATE))
    bill = change(Bill.objects.create(title="draft"), title="published")
    (row,) = rows("published")
    use_up_attempts(row, work)
    (row,) = rows("published")
    assert (row.status, "ZeroDivisionError" in row.error) == ("parked", True)
    assert Bill.objects.get(pk=bill.pk).title == "published"
    bill.title = "draft"
    bill.save(update_fields=["title"])
    assert len(rows("published")) == 2


def test_a_condition_that_raises_delays_the_transition(declare, work):
    declare(Bill, EventDefinition("published", lambda bill: 1 / bill.number > 0, was=DRAFT, becomes=PUBLISHED))
    bill = Bill.objects.create(title="draft")
    change(bill, title="published")
    (row,) = rows("published")
    Bill.objects.update(number=1, title="later")
    work(row.wake_at)
    assert changes() == ONCE


# -- tests of a project ------------------------------------------------------------------------------------------------


def test_in_a_test_case_the_blocks_of_the_test_are_transactions():
    """A ``TestCase`` never commits; each outermost block of the test counts as a transaction."""
    register_events(Guest, EventDefinition("published", was={"name": "draft"}, becomes={"name": "published"}))

    class InOneTransaction(TestCase):
        def test_transitions(self) -> None:
            with time_machine("2030-01-07T12:00+00:00", raise_errors=True) as machine:
                guest = Guest.objects.create(name="draft")

                @transaction.atomic
                def rename(*names: str) -> None:
                    for name in names:
                        guest.name = name
                        guest.save()

                rename("published")
                rename("draft")
                rename("published")
                rename("draft")
                rename("review", "published", "draft")
                with transaction.atomic():
                    rename("review")
                    rename("published")
                machine.process()
                machine.assert_occurred("published", guest, times=3)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(InOneTransaction).run(result)
    assert [text for _, text in [*result.errors, *result.failures]] == []
    assert result.testsRun == 1


@pytest.mark.django_db(transaction=False)
def test_without_blocks_each_save_of_a_test_case_is_a_transaction(declare):
    declare(Bill, EventDefinition("published", was=DRAFT, becomes=PUBLISHED))
    with time_machine("2030-01-07T12:00+00:00", raise_errors=True) as machine:
        bill = Bill.objects.create(title="draft")
        for title in ("published", "draft", "published"):
            change(bill, title=title)
        machine.process()
        machine.assert_occurred("published", bill, times=2)
