"""Settings of a small hotel on SQLite, with what a project needs for automations."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from django_ai.automation import AUTOMATION_APPS

BASE_DIR = Path(__file__).resolve().parents[1]

# The example listens on this machine only. A real project reads its key from the environment.
SECRET_KEY = os.environ.get("HOTEL_SECRET_KEY", "an example is no secret: 6cZ0v1mXq8R2t7Yw3Lk5Jd9")
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

# The secret that the card terminal signs its webhooks with. A real project reads it from the environment, too.
TERMINAL_SECRET = os.environ.get("HOTEL_TERMINAL_SECRET", "an example is no secret")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_q",
    *AUTOMATION_APPS,
    "hotel",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
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
ROOT_URLCONF = "hotel_site.urls"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Europe/Vienna"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("HOTEL_DATABASE", str(BASE_DIR / "hotel.sqlite3")),
    }
}

Q_CLUSTER = {
    "name": "hotel",
    "orm": "default",
    "broker_class": "django_ai.automation.queues.runtimes.q2_brokers.OrmBroker",
    "workers": 2,
    "timeout": 60,
    "retry": 90,
    "poll": 0.2,
}

# The length of an hour. In the demo it is three seconds.
HOTEL_HOUR = timedelta(seconds=float(os.environ.get("HOTEL_HOUR_SECONDS", "3600")))

# Whether the first calls of external services fail: a call that is not answered, an answer that is lost.
HOTEL_FAULTS = os.environ.get("HOTEL_FAULTS", "") == "1"

# The rooms for which no key card can be cut, such as 101,107: their arrivals fail, to be repaired in the admin.
HOTEL_NO_CARDS = os.environ.get("HOTEL_NO_CARDS", "").split(",")
