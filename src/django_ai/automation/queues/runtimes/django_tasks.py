"""The Django tasks runtime: a doorbell for whatever backend ``TASKS`` names, and the executor that enqueues it.

Of Django's own ``django.tasks`` (6.0 and later) and the ``django-tasks`` package, whose settings and tasks look alike,
the one is used whose backend ``TASKS`` names. Nothing depends on ``run_after``: workers of Django tasks have no hook
for a clock, so ``manage.py automation_dispatcher`` runs beside them and rings while rows are due. The task takes no
arguments: forged, stale or twice, it can do no more than look at the clock. However long the workers are down, one
doorbell of a process waits at most: a commit rings only if the last one is no longer waiting.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from ...exceptions import SettingsError
from ..heartbeat import enlist
from ..notifier import is_ringing
from . import tasks


def _module() -> Any:
    """Return ``django.tasks`` or ``django_tasks``. Raises ``SettingsError`` where there is neither."""
    known = [name for name in ("django.tasks", "django_tasks") if find_spec(name) is not None]
    if not known:
        raise SettingsError(
            "AUTOMATION['RUNTIME'] is 'tasks', but this Django has no django.tasks. Use Django 6.0 or newer, or "
            "pip install 'django-ai-automation[tasks]'."
        )
    for name in known:
        if _serves(name):
            return import_module(name)
    return import_module(known[0])


def _serves(name: str) -> bool:
    """Say whether the default backend that ``TASKS`` names is made for this module."""
    chosen = getattr(settings, "TASKS", {}).get("default", {}).get("BACKEND", "")
    if not chosen:
        return False
    base = import_string(f"{name}.backends.base.BaseTaskBackend")
    backend = import_string(chosen)
    return isinstance(backend, type) and issubclass(backend, base)


@_module().task  # type: ignore[untyped-decorator]
def automation_drain_due() -> None:
    """Perform what is due."""
    if not is_ringing():  # else its backend performs it in the process that has enqueued it
        enlist("tasks")
    tasks.drain_due()


SPACING = 1.0
"""Seconds between two doorbells of a process where the backend cannot say whether the last one still waits."""


class TasksNotifier:
    """Enqueues the doorbell, unless one of this process still waits.

    For a queue or backend of its own a subclass in ``AUTOMATION["RUNTIME"]``, with
    ``doorbell = automation_drain_due.using(queue_name="automations")``.
    """

    doorbell: Any = automation_drain_due

    def __init__(self) -> None:
        self._last: Any = None
        self._rung = 0.0

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        # This comes after the commit: whoever begins with a doorbell that still waits will see what was committed.
        if not self._waits():
            self._last = self.doorbell.enqueue()
            self._rung = time.monotonic()

    def _waits(self) -> bool:
        last = self._last
        if last is None:
            return False
        try:
            last.refresh()
        except NotImplementedError:
            return time.monotonic() < self._rung + SPACING
        except _exceptions().TaskResultDoesNotExist:
            return False  # the queue was emptied
        return str(last.status) == "READY"


def _exceptions() -> Any:
    return import_module(f"{_module().__name__}.exceptions")
