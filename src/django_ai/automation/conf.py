"""Every setting of the package: typed, read lazily, from one dictionary.

A project writes ``AUTOMATION = {"LEASE": timedelta(seconds=20)}`` in its settings; what it leaves out has the
default below. Nothing is read at import, so tests may override settings. Unknown names and values of a wrong type are
refused by ``manage.py check`` and at first use, with the nearest name that exists.
"""

from __future__ import annotations

import dataclasses
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
    ``Executor`` class; empty: Q2 where it is installed, else ``"worker"``."""
    LEASE: timedelta = timedelta(seconds=10)
    """How long a worker may be silent before others take its row."""
    HEARTBEAT: timedelta = timedelta(seconds=3)
    """How often a worker renews the leases of the work in its hands."""
    MAX_LOSSES: int = 3
    """After this many lost leases without progress a row is parked."""
    STEP_TIMEOUT: timedelta = timedelta(minutes=5)
    """How long a step or callback may run before its lease is no longer renewed, unless it says otherwise."""
    DRAIN_BUDGET: timedelta = timedelta(seconds=1)
    """How long one doorbell keeps a queue's worker before it looks at the queue again."""
    BATCH: int = 20
    """How many due rows a worker takes at most in one claim."""
    GRACE: timedelta = timedelta(hours=24)
    """How long after its date a scheduled event may still occur when its condition turns true."""
    MAX_DEPTH: int = 50
    """How long a chain of events, runs and agents that cause each other may get."""
    MAX_JSON_BYTES: int = 1_000_000
    """The largest Context or payload, as UTF-8 JSON."""
    CONTEXT_CODEC: str = ""
    """The dotted path of a ``queues.sealing.Codec`` that encrypts Contexts in the database; empty: they are plain."""
    CONTEXT_KEYS: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """Secrets of ``FernetCodec``: the first encrypts, all decrypt; none: ``SECRET_KEY`` and its fallbacks."""
    RETENTION: timedelta = timedelta(days=30)
    """How long what is finished is kept, where the next six do not say otherwise."""
    RETENTION_EVENTS: timedelta | None = None
    """How long events are kept that are over for good: of deleted entities, and earlier ones of living entities."""
    RETENTION_EXECUTIONS: timedelta | None = None
    """How long finished calls of functions and handlers are kept."""
    RETENTION_RUNS: timedelta | None = None
    """How long finished runs of workflows are kept, with their history."""
    RETENTION_HISTORY: timedelta | None = None
    """How long the steps of runs that live on are kept, but for what their runs still need."""
    RETENTION_AGENTS: timedelta | None = None
    """How long ended agents are kept, with their mailboxes."""
    RETENTION_SIGNALS: timedelta | None = None
    """How long delivered signals are kept."""
    CLEANUP_BUDGET: timedelta = timedelta(minutes=5)
    """How long ``cleanup_old()`` may take, which removes at once what maintenance removes bite by bite."""
    RECONCILE_HORIZON: timedelta = timedelta(minutes=15)
    """How far ahead the reconciliation looks for dates that were changed behind Django's back."""
    SQLITE_TUNING: bool = True
    """Give SQLite connections write-ahead logging, IMMEDIATE transactions and a patient busy timeout."""

    def kept(self, kind: str) -> timedelta:
        """Return how long finished rows of a kind (``"RUNS"``) are kept."""
        found: timedelta | None = getattr(self, f"RETENTION_{kind}")
        return self.RETENTION if found is None else found


_FIELDS = {
    # What is None by default is a duration.
    field.name: timedelta if field.default is None else type(field.default)
    for field in dataclasses.fields(Conf)
}


def problems(values: Any) -> list[str]:
    """Say what is wrong with a value of ``settings.AUTOMATION``: one sentence a problem, none if all is well."""
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
                # Without the value: these are secrets.
                found.append(f"AUTOMATION[{name!r}] must be a list of texts.")
        elif type(value) is not _FIELDS[name]:
            found.append(
                f"AUTOMATION[{name!r}] must be a {_FIELDS[name].__name__}, not {type(value).__name__} ({value!r})."
            )
        elif isinstance(value, timedelta) and value <= timedelta(0):
            found.append(f"AUTOMATION[{name!r}] must be longer than zero, not {value!r}.")
        elif type(value) is int and value < 1:
            found.append(f"AUTOMATION[{name!r}] must be at least 1, not {value!r}.")
    if not found:
        conf = Conf(**values)
        if conf.HEARTBEAT * 2 > conf.LEASE:
            found.append(
                f"AUTOMATION['HEARTBEAT'] ({conf.HEARTBEAT}) must be at most half of AUTOMATION['LEASE'] "
                f"({conf.LEASE}), or one late beat costs a worker its work."
            )
    return found


@lru_cache(maxsize=1)
def conf() -> Conf:
    """Return the settings in force.

    Raises ``SettingsError`` where ``settings.AUTOMATION`` is wrong.
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
