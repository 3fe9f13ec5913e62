"""Models whose writes are captured by triggers: one for each kind of key, table and class."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models.functions import Upper

from django_ai.automation.events.definitions import EventDefinition, EventTrigger

CREATE, UPDATE, DELETE = EventTrigger.CREATE, EventTrigger.UPDATE, EventTrigger.DELETE


class Parcel(models.Model):
    """Has an event of each kind. All are captured."""

    code = models.CharField(max_length=50, blank=True, default="")
    state = models.CharField(max_length=20, default="packed")
    weight = models.DecimalField(max_digits=12, decimal_places=3, default=0)
    due_at = models.DateTimeField(null=True, db_index=True)

    events = [
        EventDefinition("parcel_created", trigger=CREATE, capture=True),
        EventDefinition("parcel_updated", trigger=UPDATE, capture=True),
        EventDefinition("parcel_deleted", trigger=DELETE, capture=True),
        EventDefinition("parcel_weighed", watch_fields=["weight"], capture=True),
        EventDefinition("parcel_sent", lambda parcel: parcel.state == "sent", rearm=True, capture=True),
        EventDefinition("parcel_shipped", was={"state": "packed"}, becomes={"state": "sent"}, capture=True),
        EventDefinition("parcel_due", lambda parcel: parcel.state != "sent", date_field="due_at", capture=True),
    ]

    def __str__(self) -> str:
        return f"parcel {self.pk}"


class Note(models.Model):
    """Has one captured event and one that is not."""

    parcel = models.ForeignKey(Parcel, models.CASCADE, null=True)
    text = models.CharField(max_length=50, blank=True, default="")

    events = [
        EventDefinition("note_written", trigger=[CREATE, UPDATE], capture=True),
        EventDefinition("note_saved", trigger=[CREATE, UPDATE], capture=False),
    ]

    def __str__(self) -> str:
        return self.text


class Everything(models.Model):
    """Has a UUID key, and a column of each type."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    flag = models.BooleanField(default=False)
    number = models.BigIntegerField(null=True)
    ratio = models.FloatField(null=True)
    price = models.DecimalField(max_digits=20, decimal_places=5, null=True)
    text = models.TextField(null=True)
    day = models.DateField(null=True)
    moment = models.DateTimeField(null=True)
    time = models.TimeField(null=True)
    lasts = models.DurationField(null=True)
    other = models.UUIDField(null=True)
    data = models.JSONField(null=True)
    raw = models.BinaryField(null=True)
    address = models.GenericIPAddressField(null=True)
    parcel = models.ForeignKey(Parcel, models.CASCADE, null=True)

    events = [
        EventDefinition("everything_changed", trigger=UPDATE, capture=True),
        EventDefinition("everything_deleted", trigger=DELETE, capture=True),
    ]

    class Meta:
        db_table = "Captured every-thing"

    def __str__(self) -> str:
        return str(self.pk)


class Shelf(models.Model):
    """A parent with a string key."""

    number = models.CharField(primary_key=True, max_length=20)
    is_clean = models.BooleanField(default=False)
    due_at = models.DateTimeField(null=True, db_index=True)

    events = [
        EventDefinition("shelf_cleaned", lambda shelf: shelf.is_clean, capture=True),
        EventDefinition("shelf_written", trigger=[CREATE, UPDATE, DELETE], capture=True),
    ]

    def __str__(self) -> str:
        return self.number


class Cabinet(Shelf):
    """A child with a table of its own, and an event that depends on a column of its parent."""

    doors = models.IntegerField(default=2)

    events = [
        *Shelf.events,
        EventDefinition("cabinet_written", trigger=[CREATE, UPDATE, DELETE], capture=True),
        EventDefinition("cabinet_due", date_field="due_at", capture=True),
    ]


class Slot(models.Model):
    """A plain table. Only a proxy declares an event of it."""

    name = models.CharField(max_length=20, default="")
    label = models.GeneratedField(
        expression=Upper("name"), output_field=models.CharField(max_length=20), db_persist=True
    )

    def __str__(self) -> str:
        return self.name


class WatchedSlot(Slot):
    events = [EventDefinition("slot_written", trigger=[CREATE, UPDATE, DELETE], capture=True)]

    class Meta:
        proxy = True
