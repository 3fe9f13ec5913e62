"""Looking for due rows after a burst: PostgreSQL still believes that the table is almost empty."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_ai.automation.queues.lanes import Lane
from django_ai.automation.queues.registry import due_times
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.marks import only_on

pytestmark = [
    pytest.mark.django_db(transaction=True),
    only_on("postgresql", reason="What PostgreSQL expects decides"),
]
NUMBER = 3000


@pytest.mark.parametrize("knows_the_start", [False, True], ids=["from the beginning", "from where rows were last"])
def test_one_row_of_the_burst_is_read(knows_the_start):
    now = timezone.now()
    lane, due = Lane(WorkflowRun), now - timedelta(seconds=1)
    with connection.cursor() as cursor:
        cursor.execute(f"VACUUM (ANALYZE) {WorkflowRun._meta.db_table}")
    rows = [
        WorkflowRun(name="story:count", created_at=now, wake_at=due + timedelta(microseconds=n)) for n in range(NUMBER)
    ]
    WorkflowRun.objects.bulk_create(rows)
    since = {lane: due} if knows_the_start else None
    with CaptureQueriesContext(connection) as queries:
        assert due_times(since)[lane] == due
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {queries[-1]['sql']}")
        (found,) = cursor.fetchone()
    plan = found if isinstance(found, list) else json.loads(found)
    assert max(rows_of(plan[0]["Plan"])) < 10, "PLAN " + json.dumps(plan)


def rows_of(node: dict) -> list[int]:
    return [int(node["Actual Rows"]), *(each for child in node.get("Plans", ()) for each in rows_of(child))]
