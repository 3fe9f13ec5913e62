"""Settings of the benchmarks: PostgreSQL or SQLite, and Q2 with two workers and ``OrmBroker``."""

import json
import os

from tests.support.databases import postgresql

SECRET_KEY = "benchmark only: 0123456789 0123456789 0123456789 0123456789"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django_q",
    "django_ai.automation.queues",
    "django_ai.automation.events",
    "django_ai.automation.workflows",
    "django_ai.automation.agents",
    "bench.load",
]
if "BENCH_SQLITE" in os.environ:
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["BENCH_SQLITE"]}}
else:
    DATABASES = {
        "default": {**postgresql(), "CONN_MAX_AGE": 600, "NAME": os.environ.get("BENCH_DATABASE", "automation_bench")}
    }
Q_CLUSTER = {
    "name": "bench",
    "orm": "default",
    "broker_class": "django_ai.automation.queues.runtimes.q2_brokers.OrmBroker",
    "workers": 2,
    "timeout": 60,
    "retry": 90,
    "poll": 0.2,
    "log_level": "WARNING",
    "save_limit": -1,
}
SILENCED_SYSTEM_CHECKS = ["automation.W016"]  # without the console
AUTOMATION = {"RUNTIME": os.environ.get("BENCH_RUNTIME", ""), **json.loads(os.environ.get("BENCH_AUTOMATION", "{}"))}
