"""Django-Q2 with its own ORM broker: a ``qcluster`` with two workers."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import django

from bench.peers.logbook import note
from bench.peers.peer import TEXT, Peer


def one(number: int, text: str) -> None:
    note(number)


class Driver(Peer):
    def __init__(self, variant: str, processes: int) -> None:
        super().__init__(variant, processes)
        os.environ["DJANGO_SETTINGS_MODULE"] = "bench.peers.settings_q2"
        os.environ["PEERS_PROCESSES"] = str(processes)
        django.setup()

    def describe(self) -> dict[str, Any]:
        from django.conf import settings

        return {
            "versions": {
                "django-q2": version("django-q2"),
                "Django": django.get_version(),
                "Python": platform.python_version(),
            },
            "command": "qcluster",
            "settings": f"Q_CLUSTER = {settings.Q_CLUSTER}",
            "notes": "CONN_MAX_AGE = 600. save_limit 0 keeps all results, as the others do. The default, 250, is much "
            "slower as soon as there are so many.",
        }

    def prepare(self) -> None:
        from django.core.management import call_command

        call_command("migrate", verbosity=0)

    def clear(self) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE django_q_ormq, django_q_task")
            cursor.execute("VACUUM ANALYZE")

    def start(self, number: int) -> None:
        from django_q.tasks import async_task

        async_task("bench.peers.drivers.django_q2.one", number, TEXT)

    def backlog(self, numbers: range, *, five: bool = False) -> None:
        from django.db import transaction

        with transaction.atomic():
            super().backlog(numbers, five=five)

    def workers(self) -> list[list[str]]:
        return [[sys.executable, "-m", "django", "qcluster"]]

    def unfinished(self) -> int:
        from django_q.models import OrmQ

        return OrmQ.objects.count()

    def fill(self, number: int) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_q_task (id, name, func, args, kwargs, started, stopped, success, attempt_count) "
                "SELECT md5(n::text), 'one', 'bench.peers.drivers.django_q2.one', %s, '', at, at, true, 1 "
                "FROM (SELECT n, now() - interval '30 days' * random() AS at FROM generate_series(1, %s) n) moments",
                [TEXT, number],
            )
            cursor.execute("VACUUM ANALYZE")
