"""Q2 brokers that also poll for due rows: name one in ``Q_CLUSTER["broker_class"]``.

Q2's pusher process calls ``dequeue`` in a loop. These brokers return the tasks of Q2's own queue and, when automation
rows are due, a doorbell task that is not stored. If there is neither, ``dequeue`` sleeps until the next row is due, the
next poll, a NOTIFY, or a commit on SQLite. So a timer of two seconds takes two seconds, without a schedule, and a lost
message costs nothing. ``dequeue`` and ``delete`` catch errors of the database and the broker: Q2 itself would sleep ten
seconds and restart the pusher, and its monitor process would end. A poll that gets no answer is abandoned (see
``query_timeout``).
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any

from django.db import Error as DatabaseFailure
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django_q.brokers import Broker
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.models import OrmQ

from ...db.prepared import prepared_cursor
from ..due import doorbells_of
from .poller import Poller, automation_alias, close_connection
from .q2 import doorbell
from .task_queues import served_by, task_queues

try:
    from django_q.brokers.redis_broker import Redis
    from redis.exceptions import RedisError
except ImportError:  # the extra "redis" is not installed
    Redis = None

logger = logging.getLogger("django_ai.automation")

Task = tuple[Any, str]


class PollingBroker(Broker):  # type: ignore[misc]
    """Base of both brokers: a broker with a ``Poller`` of its own in each process.

    The queue between Q2's pusher and its workers is bounded, so no doorbells pile up while all workers are busy.
    """

    def __init__(self, list_key: str | None = None) -> None:
        super().__init__(list_key=list_key)
        self._create_poller()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._create_poller()

    def _create_poller(self) -> None:
        # A cluster that the setting QUEUES does not name serves the queues that it does not name.
        self.cluster = self.list_key if self.list_key in task_queues() else ""
        self.poller = Poller(Conf.POLL, **served_by(self.cluster))

    def doorbells(self) -> tuple[list[Task], float]:
        """Return the doorbells to hand out now, and for how many seconds nothing is due."""
        pause = self.poller.seconds_until_due()
        if pause:
            return [], pause
        self.poller.record_performed(1)  # the workers do not report how many rows they found
        known = self.poller.take_known()
        return [(None, doorbell(self.cluster, doorbells_of(known.times) if known else ()))], 0.0

    def info(self) -> str:
        return f"{super().info()} with automation rows"


class OrmBroker(PollingBroker, ORM):  # type: ignore[misc]
    """Q2's ORM broker, which also polls for due rows. A commit wakes it on PostgreSQL and SQLite."""

    watches_database = True
    _is_ahead = False

    @staticmethod
    def get_connection(list_key: str | None = None) -> Any:
        """Return the queue. Keeps the connection open: Q2 would open a new one for each poll."""
        return OrmQ.objects.using(Conf.ORM or "default")

    def dequeue(self) -> list[Task] | None:
        """Return stored tasks and doorbells; if there are none, sleep until the next poll."""
        tasks: list[Task] = []
        try:
            # What a commit has rung for comes before Q2's own tasks, but not twice in a row.
            self._is_ahead = self.poller.has_heard and not self._is_ahead
            if not self._is_ahead:
                with self.poller.query_timeout.enforced():
                    tasks = self._fetch_stored()
            bells, pause = self.doorbells()
        except DatabaseFailure as error:
            logger.warning("The broker could not read the database and will retry: %s", error)
            self._reset_connections()
            time.sleep(max(Conf.POLL, 0.5))
            return tasks or None
        if not tasks and not bells:
            self.poller.sleep(pause)
        return [*tasks, *bells] or None

    def _reset_connections(self) -> None:
        for alias in {Conf.ORM or "default", automation_alias()}:
            close_connection(alias)

    def delete(self, task_id: Any) -> None:
        """Delete a performed task; retry once if the connection is broken.

        Never raises a database error: it would end Q2's monitor, which calls this. A task that could not be deleted is
        delivered again after Q2's ``retry``.
        """
        try:
            try:
                super().delete(task_id)
            except DatabaseFailure:
                self._reset_connections()
                super().delete(task_id)
        except DatabaseFailure as error:
            logger.warning("A task could not be deleted from the queue and will be delivered again: %s", error)
            self._reset_connections()

    def _fetch_stored(self) -> list[Task]:
        now = timezone.now()
        queue = self.get_connection()
        if not self._has_stored(connections[queue.db], now):
            return []
        found = []
        for task in queue.filter(key=self.list_key, lock__lt=now)[: Conf.BULK]:
            # Compare and set: another cluster may have taken the task already.
            if queue.filter(pk=task.pk, lock=task.lock).update(lock=self.timeout(task)):
                found.append((task.pk, task.payload))
        return found

    def _has_stored(self, connection: BaseDatabaseWrapper, now: datetime) -> bool:
        """Return whether there are tasks to fetch. An idle cluster asks several times a second: this takes a third of
        the time that compiling and executing Django's query takes."""
        table = connection.ops.quote_name(OrmQ._meta.db_table)
        key, lock = map(connection.ops.quote_name, ("key", "lock"))
        moment = connection.ops.adapt_datetimefield_value(now)
        with prepared_cursor(connection) as cursor:
            cursor.execute(f"SELECT 1 FROM {table} WHERE {key} = %s AND {lock} < %s LIMIT 1", [self.list_key, moment])
            return cursor.fetchone() is not None


if Redis is not None:

    class RedisBroker(PollingBroker, Redis):  # type: ignore[misc]
        """Q2's Redis broker, which also polls for due rows. Automations run on while Redis is down or flushed."""

        watches_database = False

        def dequeue(self) -> list[Task] | None:
            """Return doorbells or a queued task; if there are none, block on Redis until the next poll."""
            bells, pause = self._doorbells()
            if bells:
                return bells
            try:
                task = self.connection.blpop(self.list_key, max(pause, 0.01))
            except RedisError as error:
                logger.warning("Redis does not answer; automations continue, other tasks wait: %s", error)
                time.sleep(max(pause, 0.05))
                return None
            return [(None, task[1])] if task else None

        def _doorbells(self) -> tuple[list[Task], float]:
            try:
                return self.doorbells()
            except DatabaseFailure as error:
                logger.warning("The broker could not read the database and will retry: %s", error)
                self.poller.reset_connection()
                return [], max(Conf.POLL, 0.5)


def __getattr__(name: str) -> Any:
    if name == "RedisBroker":
        raise ImportError("RedisBroker needs the Redis client: pip install 'django-ai-automation[redis]'.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
