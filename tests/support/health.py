"""Workers that a test records, the health command, and what rows wait for."""

from __future__ import annotations

import io
from datetime import timedelta

from django.core.management import CommandError, call_command

from django_ai.automation.db.database_clock import DatabaseNow
from django_ai.automation.queues.models import Worker
from django_ai.automation.workflows.models import WorkflowRun


def probe(*arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and what it printed."""
    out = io.StringIO()
    try:
        call_command("automation_health", *arguments, stdout=out)
    except CommandError as error:
        return error.returncode, out.getvalue() + str(error)
    return 0, out.getvalue()


def living(queues: str = "", ago: timedelta = timedelta(0), **worked: float) -> Worker:
    """Record a worker that was seen so long ago, and had worked in its queues so many seconds before."""
    return Worker.objects.create(
        name=f"host:7:{Worker.objects.count()}",
        runtime="test",
        host="host",
        pid=7,
        queues=queues,
        started_at=DatabaseNow() - ago,
        seen_at=DatabaseNow() - ago,
        worked=worked,
    )


def broken(now, *, failed: int, parked: int) -> None:
    """Make runs that have ended badly, and one that has ended well."""
    for _ in range(failed):
        WorkflowRun.objects.create(name="x", status="failed", error="E", finished_at=now)
    for _ in range(parked):
        WorkflowRun.objects.create(name="x", status="parked", error="E", parked_at=now)
    WorkflowRun.objects.create(name="x", status="completed", finished_at=now)
