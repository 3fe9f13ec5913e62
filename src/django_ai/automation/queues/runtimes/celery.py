"""The Celery runtime: a doorbell, the notifier that sends it, and a dispatcher in each worker.

Nothing depends on what a broker keeps: no ETA, no redelivery, no result. Each worker runs a ``Dispatcher``, one thread
of its main process, so plain ``celery -A project worker`` keeps the time of all timers without beat, and rings again
for a doorbell that was lost; while the thread has a connection in use, nothing forks. The tasks take no arguments:
forged, stale or delivered twice, a task can only look for due rows.
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

from ..heartbeat import enlist
from ..worker_status import worker_status
from . import tasks
from .dispatcher import Dispatcher
from .q2 import doorbell_timeout

logger = logging.getLogger("django_ai.automation")

PATIENCE = 1.0
"""Seconds that a ring may wait for the broker: a web request waits with it."""
SULK = 5.0
"""Seconds in which a process does not ring again after the broker did not answer: the clock of a worker will."""
HASTE = {
    # What kombu waits and retries by itself, six seconds else; then two for Redis and two for AMQP, whom the others'
    # do not concern: a broker that accepts and says nothing is as bad as one that is down.
    "max_retries": 0,
    "connect_retries_timeout": PATIENCE,
    "socket_connect_timeout": PATIENCE,
    "socket_timeout": PATIENCE,
    "read_timeout": PATIENCE,
    "write_timeout": PATIENCE,
}
FORGOTTEN = 3600
"""Seconds after which a message that nobody took is thrown away unread: there may have been no worker for a while."""
OPTIONS: dict[str, Any] = {"ignore_result": True, "acks_late": False, "max_retries": 0, "serializer": "json"}


@shared_task(name="django_ai.automation.drain_due", bind=True, **OPTIONS)  # type: ignore[untyped-decorator]
def drain_due(task: Any) -> None:
    """Perform what is due."""
    _enlist(task)
    tasks.drain_due()


def _enlist(task: Any) -> None:
    """Make a process that Celery has given a doorbell a worker."""
    if not (task.request.called_directly or task.request.is_eager):
        enlist("celery")


def send(task: Any) -> None:
    """Send a task without arguments. Raises what the broker's client raises, after at most a second or two."""
    app = current_app
    if app.conf.task_always_eager:
        task.apply_async()
        return
    connection = app.connection_for_write(connect_timeout=PATIENCE, transport_options=HASTE)
    limit = doorbell_timeout()
    with producers[connection].acquire(block=True, timeout=PATIENCE) as producer:
        task.apply_async(
            producer=producer,
            # Once more, because a connection that rested may be found closed.
            retry=True,
            retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
            expires=FORGOTTEN,
            time_limit=limit,
            soft_time_limit=limit,
        )


class CeleryNotifier:
    """Sends the doorbell through Celery's broker. After a failure it is silent for a few seconds, so that a broker that
    is down costs the requests of a web process a second now and then, and not each of them."""

    def __init__(self) -> None:
        self._silent_until = 0.0

    def ring(self, alias: str, queues: Collection[str] = ()) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            send(drain_due)
        except Exception as error:
            self._silent_until = time.monotonic() + SULK
            logger.warning(
                "Celery's broker could not be reached; the clock of a worker will ring: %s: %s",
                type(error).__name__,
                error,
            )


class Forks:
    """Held by the clock while it has in hand what a fork must not copy; who forks waits for it, for a while.

    Celery forks at any time: for a process of its pool that died, or had its share of tasks.
    """

    LONGEST_WAIT = 5.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waited = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def watch(self) -> None:
        """Make every later fork of this process wait."""
        os.register_at_fork(
            before=self.before, after_in_parent=self.after_in_parent, after_in_child=self.after_in_child
        )

    def before(self) -> None:
        self._waited = self._lock.acquire(timeout=self.LONGEST_WAIT)

    def after_in_parent(self) -> None:
        if self._waited:
            self._waited = False
            self._lock.release()

    def after_in_child(self) -> None:
        self._lock, self._waited = threading.Lock(), False


_dispatcher: Dispatcher | None = None
_forks: Forks | None = None


def start_clock(**kwargs: Any) -> None:
    """Start the clock in the main process of a Celery worker that is ready."""
    global _dispatcher, _forks
    if _forks is None:
        _forks = Forks()
        _forks.watch()
    if _dispatcher is None:
        _dispatcher = Dispatcher(lambda: send(drain_due), guard=_forks)
        threading.Thread(target=_dispatcher.run, name="automation-clock", daemon=True).start()


def stop_clock(**kwargs: Any) -> None:
    """Stop the clock when the worker ends."""
    global _dispatcher
    if _dispatcher is not None:
        _dispatcher.stop()
        _dispatcher = None


def dismiss(**kwargs: Any) -> None:
    """Say that a process of the pool ends, or the main one where that performs tasks itself."""
    worker_status.dismiss()


worker_process_shutdown.connect(dismiss, dispatch_uid="django_ai.automation.presence")
worker_shutdown.connect(dismiss, dispatch_uid="django_ai.automation.presence")
worker_ready.connect(start_clock, dispatch_uid="django_ai.automation.clock")
worker_shutdown.connect(stop_clock, dispatch_uid="django_ai.automation.clock")
