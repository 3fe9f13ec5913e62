"""Installs the three Q2 schedules after ``migrate``: idempotent, one row a name, off with ``SKIP_Q2_AUTOSCHEDULE``."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import connections, router, transaction

from .q2 import doorbell_timeout

SCHEDULES = (
    ("Workflows: process_scheduled", "django_ai.automation.queues.tasks.process_scheduled", "I", 1),
    ("Events: poll_due", "django_ai.automation.queues.tasks.poll_due", "I", 5),
    ("Events: cleanup_old", "django_ai.automation.queues.tasks.cleanup_old", "D", None),
)


def install_schedules(sender: Any = None, using: str = "default", **kwargs: Any) -> None:
    """Bring Q2's schedules in line with ``SCHEDULES``.

    A row that exists keeps its next run and whatever else an operator set; only what it runs is put right. Does nothing
    where Q2 is not installed, its table is not there yet, or ``SKIP_Q2_AUTOSCHEDULE`` is true.
    """
    if getattr(settings, "SKIP_Q2_AUTOSCHEDULE", False) or not apps.is_installed("django_q"):
        return
    from django_q.models import Schedule

    if router.db_for_write(Schedule) != using:
        return
    if Schedule._meta.db_table not in connections[using].introspection.table_names():
        return
    # A step that a schedule picks up may take as long as one that a doorbell does.
    options = str({"q_options": {"save": False, "timeout": doorbell_timeout()}})
    with transaction.atomic(using=using):
        for name, func, kind, minutes in SCHEDULES:
            rows = list(Schedule.objects.using(using).select_for_update().filter(name=name).order_by("pk"))
            if rows:
                Schedule.objects.using(using).filter(pk__in=[row.pk for row in rows[1:]]).delete()
                Schedule.objects.using(using).filter(pk=rows[0].pk).update(func=func, kwargs=options)
            else:
                Schedule.objects.using(using).create(
                    name=name,
                    func=func,
                    schedule_type=kind,
                    minutes=minutes,
                    repeats=-1,
                    kwargs=options,
                )
