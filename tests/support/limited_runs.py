"""Runs with a deadline of an hour."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from django_ai.automation import engine
from django_ai.automation.workflows.models import WorkflowRun

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Doing(BaseModel):
    do: str = ""
    tries: int = 0


def begun(name: str, work: Any, **arguments: Any) -> WorkflowRun:
    """Return a run of the workflow ``name`` that was started now, and performed as far as it can be."""
    run = engine.start(name, **arguments)
    work()
    run.refresh_from_db()
    return run


def overdue(name: str, clock: Any, work: Any, **arguments: Any) -> WorkflowRun:
    """Return a run of the workflow ``name`` that has reached its deadline."""
    run = begun(name, work, **arguments)
    clock.tick(HOUR)
    work()
    run.refresh_from_db()
    return run
