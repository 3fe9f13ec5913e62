"""The admin pages of the hotel.

The actions save row by row, because ``QuerySet.update`` bypasses Django's signals: events would follow minutes later,
with the next reconciliation.
"""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from django_ai.automation.console.entity_admin import AutomationAdminMixin

from .models import Complaint, Document, Guest, GuestMessage, HousekeepingTask, Message, Reservation


class DocumentInline(admin.TabularInline):
    model = Document
    extra = 0


@admin.register(Guest)
class GuestAdmin(admin.ModelAdmin):
    list_display = ("name", "email", "vip")
    search_fields = ("name", "email")


@admin.register(Reservation)
class ReservationAdmin(AutomationAdminMixin, admin.ModelAdmin):
    list_display = ("guest", "room", "status", "checkin_at", "checkout_at", "paid")
    list_filter = ("status", "paid")
    list_select_related = ("guest",)
    search_fields = ("guest__name", "room")
    inlines = (DocumentInline,)
    actions = ("confirm", "cancel")

    @admin.action(description="Confirm")
    def confirm(self, request: HttpRequest, chosen: QuerySet[Reservation]) -> None:
        self._set_status(chosen, Reservation.Status.CONFIRMED)

    @admin.action(description="Cancel")
    def cancel(self, request: HttpRequest, chosen: QuerySet[Reservation]) -> None:
        self._set_status(chosen, Reservation.Status.CANCELLED)

    def _set_status(self, chosen: QuerySet[Reservation], status: str) -> None:
        for reservation in chosen:
            reservation.status = status
            reservation.save()


@admin.register(Document)
class DocumentAdmin(admin.ModelAdmin):
    list_display = ("reservation", "kind")
    list_select_related = ("reservation__guest",)


@admin.register(HousekeepingTask)
class HousekeepingTaskAdmin(admin.ModelAdmin):
    list_display = ("what", "reservation", "done")
    list_editable = ("done",)
    list_filter = ("done",)
    list_select_related = ("reservation__guest",)


@admin.register(GuestMessage)
class GuestMessageAdmin(admin.ModelAdmin):
    list_display = ("created_at", "guest", "text")
    list_select_related = ("guest",)
    search_fields = ("guest__name", "text")
    ordering = ("-pk",)


@admin.register(Complaint)
class ComplaintAdmin(AutomationAdminMixin, admin.ModelAdmin):
    list_display = ("what", "guest", "status")
    list_filter = ("status",)
    list_select_related = ("guest",)
    search_fields = ("guest__name", "what")
    actions = ("solve",)

    @admin.action(description="Solve")
    def solve(self, request: HttpRequest, chosen: QuerySet[Complaint]) -> None:
        for complaint in chosen:
            complaint.status = Complaint.Status.SOLVED
            complaint.save()


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    list_display = ("sent_at", "reservation", "text")
    list_select_related = ("reservation__guest",)
    ordering = ("-pk",)
