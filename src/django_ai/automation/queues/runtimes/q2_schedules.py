"""Installs the three Q2 schedules after ``migrate``: idempotent, one row a name, off with ``SKIP_Q2_AUTOSCHEDULE``.

After an outage Q2 makes up for every run that was missed, one in half a minute (``Q_CLUSTER["catch_up"]``, on by
default): for a night that is hours of polls that find nothing. Ours need but one, so ``skip_missed`` leaves them that.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import connections, router, transaction

from .q2 import doorbell_timeout

SCHEDULES = (
    ("Workflows: process_scheduled", "django_ai.automation.queues.runtimes.tasks.process_scheduled", "I", 1),
    ("Events: poll_due", "django_ai.automation.queues.runtimes.tasks.reconcile_soon", "I", 5),
    ("Events: cleanup_old", "django_ai.automation.queues.runtimes.tasks.prune_soon", "D", None),
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


def skip_missed(now: datetime) -> int:
    """Leave our schedules at most one run that is overdue, in step with their period; say how many were put right."""
    if not apps.is_installed("django_q"):
        return 0
    from django_q.models import Schedule

    rows = Schedule.objects.using(router.db_for_write(Schedule))
    ours = rows.filter(name__in=[name for name, *_ in SCHEDULES], repeats__lt=0)
    skipped = 0
    for row in ours.filter(next_run__lt=now - timedelta(minutes=2)):
        period = _period(row)
        missed = (now - row.next_run) // period if period else 0
        if period and missed:
            # Only if Q2's scheduler has not moved it meanwhile.
            unmoved = rows.filter(pk=row.pk, next_run=row.next_run)
            skipped += unmoved.update(next_run=row.next_run + missed * period)
    return skipped


def _period(row: Any) -> timedelta | None:
    """Return how far apart the runs of a schedule are; None where that is no fixed time (months, cron)."""
    each = {"I": timedelta(minutes=row.minutes or 1), "H": timedelta(hours=1), "D": timedelta(days=1)}
    return each.get(row.schedule_type)
