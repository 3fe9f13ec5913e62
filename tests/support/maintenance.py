"""Old runs, and one round of maintenance."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from django_ai.automation.queues import maintenance
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Maintenance
from django_ai.automation.workflows.models import WorkflowRun

DAY = timedelta(days=1)


def old_runs(number: int, ago: timedelta = 40 * DAY) -> list[WorkflowRun]:
    moment = timezone.now() - ago
    rows = [WorkflowRun(name="old", status="completed", created_at=moment, finished_at=moment) for _ in range(number)]
    return WorkflowRun.objects.bulk_create(rows)


def maintain() -> None:
    """Perform the maintenance that is due, as a worker does."""
    maintenance.ensure_rows(timezone.now())
    drain(models=[Maintenance])
