"""The seam to whatever runs workers: an ``Executor`` is a doorbell, nothing more.

``ring_after_commit`` is what the floors above call when something became due now, and of which kinds: after the commit,
and once a commit, the executor is rung for all of them. A ring that is lost loses nothing: the database knows what is
due, and workers look there anyway.
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
from .maintenance import SLICE_SECONDS
from .models import Maintenance, Wakeable
from .registry import wakeables

logger = logging.getLogger("django_ai.automation")


class Notifier(Protocol):
    """Something that makes a worker call ``drain`` soon."""

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        """Wake a worker: rows in the database ``alias`` have become due. ``queues``: of which kinds they are, as in
        ``automation_worker --queues``; none: of any. May raise; nothing depends on it."""


class InlineNotifier:
    """Performs what is due at once, in the thread that committed it: for tests, notebooks and small scripts. Now and
    then it does its part of the maintenance: a bite or a few small ones, and none inside somebody's transaction."""

    MAINTENANCE_SECONDS = 10.0

    def __init__(self) -> None:
        self._maintains_at = 0.0

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        drain(heartbeat=True, models=wakeables())
        if time.monotonic() >= self._maintains_at and not connections[alias].in_atomic_block:
            self._maintains_at = time.monotonic() + self.MAINTENANCE_SECONDS
            drain(heartbeat=True, models=[Maintenance], budget=timedelta(seconds=SLICE_SECONDS))


class SilentNotifier:
    """Does nothing: workers find due rows by looking, or a test calls ``drain`` when it wants to."""

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        pass


class WorkerNotifier:
    """Wakes ``manage.py automation_worker``: with a NOTIFY on PostgreSQL; elsewhere its next look is soon enough."""

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
    """Use ``executor`` from now on in this process; ``None``: what the settings say."""
    global _override
    _override = notifier


def get_notifier() -> Notifier:
    """Return the executor in force. Raises ``SettingsError`` when the settings name none that exists."""
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
            f"AUTOMATION['RUNTIME'] is {name!r}, which cannot be used ({type(error).__name__}: {error}). Look at the "
            "settings of the queue that it rings."
        ) from error
    return notifier


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("AUTOMATION", "INSTALLED_APPS"):
        _from_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_ai.automation.executor")


class _Ring:
    """The hook of one connection's commits. Registered as often as it is asked for, it rings once a commit."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.queues: set[str] | None = set()
        self.wanted = False
        self.__qualname__ = type(self).__name__  # Django names a hook that fails

    def __call__(self) -> None:
        if self.wanted:
            queues, self.queues, self.wanted = self.queues or (), set(), False
            ring(self.alias, queues)

    def want(self, due: Sequence[type[Wakeable]]) -> None:
        """Ring for these kinds of rows, too; for none: for any."""
        self.wanted = True
        if not due or self.queues is None:
            self.queues = None
        else:
            self.queues.update(model.queue for model in due)


_rings: WeakKeyDictionary[BaseDatabaseWrapper, _Ring] = WeakKeyDictionary()


def ring_after_commit(alias: str, *due: type[Wakeable]) -> None:
    """Ring the executor when the current transaction has committed (at once outside one), once however often asked.
    ``due``: the kinds of rows that became due (default: any may have)."""
    connection = connections[alias]
    hook = _rings.get(connection)
    if hook is None:
        hook = _rings[connection] = _Ring(alias)
    hook.want(due)
    # Registered each time: Django drops hooks of a savepoint that is rolled back, and a test may run but a part.
    transaction.on_commit(hook, using=alias, robust=True)


def ring(alias: str, queues: Collection[str] = ()) -> None:
    """Ring now. An executor that fails is logged, not raised: its work is safe and will be found."""
    if draining():
        return  # this thread's own loop sees it in its next round
    _state.is_ringing = True
    try:
        get_notifier().ring(alias, queues)
    except Exception:
        logger.exception("The executor could not be rung; workers will find the work by looking.")
    finally:
        _state.is_ringing = False


_state = threading.local()


def is_ringing() -> bool:
    """Return whether this thread is ringing after a commit: who performs rows now is no worker, but a process that has
    saved something, such as a web process, whose queue performs at once what it is given."""
    return getattr(_state, "is_ringing", False)
