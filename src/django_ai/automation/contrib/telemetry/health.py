"""``Automation``: a check for the package ``django-health-check``, on the same function as ``automation_health``."""

from __future__ import annotations

import dataclasses
import threading
from datetime import timedelta

from django.db import Error as AnyDatabaseError
from django.db import connections
from django.utils import timezone
from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from ...db.writer import alias_of
from ...queues.models import Worker
from ...queues.operations.failed_and_parked import count_failed_and_parked
from ...queues.operations.health import DEFAULT_TOLERANCE, check_health


@dataclasses.dataclass
class Automation(HealthCheck):  # type: ignore[misc]  # the library has no types that are known here
    """Whether work is overdue while no worker makes progress with it, as ``manage.py automation_health`` answers.

    Args:
        overdue: How long work may be due before it counts as overdue, as a timedelta. Default 90 s.
        max_failed: How many rows may have failed for good. Default: any number.
        max_parked: How many rows may be parked. Default: any number.

    Example:
        Beside the checks of the package::

            HealthCheckView.as_view(checks=[
                "health_check.checks.Database",
                ("django_ai.automation.contrib.telemetry.health.Automation", {"max_parked": 0}),
            ])
    """

    overdue: timedelta = DEFAULT_TOLERANCE
    max_failed: int | None = None
    max_parked: int | None = None

    def run(self) -> None:
        """Ask the tables: a few look-ups in indexes.

        Raises:
            ServiceUnavailable: If work is overdue while no worker makes progress, or the database does not answer.
            ServiceWarning: If more rows have failed or are parked than allowed.

        Example:
            Called by ``django-health-check``, in a thread::

                Automation(max_failed=10).run()
        """
        try:
            self._check()
        except AnyDatabaseError as error:
            raise ServiceUnavailable("The database of the automations does not answer.") from error
        finally:
            if threading.current_thread() is not threading.main_thread():
                connections[alias_of(Worker)].close()  # the thread ends, and would leave it open

    def _check(self) -> None:
        health = check_health(timezone.now(), self.overdue)
        if not health.is_healthy:
            stands = "; ".join(str(each) for each in health.overdue if not each.makes_progress)
            raise ServiceUnavailable(f"Overdue: {stands}")
        for limit, name in ((self.max_failed, "failed"), (self.max_parked, "parked")):
            if limit is not None:
                counts = getattr(count_failed_and_parked(limit), name)
                if (number := sum(counts.values())) > limit:
                    raise ServiceWarning(f"{number} rows or more are {name}; at most {limit} may be.")
