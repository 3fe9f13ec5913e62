"""Models for the tests that run real workers. The workers import the automations of this app."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from django_ai.automation.events.definitions import EventDefinition


class Probe(models.Model):
    name = models.CharField(max_length=100)
    ready = models.BooleanField(default=False)
    due_at = models.DateTimeField(null=True, db_index=True)

    events = [
        EventDefinition("probe_ready", condition=lambda probe: probe.ready),
        EventDefinition("probe_due", date_field="due_at"),
    ]

    def __str__(self) -> str:
        return self.name


class Mark(models.Model):
    """A row that an automation wrote, with the time."""

    name = models.CharField(max_length=200)
    key = models.CharField(max_length=200, blank=True, default="")
    at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name


class Stay(models.Model):
    """A guest's stay. The same automations run with real workers and with the time machine."""

    name = models.CharField(max_length=100)
    status = models.CharField(max_length=20, default="booked")
    arrives_at = models.DateTimeField(db_index=True)

    events = [
        EventDefinition("stay_confirmed", condition=lambda stay: stay.status == "confirmed"),
        EventDefinition("arrival_due", date_field="arrives_at", condition=lambda stay: stay.status == "confirmed"),
    ]

    def __str__(self) -> str:
        return self.name


class Paper(models.Model):
    stay = models.ForeignKey(Stay, on_delete=models.CASCADE)
    kind = models.CharField(max_length=20)

    events = [EventDefinition("paper_uploaded", payload=lambda paper: {"kind": paper.kind})]

    def __str__(self) -> str:
        return self.kind


class Reading(models.Model):
    """Many of them come at once, and one run handles all of them."""

    number = models.IntegerField()

    events = [EventDefinition("reading_taken", payload=lambda reading: {"number": reading.number})]

    def __str__(self) -> str:
        return str(self.number)
