from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ConsoleConfig(AppConfig):
    """The pages of the admin that tell the story of a row, above workflows and agents. It has no tables."""

    name = "django_ai.automation.console"
    label = "automation_console"
    verbose_name = _("Automation: console")
    default_auto_field = "django.db.models.BigAutoField"
