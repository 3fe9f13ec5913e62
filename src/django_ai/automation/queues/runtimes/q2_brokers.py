"""Q2 brokers that look for due rows while they poll: name one in ``Q_CLUSTER["broker_class"]``.

Q2's pusher process calls ``dequeue`` over and over. Ours returns the tasks of Q2's own queue and, when automation rows
are due, a doorbell task that was never stored. If there is neither, it sleeps until the next row is due, the next poll,
or a NOTIFY. So a timer of two seconds takes two seconds, without a schedule, and a lost message costs nothing.
Database and broker errors are caught here: Q2 itself would sleep ten seconds and restart the pusher, and its monitor
would die of one. A look that is not answered is given up (see ``patience``).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from django.db import Error as DatabaseTrouble
from django.utils import timezone
from django_q.brokers import Broker
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.models import OrmQ

from .poller import Poller, automation_alias, close_connection
from .q2 import doorbell

try:
    from django_q.brokers.redis_broker import Redis
    from redis.exceptions import RedisError
except ImportError:  # the extra "redis" is not installed
    Redis = None

logger = logging.getLogger("django_ai.automation")

Task = tuple[Any, str]


class Watching(Broker):  # type: ignore[misc]
    """What our brokers add to Q2's: a watch of their own, in each process. Q2's bounded queue between pusher and
    workers stops the trickle of doorbells when all are busy."""

    def __init__(self, list_key: str | None = None) -> None:
        super().__init__(list_key=list_key)
        self._begin()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._begin()

    def _begin(self) -> None:
        self.poller = Poller(Conf.POLL)

    def doorbells(self) -> tuple[list[Task], float]:
        """Return the doorbells to hand out now, and for how many seconds there is nothing to look at."""
        pause = self.poller.look()
        if pause:
            return [], pause
        self.poller.came_to(1)  # of what the workers find we hear nothing
        return [(None, doorbell())], 0.0

    def info(self) -> str:
        return f"{super().info()} with automation rows"


class OrmBroker(Watching, ORM):  # type: ignore[misc]
    """Q2's ORM broker, and a watch on the automation rows. LISTENs on PostgreSQL."""

    watches_database = True

    @staticmethod
    def get_connection(list_key: str | None = None) -> Any:
        """Return the queue; keep the connection open, where Q2 would open a new one at each poll."""
        return OrmQ.objects.using(Conf.ORM or "default")

    def dequeue(self) -> list[Task] | None:
        """Return stored tasks and doorbells; sleep until the next look where there are none."""
        tasks: list[Task] = []
        try:
            with self.poller.patience.bounded():
                tasks = self._stored()
            bells, pause = self.doorbells()
        except DatabaseTrouble as error:
            logger.warning("The broker could not read the database, and tries again: %s", error)
            self._recover()
            time.sleep(max(Conf.POLL, 0.5))
            return tasks or None
        if not tasks and not bells:
            self.poller.sleep(pause)
        return [*tasks, *bells] or None

    def _recover(self) -> None:
        for alias in {Conf.ORM or "default", automation_alias()}:
            close_connection(alias)

    def delete(self, task_id: Any) -> None:
        """Remove a task that was performed, once more where the connection broke. In vain the task comes again after
        Q2's ``retry``; Q2's monitor, which calls this, would die of the error."""
        try:
            try:
                super().delete(task_id)
            except DatabaseTrouble:
                self._recover()
                super().delete(task_id)
        except DatabaseTrouble as error:
            logger.warning("A task could not be acknowledged, and comes again: %s", error)
            self._recover()

    def _stored(self) -> list[Task]:
        now = timezone.now()
        queue = self.get_connection()
        found = []
        for task in queue.filter(key=self.list_key, lock__lt=now)[: Conf.BULK]:
            # Compare and set: another cluster may have been faster.
            if queue.filter(pk=task.pk, lock=task.lock).update(lock=self.timeout(task)):
                found.append((task.pk, task.payload))
        return found


if Redis is not None:

    class RedisBroker(Watching, Redis):  # type: ignore[misc]
        """Q2's Redis broker, and a watch on the automation rows. Works on when Redis is down or flushed."""

        watches_database = False

        def dequeue(self) -> list[Task] | None:
            """Return a queued task and doorbells; block on Redis until the next look where there are none."""
            bells, pause = self._bells()
            if bells:
                return bells
            try:
                task = self.connection.blpop(self.list_key, max(pause, 0.01))
            except RedisError as error:
                logger.warning("Redis does not answer; automations run on, other tasks wait: %s", error)
                time.sleep(max(pause, 0.05))
                return None
            return [(None, task[1])] if task else None

        def _bells(self) -> tuple[list[Task], float]:
            try:
                return self.doorbells()
            except DatabaseTrouble as error:
                logger.warning("The broker could not read the database, and tries again: %s", error)
                self.poller.recover()
                return [], max(Conf.POLL, 0.5)


def __getattr__(name: str) -> Any:
    if name == "RedisBroker":
        raise ImportError("RedisBroker needs the Redis client: pip install 'django-ai-automation[redis]'.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
