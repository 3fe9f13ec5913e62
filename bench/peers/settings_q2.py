"""Settings of plain Django-Q2: its own ORM broker, and nothing of this package."""

import os

SECRET_KEY = "benchmark only: 0123456789 0123456789 0123456789 0123456789"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_q"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ.get("PGHOST", ""),
        "PORT": os.environ.get("PGPORT", ""),
        "USER": os.environ.get("PGUSER", ""),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "NAME": os.environ["PGDATABASE"],
        "CONN_MAX_AGE": 600,
    }
}
Q_CLUSTER = {
    "name": "bench",
    "orm": "default",
    "workers": int(os.environ.get("PEERS_PROCESSES", "2")),
    "timeout": 60,
    "retry": 90,
    "poll": 0.2,
    "log_level": "WARNING",
    "save_limit": 0,  # with the default of 250 each result that is saved locks the 250 rows of earlier ones first
}
