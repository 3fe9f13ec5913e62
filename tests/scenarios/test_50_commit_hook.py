"""The commit hook makes events occur while another request saves the same entities.

The hook does not claim locked rows, and holds no lock while it waits for another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import agent, handler
from django_ai.automation.events import notification, occurrence
from django_ai.automation.events.commit_batch import CommitBatch
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event
from django_ai.automation.queues.claim import claim_rows
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.lease import renew
from django_ai.automation.queues.notifier import set_notifier
from tests.apps.reservations.models import Reservation
from tests.support.marks import not_on
from tests.support.race import OtherThread, until_someone_waits

pytestmark = [
    pytest.mark.django_db(transaction=True),
    not_on("sqlite", reason="SQLite has one writer: no other save can run in between"),
]


class Gate:
    """Blocks one thread before a call of a function, until the test sets ``go``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.is_there, self.go = threading.Event(), threading.Event()
        real = getattr(owner, name)

        def stop(*args: object) -> object:
            if threading.current_thread() is not threading.main_thread() and not self.is_there.is_set():
                self.is_there.set()
                assert self.go.wait(30)
            return real(*args)

        monkeypatch.setattr(owner, name, stop)


def change(*stays: Reservation, status: str) -> None:
    for stay in stays:
        mine = Reservation.objects.get(pk=stay.pk)
        mine.status = status
        mine.save()


def together(*stays: Reservation) -> Callable[[], None]:
    def save() -> None:
        with transaction.atomic():
            change(*stays, status="confirmed")

    return save


def patience() -> None:
    """Limit the time that this connection waits for a lock to one second."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL lock_timeout = '1s'")
        else:
            cursor.execute("SET innodb_lock_wait_timeout = 1")


@pytest.fixture
def two(declare) -> tuple[Reservation, Reservation]:
    declare(Reservation, EventDefinition("confirmed", condition=lambda stay: stay.status == "confirmed"))
    return Reservation.objects.create(), Reservation.objects.create()


def statuses() -> list[str]:
    return [row.status for row in Event.objects.filter(declared_as="confirmed").order_by("entity_id")]


def test_50_what_another_request_has_locked_before_the_claim_is_left_alone(two, monkeypatch, caplog):
    one, other = two
    gate = Gate(monkeypatch, CommitBatch, "__call__")
    hook = OtherThread(together(other, one))
    assert gate.is_there.wait(30)
    with transaction.atomic():
        patience()
        change(one, status="cancelled")
        gate.go.set()
        hook.join()  # it has processed the unlocked event, and does not wait for the locked one
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
        assert statuses()[1] == "processed"
        change(other, status="cancelled")
    assert statuses() == ["pending", "processed"]
    drain()
    assert statuses() == ["pending", "processed"]


@pytest.mark.parametrize("locked", [0, 1])
@pytest.mark.parametrize("stage", ["_occur", "_release"])
def test_50_what_another_request_has_locked_after_the_claim_holds_up_nothing(two, monkeypatch, caplog, stage, locked):
    @agent("ear", spawn_on="confirmed")
    class Ear:
        Context = BaseModel

        @handler("confirmed")
        def heard(self):
            pass

    one, other = two[locked], two[1 - locked]
    gate = Gate(monkeypatch, occurrence if stage == "_occur" else notification, stage)
    hook = OtherThread(together(other, one))
    assert gate.is_there.wait(30)
    with transaction.atomic():
        patience()
        change(one, status="cancelled")
        gate.go.set()
        until_someone_waits()  # for the row of ``one``, while it has no lock on the row of ``other``
        change(other, status="cancelled")
    hook.join()
    drain()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    expected = ["processed", "processed"]
    if stage == "_occur":
        expected[locked] = "pending"
    assert statuses() == expected


def test_50_a_lock_that_is_let_go_without_a_change_is_followed_by_a_doorbell(two, monkeypatch):
    one, _ = two
    rung = []

    class Bell:
        def ring(self, *args: object, **kwargs: object) -> None:
            rung.append(statuses())

    gate = Gate(monkeypatch, CommitBatch, "__call__")
    hook = OtherThread(together(one))
    assert gate.is_there.wait(30)
    set_notifier(Bell())
    try:
        with transaction.atomic():
            list(Event.objects.select_for_update().all())
            gate.go.set()
            hook.join()
    finally:
        set_notifier(None)
    assert rung == [["pending", "pending"]]
    drain()
    assert statuses() == ["processed", "pending"]


def test_50_only_what_is_free_and_due_is_claimed(two):
    now = timezone.now()
    rows = [
        Event.objects.create(
            entity_type="app.reservation",
            entity_id=str(n),
            event_name="x",
            declared_as="x",
            event_created_at=now,
            wake_at=now,
        )
        for n in range(6)
    ]
    ours, leased, lost, later, rests, locked = rows
    for row, changes in (
        (leased, {"lease": "somebody"}),
        (lost, {"losses": 1}),
        (later, {"wake_at": now + timedelta(seconds=1)}),
        (rests, {"wake_at": None}),
    ):
        Event.objects.filter(pk=row.pk).update(**changes)
    found = []
    with transaction.atomic():
        list(Event.objects.select_for_update().filter(pk=locked.pk))
        OtherThread(lambda: found.extend(claim_rows(Event, [row.pk for row in rows], now))).join()
    assert [row.pk for row in found] == [ours.pk]
    stored = Event.objects.get(pk=ours.pk)
    assert (stored.lease, stored.wake_at, stored.losses) == (found[0].lease, found[0].wake_at, 0)
    assert stored.lease
    assert stored.wake_at > now


def test_50_a_heartbeat_passes_by_what_another_request_has_locked(two):
    now = timezone.now()
    rows = list(Event.objects.filter(declared_as="confirmed").order_by("pk"))
    Event.objects.update(lease="mine", wake_at=now)
    with transaction.atomic():
        list(Event.objects.select_for_update().filter(pk=rows[0].pk))
        OtherThread(lambda: renew(rows, ["mine"], now)).join()
    assert [row.wake_at > now for row in Event.objects.filter(declared_as="confirmed").order_by("pk")] == [False, True]
