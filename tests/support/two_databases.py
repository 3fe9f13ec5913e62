"""Settings with two databases: the automations and most models live in the second, some in the first.

``second`` is the database of the running test; ``default`` is a separate SQLite file.
"""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, SCRATCH

IN_FIRST = {"auth", "sessions", "admin", "contenttypes", "django_q", "desk"}


class Router:
    """Django's own apps, the queue and the front desk are in the first database."""

    def db_for_read(self, model, **hints):
        return "default" if model._meta.app_label in IN_FIRST else "second"

    db_for_write = db_for_read

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, **hints):
        return (db == "default") == (app_label in IN_FIRST)


DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(SCRATCH / "first.sqlite3")},
    "second": DATABASES["default"],
}
DATABASE_ROUTERS = ["tests.support.two_databases.Router"]
