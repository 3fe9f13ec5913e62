from django.conf import settings
from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from django_ai.automation.contrib.webhooks import HmacSignature, webhook_view
from hotel.automations.terminal import TERMINAL

terminal = HmacSignature(settings.TERMINAL_SECRET, header="X-Terminal-Signature")

urlpatterns = [
    path("admin/", admin.site.urls),
    path("hooks/terminal/", webhook_view(TERMINAL, verifier=terminal)),
    path("", RedirectView.as_view(url="admin/")),
]
