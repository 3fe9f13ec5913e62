"""``manage.py automation_health``: for a container's liveness probe, and for a person who asks why nothing happens."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from ...health import OVERDUE, examine, explain, known_kinds

UNHEALTHY = 1
UNANSWERED = 2


class Command(BaseCommand):
    help = (
        "Say whether due work is overdue while nobody makes progress. Exit code 0: healthy; 1: not, or with --explain "
        "a row waits for nothing; 2: the database could not be asked."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--overdue",
            type=float,
            default=OVERDUE.total_seconds(),
            metavar="SECONDS",
            help="how late a row may be, and how long ago the last progress, before that is an illness (default: 90)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON, one line")
        parser.add_argument(
            "--explain", action="store_true", help="list every unfinished row with the one thing that it waits for"
        )
        parser.add_argument(
            "--kind",
            action="append",
            default=[],
            help="with --explain: only rows of this kind, as 'workflow run'; may be given again",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["overdue"] <= 0:
            raise CommandError(f"--overdue={options['overdue']:g} must be more than zero seconds.")
        unknown = [each for each in options["kind"] if each not in known_kinds()]
        if unknown:
            raise CommandError(f"--kind: there is no {unknown[0]!r}; there are {', '.join(map(repr, known_kinds()))}.")
        now = timezone.now()
        try:
            health = examine(now, timedelta(seconds=options["overdue"]))
            self.stdout.write(json.dumps(health.as_dict()) if options["json"] else str(health))
            hanging = self._explain(now, options) if options["explain"] else 0
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database could not be asked: {error}", returncode=UNANSWERED) from error
        if hanging:
            raise CommandError(f"{hanging} rows wait for nothing, so nothing will wake them.", returncode=UNHEALTHY)
        if not health.is_healthy:
            raise CommandError(
                "Work is overdue and nobody makes progress: restart the workers (their supervisor can do that).",
                returncode=UNHEALTHY,
            )

    def _explain(self, now: Any, options: dict[str, Any]) -> int:
        """Print the explanations; return how many rows hang."""
        hanging = 0
        for each in explain(now, options["kind"]):
            hanging += not each.waits_for
            if options["json"]:
                line = {"kind": each.kind, "pk": each.pk, "row": each.row, "status": each.status}
                self.stdout.write(json.dumps({**line, "waits_for": each.waits_for or None}))
            else:
                self.stdout.write(str(each))
        return hanging
