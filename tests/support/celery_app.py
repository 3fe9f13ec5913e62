"""The Celery app of the tests that run a real worker. ``TEST_CELERY_BROKER`` and ``TEST_CELERY_QUEUE`` configure it."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

app = Celery("automation-tests", broker=os.environ.get("TEST_CELERY_BROKER", "memory://"))
app.conf.task_default_queue = os.environ.get("TEST_CELERY_QUEUE", "automation-tests")
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_hijack_root_logger = False
app.autodiscover_tasks()
