"""System checks of the ground floor: settings, database, queue."""

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
            raise SettingsError(f"AUTOMATION['CONTEXT_CODEC'] ({conf().CONTEXT_CODEC!r}) cannot read what it wrote.")
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


def check_apps(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [
        Error(f"{name!r} is not in INSTALLED_APPS.", hint=HOW_TO_INSTALL, id="automation.E016")
        for name in missing_apps()
    ]


def check_runtime(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """``check --deploy``: somebody has chosen what performs the work, and that is no web process."""
    chosen = conf().RUNTIME if not conf_module.problems(getattr(settings, "AUTOMATION", {})) else "?"
    if chosen == "inline":
        said = "AUTOMATION['RUNTIME'] is 'inline': web requests perform everybody's work, and timers wait for one."
    elif not chosen and not apps.is_installed("django_q"):
        said = (
            "No runtime is named, and Django-Q2 is not installed: only manage.py automation_worker performs the work."
        )
    else:
        return []
    hint = "Set AUTOMATION['RUNTIME'] to 'worker' (and run automation_worker), 'q2', 'celery' or 'tasks'."
    return [Warning(said, hint=hint, id="automation.W012")]


def check_surroundings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """What of the project around it an automation cannot live with: naive moments, psycopg2. Opens no connection."""
    found: list[CheckMessage] = []
    if not settings.USE_TZ:
        found.append(
            Error(
                "USE_TZ is False: timers, leases and the dates of events need moments that have a time zone.",
                hint="Set USE_TZ = True. TIME_ZONE stays what it is, and says which day a date is.",
                id="automation.E013",
            )
        )
    alias = alias_of(Worker)
    connection: Any = connections[alias]
    if connection.vendor == "postgresql" and connection.Database.__name__ == "psycopg2":
        found.append(
            Error(
                f"Database {alias!r}, which holds the automation tables, is used by way of psycopg2, with "
                "which atomic steps and callbacks fail.",
                hint="Install psycopg 3, which Django prefers where both are there: pip install 'psycopg[binary]'.",
                id="automation.E014",
            )
        )
    if connection.vendor == "sqlite" and connection.settings_dict.get("ATOMIC_REQUESTS") and conf().SQLITE_TUNING:
        found.append(
            Warning(
                f"ATOMIC_REQUESTS is on for database {alias!r}, which is SQLite: each request takes the one write lock "
                "as it begins, those too that only read, and all of them wait for each other and for the workers.",
                hint=(
                    "Leave ATOMIC_REQUESTS off on SQLite (a save and its events are one transaction anyway), or mark "
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
            "Q_CLUSTER names no broker of django_ai.automation, so timers are looked at once a minute.",
            hint="Set Q_CLUSTER['broker_class'] = 'django_ai.automation.queues.runtimes.q2_brokers.OrmBroker' "
            "(or RedisBroker).",
            id="automation.I004",
        )
    ]


KEY_LENGTH, KEY_VARIETY, KEY_OF_STARTPROJECT = 50, 5, "django-insecure-"
"""What ``check --deploy`` of Django asks of a key (security.W009)."""


def check_secret_key(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Q2's tasks are signed pickles: who can guess the key and write to the queue runs code in the workers.

    Silent under DEBUG: there the key that ``startproject`` made is in order.
    """
    if not apps.is_installed("django_q") or settings.DEBUG:
        return []
    key = str(settings.SECRET_KEY)
    is_long = len(key) >= KEY_LENGTH and len(set(key)) >= KEY_VARIETY
    if is_long and not key.startswith(KEY_OF_STARTPROJECT):
        return []
    return [
        Warning(
            "SECRET_KEY is easy to guess, and Django-Q2 runs whatever is signed with it.",
            hint=(
                f"Use a secret one of at least {KEY_LENGTH} characters, {KEY_VARIETY} of them different, that does not "
                f"begin with {KEY_OF_STARTPROJECT!r}; django.core.management.utils.get_random_secret_key() makes one."
            ),
            id="automation.W007",
        )
    ]


def check_queue_times(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """What Q2 does with a long task: kill its worker after ``timeout``, hand it out again after ``retry``."""
    if not apps.is_installed("django_q"):
        return []
    cluster = getattr(settings, "Q_CLUSTER", {})
    retry, timeout = cluster.get("retry", 60), cluster.get("timeout")
    found: list[CheckMessage] = []
    if timeout is not None and retry <= timeout:
        found.append(
            Warning(
                f"Q_CLUSTER['retry'] ({retry} s) is not above Q_CLUSTER['timeout'] ({timeout} s): Q2 starts a task a "
                "second time while the first still runs. Automations are safe by their leases; other tasks are not.",
                hint=f"Set Q_CLUSTER['retry'] to more than {timeout}.",
                id="automation.W010",
            )
        )
    longest = doorbell_timeout()
    if retry <= longest and conf().RUNTIME in ("", "q2") and not watches_database(cluster.get("broker_class")):
        found.append(
            Warning(
                f"Q_CLUSTER['retry'] ({retry} s) is not above the {longest} s that a worker may take for a doorbell, "
                f"with the longest step ({longest_timeout()}): Q2 sends a second worker after it, for nothing.",
                hint=(
                    f"Set Q_CLUSTER['retry'] to more than {longest}, or Q_CLUSTER['broker_class'] to "
                    "'django_ai.automation.queues.runtimes.q2_brokers.OrmBroker', which stores no doorbells."
                ),
                id="automation.W011",
            )
        )
    return found


def check_database(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Runs with ``check --database``: MariaDB's isolation, and that all automation tables live in one database."""
    models: list[type[Model]] = [*wakeables(), Worker]
    aliases = {alias_of(model) for model in models}
    found: list[CheckMessage] = []
    if len(aliases) > 1:
        found.append(
            Error(
                f"The automation tables are spread over the databases {sorted(aliases)}.",
                hint="Route all apps of django_ai.automation to one database: what they promise needs one transaction.",
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
                        f"Database {alias!r} uses the isolation level {level!r}.",
                        hint="Set OPTIONS['isolation_level'] to 'read committed', Django's default.",
                        id="automation.E006",
                    )
                )
    return found
