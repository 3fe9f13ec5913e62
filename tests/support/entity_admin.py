"""An admin site of a project: two models with the automations of their entities, and one without."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from django_ai.automation.console.entity_admin import AutomationAdminMixin
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.reservations.models import Reservation
from tests.urls import urlpatterns as own_urls

site = admin.AdminSite("desk")


@admin.register(Reservation, site=site)
class ReservationAdmin(AutomationAdminMixin, admin.ModelAdmin):
    """Staff do not see the reservations of others."""

    def get_queryset(self, request):
        return super().get_queryset(request).exclude(note="of others")


class MessageInline(admin.TabularInline):
    model = Message
    extra = 0


@admin.register(Booking, site=site)
class BookingAdmin(AutomationAdminMixin, admin.ModelAdmin):
    inlines = (MessageInline,)


@admin.register(Person, site=site)
class PersonAdmin(admin.ModelAdmin):
    pass


urlpatterns = [path("desk/", site.urls), *own_urls]
