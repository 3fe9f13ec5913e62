"""What the soak and the property tests live on: things that events are about, the effects that user code leaves behind,
and the deeds of the outside, each of which commits with what it did."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone

from django_ai.automation.events.definitions import EventDefinition, EventTrigger

SKEW = timedelta(0)
"""By how much the clock of this process is ahead."""


def now() -> datetime:
    """Return the true moment; looked up when asked, for a test may have stopped the clock since."""
    return timezone.now() - SKEW


def skew_clock(by: timedelta) -> None:
    """Let the clock of this process be ahead by so much (behind, if negative)."""
    global SKEW
    right = timezone.now
    SKEW = by
    timezone.now = lambda: right() + by


class Thing(models.Model):
    name = models.CharField(max_length=100, unique=True)
    ready = models.BooleanField(default=False)
    frozen = models.BooleanField(default=False)
    due_at = models.DateTimeField(null=True, db_index=True)
    version = models.IntegerField(default=0)
    program = models.JSONField(default=list)

    events = [
        EventDefinition("soak_made"),
        EventDefinition("soak_ready", condition=lambda thing: thing.ready),
        EventDefinition("soak_due", date_field="due_at", condition=lambda thing: not thing.frozen),
        EventDefinition("soak_touched", watch_fields=["version"]),
        EventDefinition("soak_gone", trigger=EventTrigger.DELETE),
    ]

    def __str__(self) -> str:
        return self.name


class Effect(models.Model):
    """One write of user code. No unique key: what is written twice is to be seen twice."""

    owner = models.CharField(max_length=200, db_index=True)
    key = models.CharField(max_length=100)
    serial = models.BigIntegerField(null=True)
    at = models.DateTimeField(default=now)
    not_before = models.DateTimeField(null=True)
    idempotency = models.CharField(max_length=200, default="")

    def __str__(self) -> str:
        return f"{self.owner} {self.key}"


class Deed(models.Model):
    """Something that the outside did: this row is there if and only if it was committed."""

    number = models.IntegerField(unique=True)
    kind = models.CharField(max_length=20)
    result = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"{self.number} {self.kind}"
