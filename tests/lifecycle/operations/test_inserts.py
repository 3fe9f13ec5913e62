"""Inserts: Django does not compile them, and they write what Django's statement writes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from django.utils import timezone

from django_ai.automation.db import inserts
from django_ai.automation.db.inserts import insert, insert_ignoring
from django_ai.automation.events.models import Event
from django_ai.automation.queues import positions
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.captured.models import Everything
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)

COLUMNS = [field.attname for field in inserts.insertable_fields(WorkflowRun) if field.name != "origin_key"]


@pytest.fixture
def compiled(monkeypatch):
    """Count the statements that Django compiles."""
    counted = []
    compile_statement = inserts._compiled

    def counting(*arguments):
        counted.append(len(arguments[2]))
        return compile_statement(*arguments)

    monkeypatch.setattr(inserts, "_compiled", counting)
    return counted


def runs(count: int, prefix: str, **values) -> list[WorkflowRun]:
    now = timezone.now()
    given = {
        "name": "it's 100 %s",
        "version": "1",
        "status": "waiting",
        "current_step": "one",
        "data": {"text": "ünï", "list": [1, None, 2.5], "100%": "%s"},
        "wake_at": now + timedelta(microseconds=1),
        "created_at": now,
        "progress": 0.25,
    }
    return [WorkflowRun(**{**given, **values}, origin_key=f"{prefix}{number}") for number in range(count)]


@pytest.fixture
def bound():
    """A position that this process knows, so that a statement can find the bound."""
    with transaction.atomic():
        (position,) = positions.allocate(1)
    positions.lower_bound()
    return position


EMPTY = {"data": {}, "progress": 0.0, "name": "", "ending": [], "depth": 0, "wake_at": None, "planned": False}
FULL = {"ending": {"status": "failed"}, "depth": 7, "branches": [1], "planned": True, "holds_claims": True, "visit": 3}


@pytest.mark.parametrize("values", [EMPTY, FULL])
def test_each_insert_writes_what_django_writes(compiled, values, bound):
    (saved,), (inserted,), (bounded,) = (runs(1, prefix, **values) for prefix in ("saved", "inserted", "bounded"))
    saved.position = inserted.position = bound
    saved.save(force_insert=True)
    insert(inserted)
    assert insert_ignoring(WorkflowRun, runs(2, "few", position=bound, **values)) == 2
    if positions.insert_bounded(bounded):
        assert connection.vendor == "postgresql"
        assert bounded.position == bound
    else:
        assert connection.vendor != "postgresql"
        insert_ignoring(WorkflowRun, runs(1, "bounded", position=bound, **values))
    assert compiled == []
    assert not inserted._state.adding
    inserted.refresh_from_db()
    assert inserted.origin_key == "inserted0"
    written = {row["origin_key"]: row for row in WorkflowRun.objects.values("origin_key", *COLUMNS)}
    for each in ("inserted0", "few1", "bounded0"):
        for name in set(COLUMNS) - {"created_at", "wake_at", "call_key"}:
            assert written[each][name] == written["saved0"][name], (each, name)
    assert written["inserted0"]["wake_at"] == inserted.wake_at


def test_an_insert_that_fails_ends_the_transaction():
    (row,), (other,) = runs(1, "same"), runs(1, "same")
    insert(row)
    with transaction.atomic():
        with pytest.raises(IntegrityError):
            insert(other)
        assert connection.needs_rollback
        transaction.set_rollback(True)


def test_conflicts_are_skipped_and_keys_are_set():
    insert_ignoring(WorkflowRun, runs(1, "key"))
    rows = runs(3, "key")
    assert insert_ignoring(WorkflowRun, rows, key="origin_key") == 2
    assert rows[0].pk is None
    assert [WorkflowRun.objects.get(pk=row.pk).origin_key for row in rows[1:]] == ["key1", "key2"]


def test_django_compiles_expressions_and_fields_with_placeholders_of_their_own(compiled):
    (row,) = runs(1, "now", created_at=Now())
    assert insert_ignoring(WorkflowRun, [row]) == 1
    assert compiled == [1]
    assert abs(WorkflowRun.objects.get(origin_key="now0").created_at - timezone.now()) < timedelta(hours=1)

    assert not inserts._has_plain_placeholders(Everything)
    assert inserts._has_plain_placeholders(WorkflowRun)


def test_the_events_of_a_save_are_not_compiled_again(compiled):
    Reservation.objects.create(status="confirmed")
    Reservation.objects.create(status="confirmed")
    assert Event.objects.count() >= 2
    assert compiled == []
