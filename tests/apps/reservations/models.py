"""The models of the test suite: one for each kind of model that can declare events."""

from __future__ import annotations

import uuid
from decimal import Decimal

from django.db import models

from django_ai.automation.events.definitions import EventDefinition


class Guest(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Hotel(models.Model):
    """Has the time zone of the trips to it."""

    tz = models.CharField(max_length=100, null=True, blank=True, default="")

    def __str__(self) -> str:
        return f"hotel {self.pk}"


class Manager(models.Model):
    """Is reached from its hotel by a reverse one-to-one relation."""

    hotel = models.OneToOneField(Hotel, on_delete=models.CASCADE)
    tz = models.CharField(max_length=100, default="")

    def __str__(self) -> str:
        return f"manager of {self.hotel}"


class Trip(models.Model):
    """Has a moment and a day. Tests register its events."""

    hotel = models.ForeignKey(Hotel, null=True, on_delete=models.CASCADE)
    arrives_at = models.DateTimeField(null=True, db_index=True)
    arrives_on = models.DateField(null=True, db_index=True)
    nights = models.IntegerField(default=1)
    valid = models.BooleanField(default=True)

    def __str__(self) -> str:
        return f"trip {self.pk}"

    @property
    def tz(self) -> str | None:
        return None if self.hotel is None else self.hotel.tz


def is_confirmed(reservation: Reservation) -> bool:
    return reservation.status == "confirmed"


class Reservation(models.Model):
    guest = models.ForeignKey(Guest, null=True, on_delete=models.CASCADE)
    status = models.CharField(max_length=20, default="pending")
    checkin_at = models.DateTimeField(null=True, db_index=True)
    checkout_at = models.DateTimeField(null=True, db_index=True)
    docs = models.BooleanField(default=False)
    note = models.CharField(max_length=100, blank=True, default="")

    events = [
        EventDefinition("reservation_confirmed", condition=is_confirmed),
        EventDefinition("checkin_due", date_field="checkin_at", condition=is_confirmed),
        EventDefinition("checkout_due", date_field="checkout_at", condition=is_confirmed),
        EventDefinition("guest_docs_uploaded", condition=lambda r: r.docs, payload=lambda r: {"docs_ready": True}),
    ]

    def __str__(self) -> str:
        return f"reservation {self.pk}"


class Document(models.Model):
    reservation = models.ForeignKey(Reservation, on_delete=models.CASCADE, related_name="documents")
    kind = models.CharField(max_length=20, default="passport")

    events = [EventDefinition("document_uploaded", payload=lambda d: {"kind": d.kind})]

    def __str__(self) -> str:
        return self.kind


class Ticket(models.Model):
    """Has a UUID primary key and two definitions. The tests count the statements of its saves."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    open = models.BooleanField(default=True)
    due_at = models.DateTimeField(null=True, db_index=True)
    title = models.CharField(max_length=50, blank=True, default="")

    events = [
        EventDefinition("ticket_closed", condition=lambda t: not t.open),
        EventDefinition("ticket_due", date_field="due_at", condition=lambda t: t.open),
    ]

    def __str__(self) -> str:
        return str(self.id)


class Room(models.Model):
    """Has a string primary key and a plain date."""

    number = models.CharField(primary_key=True, max_length=20)
    inspected_on = models.DateField(null=True, db_index=True)
    is_clean = models.BooleanField(default=False)

    events = [
        EventDefinition("room_cleaned", condition=lambda r: r.is_clean),
        EventDefinition("inspection_due", date_field="inspected_on"),
    ]

    def __str__(self) -> str:
        return self.number


class Suite(Room):
    """A multi-table child. It has the events of its parent and one more."""

    stars = models.IntegerField(default=5)

    events = [*Room.events, EventDefinition("suite_opened", condition=lambda s: s.stars > 4)]


class Ware(models.Model):
    """Has a Decimal primary key."""

    code = models.DecimalField(primary_key=True, max_digits=8, decimal_places=2)
    sold = models.BooleanField(default=False)
    made_at = models.DateTimeField(null=True, db_index=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, default=0)
    pieces = models.IntegerField(default=0)
    double = models.GeneratedField(
        expression=models.F("pieces") * 2, output_field=models.IntegerField(), db_persist=True
    )

    events = [
        EventDefinition("ware_sold", condition=lambda w: w.sold),
        EventDefinition("ware_dear", condition=lambda w: w.price == Decimal("19.99")),
        EventDefinition("ware_many", condition=lambda w: w.pieces > 99),
        EventDefinition("ware_doubled", condition=lambda w: w.double > 10),
    ]


class Page(models.Model):
    """Has a primary key that may be too long for events."""

    path = models.CharField(primary_key=True, max_length=400)

    events = [EventDefinition("page_written")]

    def __str__(self) -> str:
        return self.path


class LongStay(Reservation):
    """A proxy without events of its own. It uses those of ``Reservation``."""

    class Meta:
        proxy = True


class VipStay(Reservation):
    """A proxy that declares one more event. Only saves through the proxy record it."""

    events = [*Reservation.events, EventDefinition("vip_arrived", condition=lambda r: r.note == "here")]

    class Meta:
        proxy = True


class Task(models.Model):
    """An abstract model. Its subclasses inherit its events."""

    done = models.BooleanField(default=False)

    events = [EventDefinition("task_done", condition=lambda task: task.done)]

    class Meta:
        abstract = True


class Chore(Task):
    pass


class Errand(Task):
    pass


class Effect(models.Model):
    """A write of user code in the tests: one row for each committed execution."""

    name = models.CharField(max_length=200)
    key = models.CharField(max_length=200, blank=True, default="")
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name
