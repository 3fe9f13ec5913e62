"""This package: ``automation_worker --processes 2``, and a ``qcluster`` with two workers."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import django

from bench.peers.peer import TEXT, Peer

TABLES = (
    "automation_workflows_stepexecution, automation_workflows_signal, automation_workflows_workflowrun, django_q_ormq"
)


class Driver(Peer):
    def __init__(self, variant: str, processes: int) -> None:
        super().__init__(variant, processes)
        os.environ["DJANGO_SETTINGS_MODULE"] = "bench.peers.settings_ours"
        os.environ["BENCH_DATABASE"] = os.environ["PGDATABASE"]
        os.environ["BENCH_RUNTIME"] = variant
        django.setup()

    def describe(self) -> dict[str, Any]:
        from bench.settings import Q_CLUSTER
        from django_ai.automation import __version__

        worker = {"command": f"automation_worker --processes {self.processes}", "settings": "defaults"}
        cluster = {"command": "qcluster", "settings": f"Q_CLUSTER = {Q_CLUSTER}"}
        return {
            "versions": {
                "django-ai-automation": __version__,
                "Django": django.get_version(),
                "Python": platform.python_version(),
            },
            **(worker if self.variant == "worker" else cluster),
            "notes": "CONN_MAX_AGE = 600. The history of steps is kept, as by default.",
        }

    def prepare(self) -> None:
        from django.core.management import call_command

        call_command("migrate", verbosity=0, run_syncdb=True)

    def clear(self) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {TABLES} CASCADE")
            cursor.execute("VACUUM ANALYZE")

    def start(self, number: int) -> None:
        from django_ai.automation import engine

        engine.start("peers_one", number=number, text=TEXT)

    def start_five(self, number: int) -> None:
        from django_ai.automation import engine

        engine.start("peers_five", number=number, text=TEXT)

    def backlog(self, numbers: range, *, five: bool = False) -> None:
        from django.db import transaction

        with transaction.atomic():
            super().backlog(numbers, five=five)

    def workers(self) -> list[list[str]]:
        manage = [sys.executable, "-m", "django"]
        if self.variant == "q2":
            return [[*manage, "qcluster"]]
        return [[*manage, "automation_worker", "--processes", str(self.processes), "--verbosity", "0"]]

    def unfinished(self) -> int:
        from django_ai.automation.workflows.models import WorkflowRun

        # By the index of due rows: these runs do not wait, and counting by status would read all finished ones.
        return WorkflowRun.objects.filter(wake_at__isnull=False).count()

    def fill(self, number: int) -> None:
        from django.db import connection

        from bench.growth import finish

        finish(number)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
