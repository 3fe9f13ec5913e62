"""A model for the tests that run real workers: they import the automations of this app."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from django_ai.automation.events.definitions import EventDefinition


class Probe(models.Model):
    name = models.CharField(max_length=100)
    ready = models.BooleanField(default=False)
    due_at = models.DateTimeField(null=True)

    events = [
        EventDefinition("probe_ready", condition=lambda probe: probe.ready),
        EventDefinition("probe_due", date_field="due_at"),
    ]

    def __str__(self) -> str:
        return self.name


class Mark(models.Model):
    """What an automation left behind, and when."""

    name = models.CharField(max_length=200)
    key = models.CharField(max_length=200, blank=True, default="")
    at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name
