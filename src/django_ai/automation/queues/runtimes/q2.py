"""The Django-Q2 runtime: how its cluster is notified that work is due.

With a broker of ours the cluster polls for due rows itself: the doorbell is a NOTIFY on PostgreSQL, the commit itself
on SQLite, and on MariaDB there is none. With any other broker a doorbell task is queued. A doorbell task saves no
result; its arguments are a task queue, here the name of a cluster other than the default one, and from a broker of ours
the names of the lanes that are due.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.utils import timezone
from django.utils.module_loading import import_string

from ...conf import conf
from ...db.notifications import notify
from ..drain import drain
from ..heartbeat import register_worker
from ..registry import longest_timeout
from .task_queues import arguments_of, served_by, task_queues_of

TASKS = "django_ai.automation.queues.runtimes.tasks"
DOORBELL = "django_ai.automation.queues.runtimes.tasks.drain_due"


def doorbell_timeout() -> int:
    """Return the ``timeout`` of a doorbell task, after which Q2 kills its worker: longer than any step may take."""
    return int((longest_timeout() + conf().DRAIN_BUDGET).total_seconds()) + 30


def within_timeout(budget: timedelta) -> timedelta:
    """Return ``budget``, or less if Q2 would kill a scheduled task that takes so long."""
    if not apps.is_installed("django_q"):
        return budget
    from django_q.conf import Conf

    return min(budget, timedelta(seconds=Conf.TIMEOUT) / 2) if Conf.TIMEOUT else budget


def doorbell(cluster: str = "", due: Collection[str] = ()) -> str:
    """Return a signed doorbell task that is not stored, in the form in which a broker passes tasks to the cluster.
    ``due``: the names of lanes that are due."""
    from django_q.humanhash import uuid
    from django_q.signing import SignedPackage

    _, tag = uuid()
    task: dict[str, Any] = {
        "id": tag,
        "name": "automations",
        "func": DOORBELL,
        "args": (cluster, ",".join(due)) if due else arguments_of(cluster),
        "kwargs": {},
        "started": timezone.now(),
        "save": False,
        "timeout": doorbell_timeout(),
    }
    package: str = SignedPackage.dumps(task)
    return package


def register_at_doorbell(sender: Any, func: Any, task: dict[str, Any], **kwargs: Any) -> None:
    """Register a process of the cluster as a worker when it starts one of ``tasks``. Receiver of Q2's signal."""
    if getattr(func, "__module__", "") == TASKS and not task.get("sync"):
        register_worker("q2", **served_by(*task.get("args", ())[:1] or ("",)))


def connect_registration() -> None:
    """Connect ``register_at_doorbell`` if Q2 is installed."""
    if apps.is_installed("django_q"):
        import_string("django_q.signals.pre_execute").connect(
            register_at_doorbell, dispatch_uid="django_ai.automation.worker_status"
        )


class Q2Notifier:
    """Rings the Django-Q2 cluster."""

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        from django_q.conf import Conf
        from django_q.tasks import async_task

        if Conf.SYNC:
            drain()
            return
        if watches_database(Conf.BROKER_CLASS):
            notify(alias, queues)
            return
        for cluster in task_queues_of(queues):
            options = {"save": False, "timeout": doorbell_timeout(), **({"cluster": cluster} if cluster else {})}
            async_task(DOORBELL, *arguments_of(cluster), q_options=options)


def watches_database(broker_class: str | None) -> bool:
    """Return whether a broker of this class polls for due rows itself."""
    return bool(broker_class) and getattr(import_string(str(broker_class)), "watches_database", False)
