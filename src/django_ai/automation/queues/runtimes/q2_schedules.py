"""Installs the three Q2 schedules after ``migrate``: idempotent, one row per name, off with ``SKIP_Q2_AUTOSCHEDULE``.

After an outage Q2 catches up on every missed run, one every half minute (``Q_CLUSTER["catch_up"]``, on by default).
After a night that is hours of runs that find nothing to do. One run is enough for these schedules, so ``skip_missed``
skips the others.
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
    """Create Q2's schedules as in ``SCHEDULES``.

    A row that exists keeps its next run and everything else that an operator has set; only its function and options are
    updated. Does nothing if Q2 is not installed, its table does not exist yet, or ``SKIP_Q2_AUTOSCHEDULE`` is true.
    """
    if getattr(settings, "SKIP_Q2_AUTOSCHEDULE", False) or not apps.is_installed("django_q"):
        return
    from django_q.models import Schedule

    if router.db_for_write(Schedule) != using:
        return
    if Schedule._meta.db_table not in connections[using].introspection.table_names():
        return
    # A scheduled task performs steps, as a doorbell does, and needs the same timeout.
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
    """Leave each of these schedules at most one overdue run; return how many schedules were changed."""
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
            # Only if Q2's scheduler has not changed it in the meantime.
            unmoved = rows.filter(pk=row.pk, next_run=row.next_run)
            skipped += unmoved.update(next_run=row.next_run + missed * period)
    return skipped


def _period(row: Any) -> timedelta | None:
    """Return the interval of a schedule; None if it is not fixed (months, cron)."""
    periods = {"I": timedelta(minutes=row.minutes or 1), "H": timedelta(hours=1), "D": timedelta(days=1)}
    return periods.get(row.schedule_type)
