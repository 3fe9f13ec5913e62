"""The Celery runtime: a doorbell task, the notifier that sends it, and a dispatcher in each worker.

Nothing depends on what a broker keeps: no ETA, no redelivery, no result. Each worker runs a ``Dispatcher`` in a thread
of its main process. So plain ``celery -A project worker`` fires timers on time without beat, and a lost doorbell is
sent again. Forks wait while that thread uses a connection. The only argument of the task is a task queue: a forged,
stale or duplicate task can only perform rows that are due.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Collection
from typing import Any

from celery import current_app, shared_task
from celery.signals import worker_process_shutdown, worker_ready, worker_shutdown
from kombu.pools import producers

from ..heartbeat import register_worker
from ..worker_status import worker_status
from . import tasks
from .dispatcher import Dispatcher
from .q2 import doorbell_timeout
from .task_queues import arguments_of, served_by, task_queues_of

logger = logging.getLogger("django_ai.automation")

BROKER_TIMEOUT_SECONDS = 1.0
"""How long sending a doorbell may wait for the broker. A web request waits for it, too."""
RING_COOLDOWN_SECONDS = 5.0
"""How long a process sends no doorbell after the broker did not answer. The dispatcher of a worker sends it instead."""
TRANSPORT_OPTIONS = {
    # The first two limit the retries and waits of kombu itself, six seconds by default. Redis reads the next two, AMQP
    # the last two; each ignores the other's. A broker that accepts a connection and never answers counts as down.
    "max_retries": 0,
    "connect_retries_timeout": BROKER_TIMEOUT_SECONDS,
    "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
    "socket_timeout": BROKER_TIMEOUT_SECONDS,
    "read_timeout": BROKER_TIMEOUT_SECONDS,
    "write_timeout": BROKER_TIMEOUT_SECONDS,
}
DOORBELL_EXPIRY_SECONDS = 3600
"""Age at which Celery discards a doorbell that no worker has received, for instance because none was running."""
TASK_OPTIONS: dict[str, Any] = {"ignore_result": True, "acks_late": False, "max_retries": 0, "serializer": "json"}


@shared_task(name="django_ai.automation.drain_due", bind=True, **TASK_OPTIONS)  # type: ignore[untyped-decorator]
def drain_due(task: Any, task_queue: str = "") -> None:
    """Perform the rows that are due and that ``task_queue`` serves."""
    _register(task, task_queue)
    tasks.drain_due(task_queue)


def _register(task: Any, task_queue: str) -> None:
    """Register this process as a worker if Celery has delivered the task to it."""
    if not (task.request.called_directly or task.request.is_eager):
        register_worker("celery", **served_by(task_queue))


def send(task: Any, task_queue: str = "") -> None:
    """Send the task to a Celery queue (empty: to the one that Celery chooses). Raises the error of the broker's client
    after two seconds at most."""
    app = current_app
    if app.conf.task_always_eager:
        task.apply_async(arguments_of(task_queue))
        return
    connection = app.connection_for_write(connect_timeout=BROKER_TIMEOUT_SECONDS, transport_options=TRANSPORT_OPTIONS)
    limit = doorbell_timeout()
    with producers[connection].acquire(block=True, timeout=BROKER_TIMEOUT_SECONDS) as producer:
        task.apply_async(
            arguments_of(task_queue),
            producer=producer,
            **({"queue": task_queue} if task_queue else {}),
            # Retry once: the broker may have closed an idle connection.
            retry=True,
            retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
            expires=DOORBELL_EXPIRY_SECONDS,
            time_limit=limit,
            soft_time_limit=limit,
        )


class CeleryNotifier:
    """Sends the doorbell through Celery's broker.

    After a failure it sends nothing for ``RING_COOLDOWN_SECONDS``. So while the broker is down, a web process loses a
    second now and then, not on every request.
    """

    def __init__(self) -> None:
        self._silent_until = 0.0

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            for task_queue in task_queues_of(queues):
                send(drain_due, task_queue)
        except Exception as error:
            self._silent_until = time.monotonic() + RING_COOLDOWN_SECONDS
            logger.warning(
                "Could not reach Celery's broker; the dispatcher of a worker will send the doorbell: %s: %s",
                type(error).__name__,
                error,
            )


class ForkGuard:
    """A lock that the dispatcher's thread holds while it uses something that a fork must not copy.

    Celery forks at any time: to replace a process of its pool that died or that has reached its limit of tasks. A fork
    waits for the lock, for ``MAX_FORK_DELAY_SECONDS`` at most.
    """

    MAX_FORK_DELAY_SECONDS = 5.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_held_by_fork = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def install(self) -> None:
        """Make every later fork of this process wait for the lock."""
        os.register_at_fork(
            before=self.before, after_in_parent=self.after_in_parent, after_in_child=self.after_in_child
        )

    def before(self) -> None:
        self._is_held_by_fork = self._lock.acquire(timeout=self.MAX_FORK_DELAY_SECONDS)

    def after_in_parent(self) -> None:
        if self._is_held_by_fork:
            self._is_held_by_fork = False
            self._lock.release()

    def after_in_child(self) -> None:
        self._lock, self._is_held_by_fork = threading.Lock(), False


_dispatcher: Dispatcher | None = None
_fork_guard: ForkGuard | None = None


def start_dispatcher(**kwargs: Any) -> None:
    """Start the dispatcher in the main process of a Celery worker that is ready."""
    global _dispatcher, _fork_guard
    if _fork_guard is None:
        _fork_guard = ForkGuard()
        _fork_guard.install()
    if _dispatcher is None:
        _dispatcher = Dispatcher(lambda task_queue: send(drain_due, task_queue), guard=_fork_guard)
        threading.Thread(target=_dispatcher.run, name="automation-dispatcher", daemon=True).start()


def stop_dispatcher(**kwargs: Any) -> None:
    """Stop the dispatcher when the worker shuts down."""
    global _dispatcher
    if _dispatcher is not None:
        _dispatcher.stop()
        _dispatcher = None


def report_shutdown(**kwargs: Any) -> None:
    """Record that this process stops: one of the pool, or the main one where that performs tasks itself."""
    worker_status.sign_off()


worker_process_shutdown.connect(report_shutdown, dispatch_uid="django_ai.automation.worker_status")
worker_shutdown.connect(report_shutdown, dispatch_uid="django_ai.automation.worker_status")
worker_ready.connect(start_dispatcher, dispatch_uid="django_ai.automation.dispatcher")
worker_shutdown.connect(stop_dispatcher, dispatch_uid="django_ai.automation.dispatcher")
