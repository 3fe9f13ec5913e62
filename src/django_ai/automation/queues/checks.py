"""System checks of the queues layer: settings, runtime, database, broker."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import connections
from django.db.models import Model

from .. import conf as conf_module
from ..conf import conf
from ..db.writer import alias_of
from ..exceptions import SettingsError
from ..installation import HOW_TO_INSTALL, missing_apps
from ..state.encryption import codec
from .lanes import check_queue_names
from .models import Worker
from .notifier import get_notifier
from .registry import longest_timeout, wakeables
from .runtimes.q2 import doorbell_timeout, watches_database


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = [
        Error(problem, hint="Correct AUTOMATION in the settings.", id="automation.E001")
        for problem in conf_module.problems(getattr(settings, "AUTOMATION", {}))
    ]
    if found:
        return found
    try:
        get_notifier()
    except SettingsError as error:
        found.append(Error(str(error), hint="Correct AUTOMATION['RUNTIME'].", id="automation.E002"))
    try:
        with_codec = codec()
        if with_codec is not None and with_codec.decode(with_codec.encode("{}")) != "{}":
            raise SettingsError(
                f"AUTOMATION['CONTEXT_CODEC'] ({conf().CONTEXT_CODEC!r}) cannot decode what it has encoded."
            )
    except SettingsError as error:
        hint = "FernetCodec needs the extra: pip install 'django-ai-automation[encryption]'."
        found.append(Error(str(error), hint=hint, id="automation.E008"))
    if conf().RUNTIME == "q2" and not apps.is_installed("django_q"):
        found.append(
            Error(
                "AUTOMATION['RUNTIME'] is 'q2', but Django-Q2 is not installed.",
                hint="Add 'django_q' to INSTALLED_APPS.",
                id="automation.E003",
            )
        )
    return found


TELEMETRY_APP = "django_ai.automation.contrib.telemetry"


def check_apps(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = [
        Warning(f"{name!r} is not in INSTALLED_APPS.", hint=HOW_TO_INSTALL, id="automation.W016")
        for name in missing_apps()
    ]
    has_problems = conf_module.problems(getattr(settings, "AUTOMATION", {}))
    if not has_problems and conf().TELEMETRY and not apps.is_installed(TELEMETRY_APP):
        found.append(
            Warning(
                "AUTOMATION['TELEMETRY'] has no effect, because the app that connects it is not installed.",
                hint=f"Add {TELEMETRY_APP!r} to INSTALLED_APPS.",
                id="automation.W020",
            )
        )
    return found


def check_runtime(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """``check --deploy``: a runtime is chosen, and it is not the web process."""
    runtime = conf().RUNTIME if not conf_module.problems(getattr(settings, "AUTOMATION", {})) else "?"
    if runtime == "inline":
        message = (
            "AUTOMATION['RUNTIME'] is 'inline': web requests perform all due work, and timers wait for the next one."
        )
    elif not runtime and not apps.is_installed("django_q"):
        message = (
            "AUTOMATION['RUNTIME'] is not set and Django-Q2 is not installed, so only manage.py automation_worker "
            "performs the work."
        )
    else:
        return []
    hint = "Set AUTOMATION['RUNTIME'] to 'worker' (and run automation_worker), 'q2', 'celery' or 'tasks'."
    return [Warning(message, hint=hint, id="automation.W012")]


def check_queues(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """``AUTOMATION["QUEUES"]`` names queues that exist, for a runtime that has task queues."""
    served = getattr(settings, "AUTOMATION", {})
    if conf_module.problems(served) or not conf().QUEUES:
        return []
    found: list[CheckMessage] = []
    runtime = conf().RUNTIME or ("q2" if apps.is_installed("django_q") else "worker")
    if runtime in ("worker", "inline", "silent"):
        found.append(
            Warning(
                f"AUTOMATION['QUEUES'] has no effect: the runtime {runtime!r} has no task queues.",
                hint="Remove it, and start automation_worker with --queues or --except-queues.",
                id="automation.W017",
            )
        )
    for name in conf().QUEUES:
        try:
            check_queue_names([name], ())
        except ValueError as error:
            hint = "Correct AUTOMATION['QUEUES'], or declare queue= in the code."
            found.append(Warning(f"AUTOMATION['QUEUES']: {error}", hint=hint, id="automation.W018"))
    cluster = getattr(settings, "Q_CLUSTER", {}).get("name", "default")
    if runtime == "q2" and cluster in conf().QUEUES.values():
        found.append(
            Error(
                f"AUTOMATION['QUEUES'] names {cluster!r}, the default cluster, which would then serve no other queue.",
                hint="Leave its queues out: the default cluster serves every queue that the setting does not name.",
                id="automation.E019",
            )
        )
    return found


def check_surroundings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Settings of the project with which automations fail or are slow. Opens no connection."""
    found: list[CheckMessage] = []
    if not settings.USE_TZ:
        found.append(
            Error(
                "USE_TZ is False, but timers, leases and the dates of events need aware datetimes.",
                hint="Set USE_TZ = True. TIME_ZONE stays as it is and defines on which day a datetime falls.",
                id="automation.E013",
            )
        )
    alias = alias_of(Worker)
    connection: Any = connections[alias]
    if connection.vendor == "postgresql" and connection.Database.__name__ == "psycopg2":
        found.append(
            Error(
                f"Database {alias!r}, which holds the automation tables, uses psycopg2, with which atomic steps and "
                "callbacks fail.",
                hint="Install psycopg 3, which Django prefers if both are installed: pip install 'psycopg[binary]'.",
                id="automation.E014",
            )
        )
    if connection.vendor == "sqlite" and connection.settings_dict.get("ATOMIC_REQUESTS") and conf().SQLITE_TUNING:
        found.append(
            Warning(
                f"ATOMIC_REQUESTS is on for database {alias!r}, which is SQLite: every request, even a reading one, "
                "takes the write lock when it starts, so requests wait for each other and for the workers.",
                hint=(
                    "Turn ATOMIC_REQUESTS off on SQLite (a save and its events are one transaction anyway), or mark "
                    "views that only read with @transaction.non_atomic_requests."
                ),
                id="automation.W015",
            )
        )
    return found


def check_broker(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if not apps.is_installed("django_q"):
        return []
    cluster = getattr(settings, "Q_CLUSTER", {})
    if cluster.get("broker_class") or cluster.get("sync"):
        return []
    return [
        Info(
            "Q_CLUSTER['broker_class'] is no broker of django_ai.automation, so timers fire only once a minute.",
            hint="Set Q_CLUSTER['broker_class'] = 'django_ai.automation.queues.runtimes.q2_brokers.OrmBroker' "
            "(or RedisBroker).",
            id="automation.I004",
        )
    ]


MIN_KEY_LENGTH, MIN_DISTINCT_CHARACTERS, STARTPROJECT_KEY_PREFIX = 50, 5, "django-insecure-"
"""The criteria of Django's own check (security.W009)."""


def check_secret_key(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Q2's tasks are signed pickles: anyone who knows the key and can write to the queue can run code in the workers.

    Silent under DEBUG, where the key that ``startproject`` generates is sufficient.
    """
    if not apps.is_installed("django_q") or settings.DEBUG:
        return []
    key = str(settings.SECRET_KEY)
    is_long = len(key) >= MIN_KEY_LENGTH and len(set(key)) >= MIN_DISTINCT_CHARACTERS
    if is_long and not key.startswith(STARTPROJECT_KEY_PREFIX):
        return []
    return [
        Warning(
            "SECRET_KEY is easy to guess, and Django-Q2 runs any task that is signed with it.",
            hint=(
                f"Use a key of at least {MIN_KEY_LENGTH} characters, {MIN_DISTINCT_CHARACTERS} of them distinct, "
                f"that does not begin with {STARTPROJECT_KEY_PREFIX!r}. "
                "django.core.management.utils.get_random_secret_key() generates one."
            ),
            id="automation.W007",
        )
    ]


def check_queue_times(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Q2 kills the worker of a long task after ``timeout``, and delivers the task again after ``retry``."""
    if not apps.is_installed("django_q"):
        return []
    cluster = getattr(settings, "Q_CLUSTER", {})
    retry, timeout = cluster.get("retry", 60), cluster.get("timeout")
    found: list[CheckMessage] = []
    if timeout is not None and retry <= timeout:
        found.append(
            Warning(
                f"Q_CLUSTER['retry'] ({retry} s) is not greater than Q_CLUSTER['timeout'] ({timeout} s), so Q2 starts "
                "a task again while it still runs. Leases protect automations from that, but not other tasks.",
                hint=f"Set Q_CLUSTER['retry'] to more than {timeout}.",
                id="automation.W010",
            )
        )
    longest = doorbell_timeout()
    if retry <= longest and conf().RUNTIME in ("", "q2") and not watches_database(cluster.get("broker_class")):
        found.append(
            Warning(
                f"Q_CLUSTER['retry'] ({retry} s) is not greater than the {longest} s that a doorbell task may take "
                f"(the longest step takes {longest_timeout()}), so Q2 delivers it to a second worker needlessly.",
                hint=(
                    f"Set Q_CLUSTER['retry'] to more than {longest}, or Q_CLUSTER['broker_class'] to "
                    "'django_ai.automation.queues.runtimes.q2_brokers.OrmBroker', which stores no doorbell tasks."
                ),
                id="automation.W011",
            )
        )
    return found


def check_database(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Runs with ``check --database``: MariaDB's isolation level, and that one database holds all automation tables."""
    models: list[type[Model]] = [*wakeables(), Worker]
    aliases = {alias_of(model) for model in models}
    found: list[CheckMessage] = []
    if len(aliases) > 1:
        found.append(
            Error(
                f"The automation tables are spread over the databases {sorted(aliases)}.",
                hint="Route all apps of django_ai.automation to one database: their guarantees need one transaction.",
                id="automation.E005",
            )
        )
    for alias in aliases & set(databases or ()):
        connection = connections[alias]
        if connection.vendor == "mysql":
            level = connection.settings_dict.get("OPTIONS", {}).get("isolation_level", "read committed")
            if level is None or level.lower() != "read committed":
                found.append(
                    Error(
                        f"Database {alias!r} uses the isolation level {level!r}; automations need 'read committed'.",
                        hint="Set OPTIONS['isolation_level'] to 'read committed', Django's default.",
                        id="automation.E006",
                    )
                )
    return found
