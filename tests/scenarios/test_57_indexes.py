"""No table has two indexes on the same columns or a ``_like`` index of Django.

The queries for failed and parked rows use an index.
"""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.utils import timezone

from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events.models import CallbackExecution, CapturedWrite, Event, Schedule
from django_ai.automation.queues.models import BulkAction
from django_ai.automation.queues.operations.failed_and_parked import failed_keys, parked_keys
from django_ai.automation.queues.operations.resume import resumable_kinds
from django_ai.automation.workflows.models import Signal

LABELS = ["automation_queues", "automation_events", "automation_workflows", "automation_agents"]
MODELS = [model for label in LABELS for model in apps.get_app_config(label).get_models()]


@pytest.mark.django_db
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_57_no_index_for_like_is_made(model):
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table)
    assert [name for name in found if name.endswith("_like")] == []


@pytest.mark.django_db
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_57_each_text_key_has_one_index(model):
    """A unique constraint already has an index: a second index on its columns would only slow down writes."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table)
    columns = [tuple(each["columns"]) for each in found.values() if each["index"] or each["unique"]]
    assert len(columns) == len(set(columns))
    assert not [field.name for field in model._meta.local_fields if field.unique and not field.primary_key]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("what", ["failed", "parked"])
@pytest.mark.parametrize("name", sorted(resumable_kinds()))
def test_57_what_failed_or_is_parked_is_counted_from_an_index(name, what):
    """The query reads no successful rows: they are not in the index, or they have another status in it."""
    kind = resumable_kinds()[name]
    rows = failed_keys(kind) if what == "failed" else parked_keys(kind)
    if rows is None:
        pytest.skip("rows of this kind cannot fail")
    table = kind.model._meta.db_table
    fill(kind.model)
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE TABLE {table}" if connection.vendor == "mysql" else f"ANALYZE {table}")
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL enable_seqscan = off")  # else it scans so small a table sequentially
        lines = rows[:100].explain().splitlines()
    plan = [line for line in lines if table in line and not any(each in line for each in ("Cond:", "Filter:"))]
    assert plan
    for line in plan:
        assert "_failures" in line or "_failed" in line or "_parked" in line, plan


def fill(model) -> None:
    """Insert so many rows, neither failed nor parked, that the planner prefers an index to a full scan."""
    now, number = timezone.now(), 3000
    entity = {"entity_type": "x", "entity_id": "1"}
    if model in (CallbackExecution, HandlerExecution):
        event = Event.objects.create(event_name="e", **entity)
        given = {"event": event, "status": "completed", "finished_at": now}
        if model is HandlerExecution:
            given |= {"run": AgentRun.objects.create(name="a"), "due_at": now}
        rows = [model(**given, unique_key=str(each)) for each in range(number)]
    elif model is Event:
        rows = [Event(event_name="e", **entity) for _ in range(number)]
    elif model is Schedule:
        rows = [Schedule(name=str(each), target="t", cron="0 2 * * *") for each in range(number)]
    elif model is CapturedWrite:
        rows = [CapturedWrite(model="x", operation="insert", written_at=now, **entity) for _ in range(number)]
    elif model is BulkAction:
        rows = [BulkAction(verb="cancel", row_kind="workflow", status="completed") for _ in range(number)]
    elif model is Signal:
        rows = [Signal(name="s", delivered_at=now) for _ in range(number)]
    else:
        rows = [model(name="n", status="completed", finished_at=now) for _ in range(number)]
    model.objects.bulk_create(rows)
