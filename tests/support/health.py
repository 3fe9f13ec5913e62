"""Recorded workers, the health command, and runs that failed or are parked."""

from __future__ import annotations

import io
from datetime import timedelta

from django.core.management import CommandError, call_command

from django_ai.automation.db.database_clock import DatabaseNow
from django_ai.automation.queues.models import Worker
from django_ai.automation.workflows.models import WorkflowRun


def probe(*arguments: str) -> tuple[int, str]:
    """Run the command, and return its exit code and its output."""
    out = io.StringIO()
    try:
        call_command("automation_health", *arguments, stdout=out)
    except CommandError as error:
        return error.returncode, out.getvalue() + str(error)
    return 0, out.getvalue()


def living(kinds: str = "", ago: timedelta = timedelta(0), queues: str = "", **worked: float) -> Worker:
    """Record a worker that was seen ``ago``. ``worked``: seconds since its last row before that, by kind."""
    return Worker.objects.create(
        name=f"host:7:{Worker.objects.count()}",
        runtime="test",
        host="host",
        pid=7,
        kinds=kinds,
        queues=queues,
        started_at=DatabaseNow() - ago,
        seen_at=DatabaseNow() - ago,
        worked=worked,
    )


def broken(now, *, failed: int, parked: int) -> None:
    """Create failed runs, parked runs, and one completed run."""
    for _ in range(failed):
        WorkflowRun.objects.create(name="x", status="failed", error="E", finished_at=now)
    for _ in range(parked):
        WorkflowRun.objects.create(name="x", status="parked", error="E", parked_at=now)
    WorkflowRun.objects.create(name="x", status="completed", finished_at=now)
