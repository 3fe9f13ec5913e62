"""Scenario 34, orphans: maintenance removes rows whose entity or parent was deleted by raw SQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_ai.automation import EventDefinition, on_event
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events import retention
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues import maintenance, periodic_tasks, pruning
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.workflows.models import Signal, StepExecution, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.maintenance import maintain, old_runs
from tests.support.rows import effects, leave

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

DAY = timedelta(days=1)


def raw_delete(model: Any, *pks: Any) -> None:
    with connection.cursor() as cursor:
        for pk in pks:
            cursor.execute(f"DELETE FROM {model._meta.db_table} WHERE {model._meta.pk.column} = %s", [pk])


def test_34_events_of_an_entity_that_sql_has_deleted_go(clock, work, declare):
    declare(Reservation, EventDefinition("made"), EventDefinition("paid", condition=lambda each: each.status == "paid"))
    on_event("made", name="call")(lambda event: leave("called"))
    stays, goes = Reservation.objects.create(), Reservation.objects.create()
    work()
    raw_delete(Reservation, goes.pk)
    maintain()
    assert Event.objects.count() == 4
    clock.tick(40 * DAY)
    maintenance.ensure_rows(clock())
    maintain()
    clock.tick(DAY)
    maintain()
    assert set(Event.objects.values_list("entity_id", flat=True)) == {str(stays.pk)}
    assert CallbackExecution.objects.get().event.entity_id == str(stays.pk)
    # A living entity keeps its events, and an entity that reuses a deleted primary key gets new ones.
    Reservation.objects.get(pk=stays.pk).save()
    Reservation.objects.create(pk=goes.pk)
    work()
    assert effects() == ["called"] * 3


def test_34_an_orphan_that_a_save_takes_back_at_this_moment_stays(clock, work, declare, monkeypatch):
    declare(Reservation, EventDefinition("made"))
    goes = Reservation.objects.create()
    work()
    raw_delete(Reservation, goes.pk)
    clock.tick(40 * DAY)
    genuine, asked = retention._missing, []

    def late(model, entity_ids):
        found = genuine(model, entity_ids)
        if not asked:
            Reservation.objects.create(pk=goes.pk)
        asked.append(found)
        return found

    monkeypatch.setattr(retention, "_missing", late)
    assert retention.release_orphans(TimeSlice(clock())).done == 0
    assert len(asked) == 2
    assert Event.objects.filter(active_key__isnull=False).count() == 1


@contextmanager
def without_constraints() -> Iterator[None]:
    off, on = {
        "sqlite": ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys = ON"),
        "mysql": ("SET foreign_key_checks = 0", "SET foreign_key_checks = 1"),
        "postgresql": ("SET session_replication_role = replica", "SET session_replication_role = DEFAULT"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(off)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(on)


def test_34_rows_whose_parent_sql_has_deleted_go(monkeypatch):
    monkeypatch.setattr("django_ai.automation.queues.orphans.WINDOW_KEYS", 2)
    now = timezone.now()
    event = Event.objects.create(entity_type="x.y", entity_id="1", event_name="x", declared_as="x")
    agent = AgentRun.objects.create(name="x", event=event)
    parent, child, stays = old_runs(3, ago=DAY)
    WorkflowRun.objects.filter(pk=child.pk).update(parent=parent, event=event)
    for run in (parent, stays):
        for visit in range(3):
            StepExecution.objects.create(run=run, step="s", visit=visit, attempt=1, finished=now, outcome="goto")
        Signal.objects.create(name="x", run=run, sent_at=now)
    for number in range(5):
        CallbackExecution.objects.create(event=event, callback="x", unique_key=f"{number}", created_at=now)
    HandlerExecution.objects.create(run=agent, event=event, handler="x", unique_key="x", created_at=now, due_at=now)
    with without_constraints():
        raw_delete(WorkflowRun, parent.pk)
        raw_delete(Event, event.pk)
    maintain()
    assert set(WorkflowRun.objects.values_list("pk", "parent", "event")) == {
        (child.pk, None, None),
        (stays.pk, None, None),
    }
    assert StepExecution.objects.filter(run=stays).count() == StepExecution.objects.count() == 3
    assert Signal.objects.get().run_id == stays.pk
    assert not CallbackExecution.objects.exists()
    assert not HandlerExecution.objects.exists()
    assert AgentRun.objects.get().event_id is None


def test_34_what_must_stay_is_not_walked_over_again_at_once(clock, monkeypatch):
    """After a slow scan that finds no row to delete, the prune task pauses."""
    young = old_runs(3, ago=DAY)
    WorkflowRun.objects.filter(pk=young[0].pk).update(created_at=clock() - 90 * DAY)
    genuine = pruning._remove_batch

    def slow(rows):
        time.sleep(0.05)
        return genuine(rows)

    monkeypatch.setattr(pruning, "_remove_batch", slow)
    slice_result = periodic_tasks._tasks["prune runs"].run_slice(TimeSlice(clock()))
    assert (slice_result.done, slice_result.position) == (0, None)
    assert slice_result.pause >= timedelta(seconds=0.5)
