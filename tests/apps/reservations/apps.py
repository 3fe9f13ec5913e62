import os
from typing import Any

from django.apps import AppConfig
from django.core.checks import register
from django.db import connection


class ReservationsConfig(AppConfig):
    name = "tests.apps.reservations"
    label = "app"

    def ready(self) -> None:
        if "TEST_CONNECTS_EARLY" in os.environ:
            register(connect_early)


def connect_early(**kwargs: Any) -> list[Any]:
    """Open a connection in a check, as Django 6.1 does on SQLite for models with JSON fields."""
    connection.ensure_connection()
    return []
