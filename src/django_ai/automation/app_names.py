"""``AUTOMATION_APPS``: the apps of the package, for ``INSTALLED_APPS``. Imports nothing: settings modules import it."""

from __future__ import annotations

from typing import Final

AUTOMATION_APPS: Final = (
    "django_ai.automation.queues",
    "django_ai.automation.events",
    "django_ai.automation.workflows",
    "django_ai.automation.agents",
    "django_ai.automation.console",
)
"""Every app of the package, lowest layer first: ``INSTALLED_APPS = [..., *AUTOMATION_APPS]``."""
