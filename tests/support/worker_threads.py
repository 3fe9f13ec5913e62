"""The threads of a worker process, and what its main thread does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django_ai.automation.agents.models import HandlerExecution
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.threads import WorkerThreads
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.polling import until

MANY = 6


class Worker:
    """What the main thread of a worker does: it offers while rows are due."""

    def __init__(self, limit: int, max_connections: int) -> None:
        self.is_stopping = False
        self.performed: list[int] = []
        self.threads = WorkerThreads(
            limit,
            max_connections,
            drain=lambda **options: drain(heartbeat=True, **options),
            is_stopping=lambda: self.is_stopping,
            on_performed=self.performed.append,
        )

    def perform(self, seconds: float = 60) -> None:
        """Offer until no run, callback and handler is unfinished."""
        until(self._offer, seconds, "The end of the work")

    def _offer(self) -> bool:
        self.threads.raise_failure()
        self.threads.hand_on()
        self.threads.offer()
        pending = [
            WorkflowRun.objects.unfinished(),
            CallbackExecution.objects.filter(status="pending"),
            HandlerExecution.objects.filter(status="pending"),
        ]
        return not any(each.exists() for each in pending)


@contextmanager
def worker(limit: int = MANY, max_connections: int = 20) -> Iterator[Worker]:
    running = Worker(limit, max_connections)
    try:
        yield running
    finally:
        running.is_stopping = True
        running.threads.finish(lambda: False)
