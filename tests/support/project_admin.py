"""The admin of a project at ``/admin/``: the pages of the package, and a model of the project with its automations."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from django_ai.automation.console.entity_admin import AutomationAdminMixin
from tests.apps.reservations.models import Reservation

site = admin.AdminSite("admin")
for model, owner in admin.site._registry.items():
    site.register(model, type(owner))


@admin.register(Reservation, site=site)
class ReservationAdmin(AutomationAdminMixin, admin.ModelAdmin):
    pass


urlpatterns = [path("admin/", site.urls)]
