"""``AutomationFilter``: adds to each log record the ids of what runs now.

Put it on a *handler*: a filter of a logger sees no record of the loggers below it.
"""

from __future__ import annotations

import logging

from ...queues.observing import current_subject
from .facts import Facts, facts_of


class AutomationFilter(logging.Filter):
    """Add to each record what the engine works at in this thread, and let every record pass. Makes no query.

    ``record.automation`` is always there: ``"workflow:12:charge"``, or empty where nothing runs. The others are there
    only where they are known, so that a JSON formatter writes nothing in vain: ``automation_kind``, ``automation_id``,
    ``automation_name``, ``automation_part`` (the step or handler), ``automation_attempt``, ``automation_run`` (the
    agent of a handler), ``automation_key`` (the idempotency key), ``automation_causes`` (a list, nearest first),
    ``automation_depth``, ``automation_entity`` and ``automation_queue``.

    Example:
        Name the step in each line::

            LOGGING = {
                "version": 1,
                "filters": {"automation": {"()": "django_ai.automation.contrib.telemetry.logs.AutomationFilter"}},
                "formatters": {"line": {"format": "%(levelname)s [%(automation)s] %(message)s"}},
                "handlers": {
                    "console": {
                        "class": "logging.StreamHandler",
                        "filters": ["automation"],
                        "formatter": "line",
                    },
                },
                "root": {"handlers": ["console"], "level": "INFO"},
            }
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes to ``record``.

        Args:
            record: The ``logging.LogRecord``.

        Returns:
            True.

        Example:
            Called by ``logging``::

                AutomationFilter().filter(record)
        """
        if getattr(record, "automation", ""):
            return True  # of an earlier handler, perhaps in another thread
        record.automation = ""
        subject = current_subject()
        if subject is not None:
            facts = facts_of(subject.row, subject.current)
            record.automation = facts.label
            record.__dict__.update(attributes_of(facts, subject.current.key if subject.current is not None else ""))
        return True


def attributes_of(facts: Facts, key: str = "") -> dict[str, object]:
    """Return what is known, as attributes of a record."""
    found: dict[str, object] = {
        "kind": facts.kind,
        "id": facts.id,
        "name": facts.name,
        "part": facts.part,
        "attempt": facts.attempt,
        "run": facts.run,
        "key": key,
        "causes": list(facts.causes),
        "depth": facts.depth,
        "entity": facts.entity,
        "queue": facts.queue,
    }
    return {f"automation_{name}": value for name, value in found.items() if value}
