from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _


class TelemetryConfig(AppConfig):
    """Connects the extras that ``AUTOMATION["TELEMETRY"]`` lists. It has no tables."""

    name = "django_ai.automation.contrib.telemetry"
    label = "automation_telemetry"
    verbose_name = _("Automation: telemetry")

    def ready(self) -> None:
        from . import checks, extras

        register(checks.check_telemetry)
        extras.connect_listed()
