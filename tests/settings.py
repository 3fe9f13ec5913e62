"""Settings of the test suite. ``TEST_DATABASE`` selects the database: sqlite (default), postgresql or
mariadb. ``TEST_REPLICA`` adds a lagging replica (``tests/support/replicas.py``).
"""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from tests.support.databases import REDIS_URL, database_from_environment

SECRET_KEY = "tests only, and long enough to please the checks of Django itself: 0123456789"
DEBUG = False
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}  # Django 6.1 asks for it

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django_q",
    "django_ai.automation.queues",
    "django_ai.automation.events",
    "django_ai.automation.workflows",
    "django_ai.automation.agents",
    "django_ai.automation.contrib.telemetry",
    "django_ai.automation.console",
    "tests.apps.reservations",
    "tests.apps.front_desk",
    "tests.apps.soak",
    "tests.apps.story",
    "tests.apps.release",
    "tests.apps.shop",
    "tests.apps.captured",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

SCRATCH = Path(os.environ.get("TEST_SCRATCH") or tempfile.mkdtemp(prefix="automation-tests-"))
DATABASES = {"default": database_from_environment(SCRATCH)}
if "TEST_REPLICA" in os.environ:  # migrated, but never written to
    file = str(SCRATCH / "replica.sqlite3")
    DATABASES["replica"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "TEST": {"NAME": f"{file}.test"}}
    DATABASE_ROUTERS = ["tests.support.replicas.PackageReadsReplica"]

Q_CLUSTER = {
    "name": "automation-tests",
    "orm": "default",
    "broker_class": os.environ.get("TEST_BROKER", "django_ai.automation.queues.runtimes.q2_brokers.OrmBroker"),
    "workers": 2,
    "timeout": 60,
    "retry": 90,
    "poll": 0.2,
    "save_limit": 100,
    "guard_cycle": 0.5,
}
if "TEST_Q2_TIMES" in os.environ:
    Q_CLUSTER["timeout"], Q_CLUSTER["retry"] = (int(each) for each in os.environ["TEST_Q2_TIMES"].split(","))
if Q_CLUSTER["broker_class"] == "stock":
    del Q_CLUSTER["broker_class"]
elif str(Q_CLUSTER["broker_class"]).endswith("RedisBroker"):
    Q_CLUSTER["redis"] = REDIS_URL

if "TEST_WITHOUT_Q2" in os.environ:
    INSTALLED_APPS.remove("django_q")

TASKS: dict[str, dict[str, object]] = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
if find_spec("django_tasks_db"):
    INSTALLED_APPS.append("django_tasks_db")

AUTOMATION: dict[str, object] = {"RUNTIME": os.environ.get("TEST_RUNTIME", "silent")}
if "TEST_QUEUES" in os.environ:  # "heavy" serves the queue "reports" of tests.apps.story
    AUTOMATION["QUEUES"] = {"reports": "heavy"}
    Q_CLUSTER["ALT_CLUSTERS"] = {"heavy": {}}
    TASKS["default"]["QUEUES"] = ["default", "heavy"]
if "TEST_LEASE_SECONDS" in os.environ:
    AUTOMATION["LEASE"] = timedelta(seconds=float(os.environ["TEST_LEASE_SECONDS"]))
    AUTOMATION["HEARTBEAT"] = timedelta(seconds=float(os.environ["TEST_LEASE_SECONDS"]) / 4)
