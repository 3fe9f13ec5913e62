"""Task queues: the queues of a runtime, and which of them serves which named queue (``AUTOMATION["QUEUES"]``).

A task queue is a Celery queue, a cluster of Django-Q2, or a ``queue_name`` of Django tasks. Its workers wait for
doorbells there. The default task queue, whose name here is empty, serves every queue that the setting does not name;
without the setting it serves all. A doorbell tells its task queue as its only argument, so a forged or stale one can
only perform rows that are due.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypedDict

from ...conf import conf
from ..lanes import ANY_QUEUE, shown_name
from ..registry import kinds


class ServedQueues(TypedDict, total=False):
    """The queues that a task queue serves, as arguments of ``drain``, ``Poller`` and ``register_worker``."""

    queues: Collection[str]
    except_queues: Collection[str]


def task_queues() -> list[str]:
    """Return all task queues, the default one first."""
    return ["", *sorted(set(conf().QUEUES.values()))]


def served_by(task_queue: str) -> ServedQueues:
    """Return the queues that ``task_queue`` serves: none if the setting does not name it (any longer)."""
    served = conf().QUEUES
    if task_queue:
        return {"queues": sorted(queue for queue, name in served.items() if name == task_queue)}
    return {"except_queues": sorted(served)} if served else {}


def arguments_of(task_queue: str) -> tuple[str, ...]:
    """Return the arguments of a doorbell for ``task_queue``."""
    return (task_queue,) if task_queue else ()


def doorbell_names(task_queue: str) -> list[str]:
    """Return names with which ``Notifier.ring`` rings for ``task_queue`` and for no other; empty: for all."""
    served = conf().QUEUES
    if task_queue:
        return [f"{kind}:{queue}" for queue, name in served.items() if name == task_queue for kind in kinds()]
    return kinds() if served else []  # those of the queue "default"


def task_queues_of(names: Collection[str]) -> list[str]:
    """Return the task queues to ring for a doorbell of these names (``Lane.name``; empty: any)."""
    served = conf().QUEUES
    if not served:
        return [""]
    queues = {name.partition(":")[2] for name in names}
    if not names or ANY_QUEUE in queues:
        return task_queues()
    return sorted({served.get(shown_name(queue), "") for queue in queues})
