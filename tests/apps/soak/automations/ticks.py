"""Schedules that tick. Only in a soak: workers insert a row for each schedule that is declared."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from django_ai.automation import schedule

from ..models import Effect

TICK = timedelta(seconds=2)


def ticked(owner: str, event) -> None:
    time = event.payload["scheduled_at"]
    Effect.objects.create(owner=owner, key=time, serial=event.pk, not_before=datetime.fromisoformat(time))


if "SOAK_LANES" in os.environ:

    @schedule(TICK, name="soak:tick", catch_up=timedelta(hours=1))
    def tick(event):
        """Come at each time, however late."""
        ticked("tick:schedule", event)

    @schedule(TICK, name="soak:latest")
    def latest(event):
        """Come at the latest time, and for one that was missed."""
        ticked("latest:schedule", event)
