"""The entities of the guide's section on agents: a front desk with bookings, messages and tickets of guests."""

from __future__ import annotations

from django.db import models

from django_ai.automation.events.definitions import EventDefinition, EventTrigger


class Person(models.Model):
    name = models.CharField(max_length=100, default="")

    def __str__(self) -> str:
        return self.name


class Booking(models.Model):
    guest = models.ForeignKey(Person, on_delete=models.CASCADE)
    status = models.CharField(max_length=20, default="new")
    starts_at = models.DateTimeField(null=True, db_index=True)
    ends_at = models.DateTimeField(null=True, db_index=True)
    note = models.CharField(max_length=100, blank=True, default="")

    events = [
        EventDefinition("booking_created"),
        EventDefinition("booking_confirmed", condition=lambda booking: booking.status == "confirmed"),
        EventDefinition("stay_due", date_field="starts_at", condition=lambda booking: booking.status != "cancelled"),
        EventDefinition("stay_over", date_field="ends_at", condition=lambda booking: booking.status != "cancelled"),
        EventDefinition("booking_noted", watch_fields=["note"]),
        EventDefinition("booking_deleted", trigger=EventTrigger.DELETE),
    ]

    def __str__(self) -> str:
        return f"booking {self.pk}"


class Message(models.Model):
    sender = models.ForeignKey(Person, on_delete=models.CASCADE)
    booking = models.ForeignKey(Booking, null=True, on_delete=models.CASCADE)
    text = models.CharField(max_length=100, blank=True, default="")
    status = models.CharField(max_length=20, default="new")
    urgency = models.IntegerField(default=0)

    events = [
        EventDefinition("message_received"),
        EventDefinition("message_removed", trigger=EventTrigger.DELETE),
    ]

    def __str__(self) -> str:
        return self.text


class Case(models.Model):
    """A guest's ticket, as in the guide."""

    guest = models.ForeignKey(Person, on_delete=models.CASCADE)
    status = models.CharField(max_length=20, default="open")

    events = [
        EventDefinition("ticket_created"),
        EventDefinition("ticket_resolved", condition=lambda case: case.status == "resolved"),
    ]

    def __str__(self) -> str:
        return f"case {self.pk}"


class GroupBooking(Booking):
    """A proxy that declares one more event. Only saves through the proxy record it."""

    events = [*Booking.events, EventDefinition("group_arrived", condition=lambda booking: booking.note == "here")]

    class Meta:
        proxy = True
