"""Whether the apps of the package are in ``INSTALLED_APPS``, and what to do where one is missing."""

from __future__ import annotations

from django.apps import apps

from .app_names import AUTOMATION_APPS
from .exceptions import SettingsError

HOW_TO_INSTALL = (
    "Install all apps of the package in one line: "
    "from django_ai.automation import AUTOMATION_APPS; INSTALLED_APPS = [..., *AUTOMATION_APPS]"
)


def missing_apps() -> list[str]:
    """Return the apps of the package that are not in ``INSTALLED_APPS``."""
    return [name for name in AUTOMATION_APPS if not apps.is_installed(name)]


def require_app_of(module: str) -> None:
    """Raise ``SettingsError`` if ``module`` defines models for an app that is not in ``INSTALLED_APPS``.

    Without it, Django's error names a model and an ``app_label`` that the project has never seen. Before the app
    registry is ready this does nothing: Django then refuses every model.
    """
    if not apps.apps_ready:
        return
    for name in AUTOMATION_APPS:
        if module.startswith(f"{name}.") and not apps.is_installed(name):
            raise SettingsError(f"{name!r} is not in INSTALLED_APPS, but {module} is imported. {HOW_TO_INSTALL}")
