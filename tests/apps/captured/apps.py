from django.apps import AppConfig


class CapturedConfig(AppConfig):
    """Models whose writes are captured. It has no migrations: ``migrate --run-syncdb`` installs the triggers."""

    name = "tests.apps.captured"
    label = "captured"
