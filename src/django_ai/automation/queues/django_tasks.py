"""The Django tasks runtime: a doorbell for whatever backend ``TASKS`` names, and the executor that enqueues it.

Of Django's own ``django.tasks`` (6.0 and later) and the ``django-tasks`` package, whose settings and tasks look alike,
the one is used whose backend ``TASKS`` names. Nothing depends on ``run_after``: workers of Django tasks have no hook
for a clock, so ``manage.py automation_clock`` runs beside them and rings while rows are due. The task takes no
arguments: forged, stale or twice, it can do no more than look at the clock.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from ..exceptions import SettingsError
from . import tasks


def _module() -> Any:
    """Return ``django.tasks`` or ``django_tasks``. Raises ``SettingsError`` where there is neither."""
    known = [name for name in ("django.tasks", "django_tasks") if find_spec(name) is not None]
    if not known:
        raise SettingsError(
            "AUTOMATION['EXECUTOR'] is 'tasks', but this Django has no django.tasks. Use Django 6.0 or newer, or "
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
    tasks.drain_due()


class TasksExecutor:
    """Enqueues the doorbell."""

    def ring(self, alias: str) -> None:
        automation_drain_due.enqueue()
