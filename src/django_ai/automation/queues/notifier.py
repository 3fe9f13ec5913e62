"""The interface to the runtime: a ``Notifier`` is a doorbell, nothing more.

The layers above call ``ring_after_commit`` when rows become due now. After the commit, and once per commit, the
notifier is rung for all of them. A lost ring loses nothing: the database records what is due, and workers poll it
anyway.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Protocol
from weakref import WeakKeyDictionary

from django.apps import apps
from django.core.signals import setting_changed
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.module_loading import import_string

from ..conf import conf
from ..db.notifications import notify
from ..exceptions import SettingsError
from .drain import drain, draining
from .lanes import ANY_QUEUE, Lane, are_used
from .maintenance import SLICE_SECONDS
from .models import Maintenance
from .registry import wakeables
from .wakeable import Wakeable

logger = logging.getLogger("django_ai.automation")


class Notifier(Protocol):
    """Something that makes a worker call ``drain`` soon."""

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        """Wake a worker: rows in the database ``alias`` have become due. May raise; nothing depends on it.

        ``queues``: their kinds, as in ``automation_worker --kinds``; with a queue other than "default" as
        ``"workflows:reports"``, with any queue as ``"workflows:*"``. Empty: any."""


class InlineNotifier:
    """Performs due rows immediately, in the thread that committed them: for tests, notebooks and small scripts. Every
    ``MAINTENANCE_SECONDS`` it also performs some maintenance, but never inside an open transaction."""

    MAINTENANCE_SECONDS = 10.0

    def __init__(self) -> None:
        self._maintains_at = 0.0

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        drain(heartbeat=True, models=wakeables())
        if time.monotonic() >= self._maintains_at and not connections[alias].in_atomic_block:
            self._maintains_at = time.monotonic() + self.MAINTENANCE_SECONDS
            drain(heartbeat=True, models=[Maintenance], budget=timedelta(seconds=SLICE_SECONDS))


class SilentNotifier:
    """Does nothing: workers find due rows by polling, or a test calls ``drain``."""

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        pass


class WorkerNotifier:
    """Wakes ``manage.py automation_worker`` with a NOTIFY on PostgreSQL. On SQLite the commit itself wakes it, and on
    MariaDB it polls often enough."""

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        notify(alias, queues)


_NAMES = {
    "inline": "django_ai.automation.queues.notifier.InlineNotifier",
    "silent": "django_ai.automation.queues.notifier.SilentNotifier",
    "q2": "django_ai.automation.queues.runtimes.q2.Q2Notifier",
    "worker": "django_ai.automation.queues.notifier.WorkerNotifier",
    "celery": "django_ai.automation.queues.runtimes.celery.CeleryNotifier",
    "tasks": "django_ai.automation.queues.runtimes.django_tasks.TasksNotifier",
}
_override: Notifier | None = None


def set_notifier(notifier: Notifier | None) -> None:
    """Use ``notifier`` from now on in this process; ``None``: use the one of the settings."""
    global _override
    _override = notifier


def get_notifier() -> Notifier:
    """Return the notifier in use. Raises ``SettingsError`` when the one of the settings does not exist."""
    return _override or _from_settings()


@lru_cache(maxsize=1)
def _from_settings() -> Notifier:
    name = conf().RUNTIME or ("q2" if apps.is_installed("django_q") else "worker")
    try:
        notifier: Notifier = import_string(_NAMES.get(name, name))()
    except ImportError as error:
        raise SettingsError(
            f"AUTOMATION['RUNTIME'] is {name!r}, which cannot be imported ({error}). Use one of "
            f"{', '.join(map(repr, _NAMES))}, or the dotted path of a class."
        ) from error
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"AUTOMATION['RUNTIME'] is {name!r}, which cannot be used ({type(error).__name__}: {error}). Check the "
            "settings of its task queue."
        ) from error
    return notifier


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("AUTOMATION", "INSTALLED_APPS"):
        _from_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_ai.automation.notifier")


class _CommitHook:
    """The commit hook of one connection. However often it is registered, it rings once per commit."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.names: set[str] | None = set()
        self.is_pending = False
        self.__qualname__ = type(self).__name__  # Django logs the name of a hook that fails

    def __call__(self) -> None:
        if self.is_pending:
            names, self.names, self.is_pending = self.names or (), set(), False
            ring(self.alias, names)

    def add(self, due: Sequence[type[Wakeable] | Lane]) -> None:
        """Ring also for rows of these models or lanes; empty: of any model."""
        self.is_pending = True
        if not due or self.names is None:
            self.names = None
        else:
            self.names.update(map(_doorbell_of, due))


def _doorbell_of(due: type[Wakeable] | Lane) -> str:
    if isinstance(due, Lane):
        return due.name
    return f"{due.kind}:{ANY_QUEUE}" if are_used(due) else due.kind


_hooks: WeakKeyDictionary[BaseDatabaseWrapper, _CommitHook] = WeakKeyDictionary()


def ring_after_commit(alias: str, *due: type[Wakeable] | Lane) -> None:
    """Ring the notifier after the current transaction commits (immediately outside one), once per commit. ``due``: the
    lanes whose rows became due, or the models, where their lanes are not known (default: any)."""
    connection = connections[alias]
    hook = _hooks.get(connection)
    if hook is None:
        hook = _hooks[connection] = _CommitHook(alias)
    hook.add(due)
    # Registered every time: Django drops hooks of a savepoint that is rolled back, and a test may run only some.
    transaction.on_commit(hook, using=alias, robust=True)


def ring(alias: str, queues: Collection[str] = ()) -> None:
    """Ring now. A notifier that fails is logged, not raised: workers find the due rows by polling."""
    if draining(queues):
        return  # the next round of this thread's own ``drain`` finds the due rows
    _state.is_ringing = True
    try:
        get_notifier().ring(alias, queues)
    except Exception:
        logger.exception("The notifier failed; workers will find the due rows by polling.")
    finally:
        _state.is_ringing = False


_state = threading.local()


def is_ringing() -> bool:
    """Return whether this thread is ringing after a commit. A process that performs rows meanwhile is no worker, but
    one that has saved something: a web process, say, whose task queue executes tasks immediately."""
    return getattr(_state, "is_ringing", False)
