"""Every setting of the package: typed, read lazily, from one dictionary.

A project writes ``AUTOMATION = {"LEASE": timedelta(seconds=20)}`` in its settings; every other setting has the default
below. Nothing is read at import, so tests may override settings. ``manage.py check`` and the first use refuse unknown
names, with a suggestion, and values of a wrong type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed

from .exceptions import SettingsError


@dataclass(frozen=True, slots=True)
class Conf:
    """The settings of ``AUTOMATION``, with their defaults."""

    RUNTIME: str = ""
    """``"q2"``, ``"worker"``, ``"celery"``, ``"tasks"``, ``"inline"``, ``"silent"``, or the dotted path of an
    ``Notifier`` class; empty: Q2 if it is installed, else ``"worker"``."""
    QUEUES: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """For each named queue the task queue whose workers perform its rows: a Celery queue, a cluster of Django-Q2, or a
    ``queue_name`` of Django tasks. Queues that are not named belong to the default task queue."""
    LEASE: timedelta = timedelta(seconds=10)
    """How long a lease lasts: after that long without a heartbeat, another worker may claim the row."""
    HEARTBEAT: timedelta = timedelta(seconds=3)
    """How often a worker renews the leases of the rows that it is performing."""
    MAX_LOSSES: int = 3
    """After how many lost leases without progress a row is parked."""
    STEP_TIMEOUT: timedelta = timedelta(minutes=5)
    """How long a step, callback or handler may run, unless it declares another ``timeout=``."""
    DRAIN_BUDGET: timedelta = timedelta(seconds=1)
    """How long one doorbell keeps a worker of a task queue before it returns to its queue."""
    BATCH: int = 20
    """How many due rows one claim leases at most."""
    GRACE: timedelta = timedelta(hours=24)
    """How long after its date a scheduled event may still occur when its condition becomes true."""
    MAX_DEPTH: int = 50
    """The maximum length of a chain of events, runs and agents that cause each other."""
    MAX_JSON_BYTES: int = 1_000_000
    """The maximum size of a Context or payload, as UTF-8 JSON."""
    HISTORY_CONTEXT_BYTES: int = 16_000
    """Up to which size the history of a run keeps its Context before each visit, for ``engine.rewind``; 0: never."""
    CONTEXT_CODEC: str = ""
    """The dotted path of a ``state.encryption.Codec`` that encrypts Contexts in the database; empty: no encryption."""
    CONTEXT_KEYS: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """Secrets of ``FernetCodec``: the first encrypts, all decrypt; none: ``SECRET_KEY`` and its fallbacks."""
    RETENTION: timedelta = timedelta(days=30)
    """How long finished rows are kept, unless one of the next six settings overrides it."""
    RETENTION_EVENTS: timedelta | None = None
    """How long events are kept that can never occur again: those of deleted entities, and past ones of others."""
    RETENTION_EXECUTIONS: timedelta | None = None
    """How long finished executions of callbacks and handlers are kept."""
    RETENTION_RUNS: timedelta | None = None
    """How long finished workflow runs are kept, with their history."""
    RETENTION_HISTORY: timedelta | None = None
    """How long steps of unfinished runs are kept, except those that the run still needs."""
    RETENTION_AGENTS: timedelta | None = None
    """How long ended agents are kept, with their mailboxes."""
    RETENTION_SIGNALS: timedelta | None = None
    """How long delivered signals are kept."""
    RETENTION_ACTIONS: timedelta = timedelta(days=365)
    """How long it is kept who did what."""
    CLEANUP_BUDGET: timedelta = timedelta(minutes=5)
    """How long ``cleanup_old()`` may take. It prunes immediately what maintenance prunes in time slices."""
    RECONCILE_HORIZON: timedelta = timedelta(minutes=15)
    """How far ahead the reconciliation searches for dates that were changed behind Django's back."""
    CAPTURE: bool = False
    """Capture the writes of all models with events that send no signals, unless a definition says ``capture=False``."""
    TELEMETRY: tuple[str, ...] = ()
    """The extras that ``django_ai.automation.contrib.telemetry`` connects: ``"alerts"``, ``"prometheus"``,
    ``"opentelemetry"``, ``"sentry"``."""
    METRICS_TOKEN: str = dataclasses.field(default="", repr=False)
    """The bearer token with which Prometheus reads the metrics; empty: only staff may."""
    ALERT_MAIL: bool = False
    """Mail alerts to ``ADMINS``."""
    ALERT_WEBHOOK: str = ""
    """The URL to which alerts are posted; empty: none."""
    ALERT_WEBHOOK_SECRET: str = dataclasses.field(default="", repr=False)
    """The secret that signs them by the Standard Webhooks specification; empty: they are not signed."""
    ALERT_INTERVAL: timedelta = timedelta(minutes=15)
    """How much time passes at least between two alerts about rows of one kind with the same error."""
    ALERT_TIMEOUT: timedelta = timedelta(seconds=5)
    """How long a webhook may take to connect and to answer, and how long a process waits at its end for its alerts."""
    ALERT_CACHE: str = "default"
    """The cache in ``CACHES`` that remembers what was sent."""
    PREPARED_STATEMENTS: bool = True
    """Prepare the engine's own hot statements on PostgreSQL, except behind a pooler."""
    SQLITE_TUNING: bool = True
    """Give SQLite connections write-ahead logging, IMMEDIATE transactions and a long busy timeout."""

    def retention(self, kind: str) -> timedelta:
        """Return how long finished rows of a kind (``"RUNS"``) are kept."""
        override: timedelta | None = getattr(self, f"RETENTION_{kind}")
        return self.RETENTION if override is None else override


_FIELDS = {
    # A field whose default is None is a duration.
    field.name: timedelta if field.default is None else dict if field.name == "QUEUES" else type(field.default)
    for field in dataclasses.fields(Conf)
}

_SECRETS = {field.name for field in dataclasses.fields(Conf) if not field.repr}

_MAY_BE_ZERO = {"HISTORY_CONTEXT_BYTES"}


def problems(values: Any) -> list[str]:
    """Return the problems of a value of ``settings.AUTOMATION``, one sentence each."""
    if not isinstance(values, dict):
        return [f"AUTOMATION must be a dict of settings, not {type(values).__name__}."]
    found = []
    for name, value in values.items():
        if name not in _FIELDS:
            near = get_close_matches(str(name), _FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(_FIELDS)}."
            found.append(f"AUTOMATION has no setting {name!r}.{hint}")
        elif _FIELDS[name] is tuple:
            if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
                # Without the value, which may hold secrets.
                found.append(f"AUTOMATION[{name!r}] must be a list of strings.")
        elif _FIELDS[name] is dict:
            pairs = value.items() if isinstance(value, dict) else [(None, None)]
            if not all(isinstance(each, str) and each for pair in pairs for each in pair):
                found.append(f"AUTOMATION[{name!r}] must be a dict of names of queues to names of task queues.")
            elif "default" in value:
                found.append(f"AUTOMATION[{name!r}] names 'default', which the default task queue serves: remove it.")
        elif type(value) is not _FIELDS[name]:
            shown = "" if name in _SECRETS else f" ({value!r})"
            found.append(f"AUTOMATION[{name!r}] must be a {_FIELDS[name].__name__}, not {type(value).__name__}{shown}.")
        elif isinstance(value, timedelta) and value <= timedelta(0):
            found.append(f"AUTOMATION[{name!r}] must be positive, not {value!r}.")
        elif type(value) is int and value < (least := 0 if name in _MAY_BE_ZERO else 1):
            found.append(f"AUTOMATION[{name!r}] must be at least {least}, not {value!r}.")
    if not found:
        conf = Conf(**values)
        if conf.HEARTBEAT * 2 > conf.LEASE:
            found.append(
                f"AUTOMATION['HEARTBEAT'] ({conf.HEARTBEAT}) must be at most half of AUTOMATION['LEASE'] "
                f"({conf.LEASE}); otherwise a worker loses its leases after one late heartbeat."
            )
    return found


@lru_cache(maxsize=1)
def conf() -> Conf:
    """Return the current settings.

    Raises ``SettingsError`` if ``settings.AUTOMATION`` is invalid.
    """
    values = getattr(settings, "AUTOMATION", {})
    if found := problems(values):
        raise SettingsError(" ".join(found))
    cleaned: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
    return Conf(**cleaned)


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "AUTOMATION":
        conf.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_ai.automation.conf")
