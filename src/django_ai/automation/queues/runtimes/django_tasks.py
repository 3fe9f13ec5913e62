"""The Django tasks runtime: a doorbell task for the backend that ``TASKS`` names, and the notifier that enqueues it.

It serves Django's own ``django.tasks`` (6.0 and later) and the ``django-tasks`` package, which have the same settings
and task API: it uses the one to which the backend in ``TASKS`` belongs. Nothing depends on ``run_after``. Workers of
Django tasks offer no hook for a dispatcher, so ``manage.py automation_dispatcher`` runs beside them and rings while
rows are due. The only argument of the task is a task queue: a forged, stale or duplicate task can only perform rows
that are due. At most one doorbell of each process is in each queue, however long the workers are down: a commit rings
only when the last doorbell has left the queue.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from ...exceptions import SettingsError
from ..heartbeat import register_worker
from ..notifier import is_ringing
from . import tasks
from .task_queues import arguments_of, served_by, task_queues, task_queues_of


def _module() -> Any:
    """Return ``django.tasks`` or ``django_tasks``. Raises ``SettingsError`` if neither is installed."""
    known = [name for name in ("django.tasks", "django_tasks") if find_spec(name) is not None]
    if not known:
        raise SettingsError(
            "AUTOMATION['RUNTIME'] is 'tasks', but this Django has no django.tasks. Use Django 6.0 or newer, or "
            "pip install 'django-ai-automation[tasks]'."
        )
    for name in known:
        if _provides_default_backend(name):
            return import_module(name)
    return import_module(known[0])


def _provides_default_backend(name: str) -> bool:
    """Return whether the default backend in ``TASKS`` is a subclass of this module's base backend."""
    chosen = getattr(settings, "TASKS", {}).get("default", {}).get("BACKEND", "")
    if not chosen:
        return False
    base = import_string(f"{name}.backends.base.BaseTaskBackend")
    backend = import_string(chosen)
    return isinstance(backend, type) and issubclass(backend, base)


@_module().task  # type: ignore[untyped-decorator]
def automation_drain_due(task_queue: str = "") -> None:
    """Perform the rows that are due and that ``task_queue`` serves."""
    if not is_ringing():  # an immediate backend performs the task in the process that enqueues it, which is no worker
        register_worker("tasks", **served_by(task_queue))
    tasks.drain_due(task_queue)


MIN_DOORBELL_INTERVAL_SECONDS = 1.0
"""Interval between two doorbells of a process if the backend cannot report whether the last one is still queued."""


class TasksNotifier:
    """Enqueues the doorbell, unless the last one of this process is still queued there.

    To use another default queue or another backend, name a subclass in ``AUTOMATION["RUNTIME"]`` that sets, for
    instance, ``doorbell = automation_drain_due.using(queue_name="automations")``.
    """

    doorbell: Any = automation_drain_due

    def __init__(self) -> None:
        self._bells: dict[str, _Bell] = {}
        for name in task_queues():
            self.doorbell_for(name)  # refuses a queue that the backend does not have

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        # The commit is done: a worker that takes a doorbell which is still queued will see the committed rows.
        for name in task_queues_of(queues):
            bell = self._bells.setdefault(name, _Bell())
            if not bell.is_last_queued():
                bell.last = self.doorbell_for(name).enqueue(*arguments_of(name))
                bell.rung_at = time.monotonic()

    def doorbell_for(self, task_queue: str) -> Any:
        """Return the doorbell task for a task queue (empty: the default one)."""
        return self.doorbell.using(queue_name=task_queue) if task_queue else self.doorbell


@dataclass
class _Bell:
    """The last doorbell of this process in one task queue, and when it was enqueued."""

    last: Any = None
    rung_at: float = 0.0

    def is_last_queued(self) -> bool:
        if self.last is None:
            return False
        try:
            self.last.refresh()
        except NotImplementedError:
            return time.monotonic() < self.rung_at + MIN_DOORBELL_INTERVAL_SECONDS
        except _exceptions().TaskResultDoesNotExist:
            return False  # the queue was emptied
        return str(self.last.status) == "READY"


def _exceptions() -> Any:
    return import_module(f"{_module().__name__}.exceptions")
