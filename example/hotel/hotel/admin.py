"""The front desk."""

from django.contrib import admin

from .models import Document, Guest, HousekeepingTask, Message, Reservation


class DocumentInline(admin.TabularInline):
    model = Document
    extra = 0


@admin.register(Reservation)
class ReservationAdmin(admin.ModelAdmin):
    list_display = ("guest", "room", "status", "checkin_at", "checkout_at", "paid")
    list_filter = ("status",)
    inlines = (DocumentInline,)


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    list_display = ("sent_at", "reservation", "text")


admin.site.register(Guest)
admin.site.register(HousekeepingTask)
