"""Repeated events, saved by several processes at once: each relevant write causes exactly one occurrence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.commit_batch import CommitBatch
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.queues.drain import drain
from tests.apps.reservations.models import Document, Reservation, Room
from tests.support.marks import not_on
from tests.support.race import Behind, OtherThread, together
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def rows(name: str) -> list[Event]:
    return list(Event.objects.filter(declared_as=name).order_by("pk"))


def statuses(name: str) -> list[str]:
    return [row.status for row in rows(name)]


def change(stay: Reservation, **values: object) -> None:
    mine = Reservation.objects.get(pk=stay.pk)
    for name, value in values.items():
        setattr(mine, name, value)
    mine.save()


@pytest.fixture
def held_back(monkeypatch) -> Iterator[Callable[..., Callable[[], None]]]:
    """``finish = held_back(work)``: simulate another process that runs ``work`` and stops after its commit.

    ``finish()`` runs the processing that follows the commit.
    """
    go, committed = threading.Event(), threading.Event()
    perform = CommitBatch.__call__
    threads = []
    raised: list[BaseException] = []

    def start(work: Callable[[], object]) -> Callable[[], None]:
        def other() -> None:
            try:
                work()
            except BaseException as error:
                raised.append(error)
            finally:
                committed.set()
                connections.close_all()

        thread = threading.Thread(target=other)
        threads.append(thread)

        def call(self: CommitBatch) -> None:
            if threading.current_thread() is thread:
                committed.set()
                assert go.wait(30)
            perform(self)

        monkeypatch.setattr(CommitBatch, "__call__", call)
        thread.start()
        assert committed.wait(30)

        def finish() -> None:
            go.set()
            thread.join(30)
            assert raised == []

        return finish

    yield start
    go.set()
    for thread in threads:
        thread.join(30)


def test_two_updates_whose_commits_are_not_performed_yet_both_occur(declare, held_back):
    declare(
        Reservation, EventDefinition("updated", trigger=EventTrigger.UPDATE, payload=lambda stay: {"note": stay.note})
    )
    on_event("updated", name="heard")(lambda event: leave(event.pk))
    stay = Reservation.objects.create()
    finish = held_back(lambda: change(stay, note="one"))
    assert statuses("updated") == ["pending"]
    change(stay, note="two")
    assert statuses("updated") == ["pending", "processed"]
    finish()
    found = rows("updated")
    assert [row.status for row in found] == ["processed", "processed"]
    assert [row.active_key is not None for row in found] == [False, True]
    drain()
    assert sorted(effects()) == sorted(str(row.pk) for row in found)


def test_a_process_that_dies_between_commit_and_occurrence_loses_no_update(declare, monkeypatch):
    declare(Reservation, EventDefinition("updated", trigger=EventTrigger.UPDATE))
    stay = Reservation.objects.create()
    with monkeypatch.context() as patch:
        patch.setattr(CommitBatch, "__call__", lambda self: None)
        for note in ("one", "two"):
            assert together(lambda note=note: change(stay, note=note)) == []
    assert statuses("updated") == ["pending", "pending"]
    drain(max(row.wake_at for row in rows("updated")) + timedelta(seconds=1))
    assert statuses("updated") == ["processed", "processed"]


def test_two_watched_changes_whose_commits_are_not_performed_yet_both_occur(declare, held_back):
    declare(Reservation, EventDefinition("changed", watch_fields=["status"]))
    stay = Reservation.objects.create()
    finish = held_back(lambda: change(stay, status="confirmed"))
    change(stay, status="cancelled")
    finish()
    assert statuses("changed") == ["processed", "processed"]


def test_an_update_that_makes_the_condition_false_before_the_other_is_performed(declare, held_back):
    declare(Reservation, EventDefinition("updated", lambda stay: stay.status == "confirmed", trigger="update"))
    stay = Reservation.objects.create()
    finish = held_back(lambda: change(stay, status="confirmed"))
    change(stay, status="pending")
    finish()
    assert "processed" not in statuses("updated")
    change(stay, status="confirmed")
    assert statuses("updated").count("processed") == 1


def test_a_creation_whose_commit_is_not_performed_yet_and_an_update(declare, held_back):
    declare(Room, EventDefinition("written", trigger=["create", "update"]))
    finish = held_back(lambda: Room.objects.create(number="7"))
    Room.objects.get(number="7").save()
    finish()
    assert sorted((row.trigger, row.status) for row in rows("written")) == [
        ("create", "processed"),
        ("update", "processed"),
    ]


def test_a_deletion_while_an_update_is_not_performed_yet(declare, held_back):
    """The deletion occurs. The update, committed before it, occurs or is cancelled."""
    declare(Reservation, EventDefinition("written", trigger=["update", "delete"]))
    stay = Reservation.objects.create()
    finish = held_back(lambda: change(stay, note="one"))
    Reservation.objects.get(pk=stay.pk).delete()
    finish()
    found = {row.trigger: row.status for row in rows("written")}
    assert found["delete"] == "processed"
    assert found["update"] in ("cancelled", "processed")
    assert len(rows("written")) == 2


def test_updates_from_many_threads_all_occur(declare):
    declare(Reservation, EventDefinition("updated", trigger="update"))
    stay = Reservation.objects.create()

    def save() -> None:
        for note in "abc":
            change(stay, note=note)

    assert together(save, save, save, save) == []
    drain()
    assert statuses("updated") == ["processed"] * 12
    assert Event.objects.filter(declared_as="updated", active_key__isnull=False).count() == 1


def test_first_updates_from_many_threads_all_occur(declare):
    """No row exists yet, and a thread whose insert violates the unique key adds a row of its own."""
    declare(Reservation, EventDefinition("updated", trigger="update"))
    stay = Reservation.objects.create()
    assert together(*(lambda: change(stay, note="x") for _ in range(6))) == []
    drain()
    assert statuses("updated") == ["processed"] * 6


def test_rearm_from_two_threads_is_one_new_row(declare):
    declare(Reservation, EventDefinition("on", lambda stay: stay.status == "confirmed", rearm=True))
    stay = Reservation.objects.create(status="confirmed")
    for expected in (2, 3, 4):
        change(stay, status="pending")
        confirm = [lambda: change(stay, status="confirmed")] * 4
        assert together(*confirm) == []
        drain()
        assert statuses("on") == ["processed"] * expected
    assert [row.active_key is not None for row in rows("on")] == [False, False, False, True]


def test_a_date_that_two_move_after_it_has_occurred_is_one_new_row(declare, clock):
    declare(Reservation, EventDefinition("in", date_field="checkin_at", rearm=True))
    stay = Reservation.objects.create(checkin_at=clock())
    drain(clock())
    assert statuses("in") == ["processed"]
    moves = [lambda n=n: change(stay, checkin_at=clock() + n * HOUR) for n in (1, 2, 3)]
    assert together(*moves) == []
    assert statuses("in") == ["processed", "pending"]
    stay.refresh_from_db()
    drain(clock() + 4 * HOUR)
    last = rows("in")[-1]
    assert (len(rows("in")), last.status, last.at) == (2, "processed", stay.checkin_at)


def test_a_watched_field_that_many_set_to_one_value_changes_once(declare):
    declare(Reservation, EventDefinition("changed", watch_fields=["status"]))
    stay = Reservation.objects.create()
    assert together(*(lambda: change(stay, status="confirmed") for _ in range(6))) == []
    drain()
    assert statuses("changed") == ["processed"]


PUBLISHED = EventDefinition("published", was={"status": "draft"}, becomes={"status": "published"})


def test_a_transition_that_many_make_at_once_occurs_once(declare):
    declare(Reservation, PUBLISHED)
    stay = Reservation.objects.create(status="draft")
    for expected in (1, 2, 3):
        change(stay, status="draft")
        assert together(*(lambda: change(stay, status="published") for _ in range(6))) == []
        drain()
        assert statuses("published") == ["processed"] * expected
    assert {str(row.changes) for row in rows("published")} == {"{'status': ('draft', 'published')}"}


@pytest.mark.parametrize("has_row", [False, True])
@not_on("sqlite", reason="SQLite has one writer, so no other one can save in between")
def test_a_transition_waits_for_the_transaction_that_makes_it_first(declare, has_row):
    """The second one reads the row only after the first has committed, and finds that it is no transition any more."""
    declare(Reservation, PUBLISHED)
    stay = Reservation.objects.create(status="draft")
    if has_row:
        change(stay, status="published")
        change(stay, status="draft")
    before = len(statuses("published"))
    stale = Reservation.objects.get(pk=stay.pk)
    stale.status = "published"
    with transaction.atomic():
        change(stay, status="published")
        behind = Behind(stale.save)
    behind.join()
    drain()
    assert statuses("published") == ["processed"] * (before + 1)


@not_on("sqlite", reason="SQLite has one writer, so no other one can save in between")
def test_a_savepoint_that_gives_up_its_lock_forgets_what_it_has_read(declare):
    """PostgreSQL unlocks the row with the savepoint, and another transaction makes the transition meanwhile."""
    declare(Reservation, PUBLISHED)
    stay, other = Reservation.objects.create(status="draft"), Reservation.objects.create()
    theirs: list[OtherThread] = []
    with transaction.atomic():
        change(other, note="read before the savepoint")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            change(stay, status="published")
            raise ZeroDivisionError
        theirs.append(OtherThread(lambda: change(stay, status="published")))
        if connection.vendor == "postgresql":
            theirs[0].join()
        change(stay, status="published")
    theirs[0].join()
    drain()
    assert statuses("published") == ["processed"]


@not_on("sqlite", reason="SQLite has no row locks")
def test_reading_the_row_does_not_block_rows_that_refer_to_it(declare):
    """An order line is inserted while the order is being saved. On MariaDB the update of the order blocks it anyway."""
    declare(Reservation, PUBLISHED)
    stay = Reservation.objects.create(status="draft")
    with transaction.atomic():
        change(stay, status="published")
        other = OtherThread(lambda: Document.objects.create(reservation_id=stay.pk))
        if connection.vendor == "postgresql":
            other.join()
    other.join()


def test_a_transition_and_a_rollback_beside_it(declare):
    declare(Reservation, PUBLISHED)
    stay = Reservation.objects.create(status="draft")

    def regret() -> None:
        try:
            with transaction.atomic():
                change(stay, status="published")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    assert together(regret, regret, lambda: change(stay, status="published"), regret) == []
    drain()
    assert statuses("published") == ["processed"]


def test_many_delete_and_it_occurs_once_for_each_row(declare):
    """Two threads that have collected the same row both send its delete signal, but only one deletes it."""
    declare(Reservation, EventDefinition("gone", trigger="delete"))
    stays = [Reservation.objects.create() for _ in range(5)]

    def delete() -> None:
        for stay in stays:
            Reservation.objects.filter(pk=stay.pk).delete()

    assert together(delete, delete, delete) == []
    drain()
    assert sorted(int(row.entity_id) for row in rows("gone")) == [stay.pk for stay in stays]


def test_a_rollback_beside_a_commit(declare):
    declare(Reservation, EventDefinition("updated", trigger="update"))
    stay = Reservation.objects.create()
    change(stay, note="x")

    def regret() -> None:
        try:
            with transaction.atomic():
                change(stay, note="y")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass

    assert together(regret, lambda: change(stay, note="z"), regret) == []
    drain()
    assert statuses("updated") == ["processed", "processed"]


@not_on("sqlite", reason="SQLite has one writer: no other process can save in between")
def test_an_open_transaction_and_another_processes_save(declare):
    """The second save waits for the row lock of the first transaction, and is a separate update."""
    declare(Reservation, EventDefinition("updated", trigger="update"))
    stay = Reservation.objects.create()
    change(stay, note="x")
    began = threading.Event()

    def other() -> None:
        assert began.wait(30)
        change(stay, note="theirs")

    def mine() -> None:
        with transaction.atomic():
            change(stay, note="mine")
            began.set()

    assert together(mine, other) == []
    drain()
    assert statuses("updated") == ["processed"] * 3
