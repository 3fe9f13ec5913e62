"""Models of the soak and the property tests.

A thing has events. An effect is a write of user code. A deed is an action of a simulated user or operator, and its row
is committed together with the action.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone

from django_ai.automation.events.definitions import EventDefinition, EventTrigger

SKEW = timedelta(0)
"""How far the clock of this process is ahead."""


def now() -> datetime:
    """Return the true time. ``timezone.now`` is looked up at each call, because a test may have patched it."""
    return timezone.now() - SKEW


def skew_clock(by: timedelta) -> None:
    """Move the clock of this process ahead by ``by`` (back, if negative)."""
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
        EventDefinition("soak_unready", was={"ready": True}, becomes={"ready": False}),
        EventDefinition("soak_gone", trigger=EventTrigger.DELETE),
    ]

    def __str__(self) -> str:
        return self.name


class Crate(models.Model):
    """Is written in ways of which Django sends no signals, and its events are captured."""

    name = models.CharField(max_length=100, primary_key=True)
    is_open = models.BooleanField(default=False)
    due_at = models.DateTimeField(null=True, db_index=True)
    version = models.IntegerField(default=0)
    note = models.CharField(max_length=20, default="")

    events = [
        EventDefinition("crate_made", capture=True),
        EventDefinition("crate_written", trigger=EventTrigger.UPDATE, capture=True),
        EventDefinition("crate_touched", watch_fields=["version"], capture=True),
        EventDefinition("crate_closed", was={"is_open": True}, becomes={"is_open": False}, capture=True),
        EventDefinition("crate_due", date_field="due_at", capture=True),
        EventDefinition("crate_gone", trigger=EventTrigger.DELETE, capture=True),
    ]

    def __str__(self) -> str:
        return self.name


class Hall(models.Model):
    """Has the time zone of the visits to it."""

    name = models.CharField(max_length=100, primary_key=True)
    zone = models.CharField(max_length=63, default="")

    def __str__(self) -> str:
        return self.name


class Visit(models.Model):
    name = models.CharField(max_length=100, primary_key=True)
    hall = models.ForeignKey(Hall, models.CASCADE, null=True)
    starts_at = models.DateTimeField(null=True, db_index=True)

    events = [EventDefinition("visit_due", date_field="starts_at", timezone="hall__zone")]

    def __str__(self) -> str:
        return self.name


class Effect(models.Model):
    """One write of user code. It has no unique key, so that a duplicate write stays visible."""

    owner = models.CharField(max_length=200, db_index=True)
    key = models.CharField(max_length=100)
    serial = models.BigIntegerField(null=True)
    at = models.DateTimeField(default=now)
    not_before = models.DateTimeField(null=True)
    idempotency = models.CharField(max_length=200, default="")

    def __str__(self) -> str:
        return f"{self.owner} {self.key}"


class Deed(models.Model):
    """An action of a simulated user or operator. The row exists if and only if the action was committed."""

    number = models.IntegerField(unique=True)
    kind = models.CharField(max_length=20)
    result = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"{self.number} {self.kind}"
