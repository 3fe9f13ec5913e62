"""The models of the hotel, and their events."""

from __future__ import annotations

from django.db import models

from django_ai.automation import EventDefinition, EventTrigger

STAY_CALLED_OFF = EventDefinition("stay_called_off", was={"status": "confirmed"}, becomes={"status": "cancelled"})
"""A stay that was only requested is cancelled without this event."""


class Guest(models.Model):
    name = models.CharField(max_length=100)
    email = models.EmailField(blank=True)
    vip = models.BooleanField("VIP", default=False)

    def __str__(self) -> str:
        return self.name


class Reservation(models.Model):
    class Status(models.TextChoices):
        REQUESTED = "requested"
        CONFIRMED = "confirmed"
        CANCELLED = "cancelled"

    guest = models.ForeignKey(Guest, on_delete=models.CASCADE, related_name="reservations")
    room = models.CharField(max_length=10)
    status = models.CharField(max_length=20, choices=Status.choices, default=Status.REQUESTED)
    checkin_at = models.DateTimeField(db_index=True)
    checkout_at = models.DateTimeField(null=True, blank=True, db_index=True)
    paid = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.guest} in {self.room}"

    @property
    def is_confirmed(self) -> bool:
        return self.status == self.Status.CONFIRMED

    events = [
        EventDefinition("reservation_confirmed", condition=lambda stay: stay.is_confirmed),
        EventDefinition("reservation_cancelled", condition=lambda stay: stay.status == "cancelled"),
        STAY_CALLED_OFF,
        EventDefinition("reservation_deleted", trigger=EventTrigger.DELETE),
        EventDefinition("checkin_due", date_field="checkin_at", condition=lambda stay: stay.is_confirmed),
        EventDefinition("checkout_due", date_field="checkout_at", condition=lambda stay: stay.is_confirmed),
    ]


class Document(models.Model):
    """A document that a guest hands in before the stay."""

    reservation = models.ForeignKey(Reservation, on_delete=models.CASCADE, related_name="documents")
    kind = models.CharField(max_length=20, default="passport")

    events = [
        EventDefinition("document_uploaded", payload=lambda document: {"documents": document.kind}),
    ]

    def __str__(self) -> str:
        return f"{self.kind} for {self.reservation}"


class HousekeepingTask(models.Model):
    reservation = models.ForeignKey(Reservation, on_delete=models.CASCADE, related_name="tasks")
    what = models.CharField(max_length=100)
    done = models.BooleanField(default=False)

    events = [EventDefinition("housekeeping_done", condition=lambda task: task.done)]

    def __str__(self) -> str:
        return f"{self.what} ({self.reservation})"


class GuestMessage(models.Model):
    """A message from a guest to the hotel. It refers to the guest, not to a reservation."""

    guest = models.ForeignKey(Guest, on_delete=models.CASCADE, related_name="messages")
    text = models.CharField(max_length=200)
    created_at = models.DateTimeField(auto_now_add=True)

    events = [EventDefinition("guest_wrote")]

    def __str__(self) -> str:
        return f"{self.guest}: {self.text}"


class Complaint(models.Model):
    class Status(models.TextChoices):
        OPEN = "open"
        SOLVED = "solved"

    guest = models.ForeignKey(Guest, on_delete=models.CASCADE, related_name="complaints")
    what = models.CharField(max_length=100)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.OPEN)

    events = [
        EventDefinition("complaint_opened"),
        EventDefinition("complaint_solved", condition=lambda complaint: complaint.status == "solved"),
    ]

    def __str__(self) -> str:
        return f"{self.what} ({self.guest})"


class Message(models.Model):
    """A message from the hotel: a letter, a text message or an internal note."""

    reservation = models.ForeignKey(Reservation, null=True, blank=True, on_delete=models.SET_NULL)
    text = models.CharField(max_length=200)
    key = models.CharField(max_length=100, blank=True, help_text="idempotency key of the call that sent it")
    sent_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key"], condition=~models.Q(key=""), name="one_message_for_each_key"),
        ]

    def __str__(self) -> str:
        return self.text
