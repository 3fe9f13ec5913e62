"""Inserts that skip conflicts: a few rows use a cached statement, which writes what Django's statement writes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from django_ai.automation.db import inserts
from django_ai.automation.db.inserts import insert_ignoring
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.captured.models import Everything
from tests.apps.reservations.models import Reservation

pytestmark = pytest.mark.django_db(transaction=True)

MANY = inserts.MAX_ROWS_OF_CACHED_STATEMENTS + 1
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


def test_a_cached_statement_writes_what_django_writes(compiled):
    few, many = runs(2, "few"), runs(MANY, "many")
    assert insert_ignoring(WorkflowRun, few) == 2
    assert compiled == []
    assert insert_ignoring(WorkflowRun, many) == MANY
    assert compiled == [MANY]
    written = {row["origin_key"]: row for row in WorkflowRun.objects.values("origin_key", *COLUMNS)}
    differing = {"created_at", "wake_at", "call_key"}
    for name in set(COLUMNS) - differing:
        assert written["few1"][name] == written["many1"][name], name
    assert written["few0"]["wake_at"] == few[0].wake_at


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
