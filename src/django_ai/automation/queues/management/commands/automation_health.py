"""``manage.py automation_health``: for a monitor, for a container's liveness probe (``--liveness``), and for a person
who asks why nothing happens."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from ... import liveness
from ...operations.health import (
    COUNTED,
    OVERDUE,
    FailedAndParked,
    Health,
    count_failed_and_parked,
    examine,
    explain,
    known_kinds,
)

UNHEALTHY = 1
UNANSWERED = 2
TROUBLED = 3


class Command(BaseCommand):
    help = (
        "Say whether due work is overdue while no worker makes progress with it, and how much has failed or is parked. "
        "Exit code 0: healthy; 1: not, or with --explain a row waits for nothing; 2: the database could not be asked; "
        "3: more has failed or is parked than --max-failed or --max-parked. With --liveness: whether the worker with "
        "that heartbeat file is alive (0) or not (1), without asking the database."
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
        parser.add_argument(
            "--max-failed", type=int, metavar="N", help="exit with 3 if more rows than this have failed for good"
        )
        parser.add_argument("--max-parked", type=int, metavar="N", help="exit with 3 if more rows than this are parked")
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
        parser.add_argument(
            "--liveness",
            metavar="FILE",
            help="ask only whether the processes of the worker that runs here with --heartbeat-file FILE are alive",
        )
        parser.add_argument(
            "--max-age",
            type=float,
            default=liveness.MAX_AGE_SECONDS,
            metavar="SECONDS",
            help="with --liveness: how long ago the file may have been touched (default: 30)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._refuse(options)
        if options["liveness"]:
            self._say_liveness(options)
            return
        now = timezone.now()
        limits = [limit for limit in (options["max_failed"], options["max_parked"]) if limit is not None]
        try:
            health = examine(now, timedelta(seconds=options["overdue"]))
            counts = count_failed_and_parked(max([COUNTED, *limits]))
            if options["json"]:
                self.stdout.write(json.dumps(health.as_dict() | counts.as_dict()))
            else:
                self.stdout.write(f"{health} {counts}")
            hanging = self._explain(now, options) if options["explain"] else 0
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database could not be asked: {error}", returncode=UNANSWERED) from error
        if hanging:
            raise CommandError(f"{hanging} rows wait for nothing, so nothing will wake them.", returncode=UNHEALTHY)
        if not health.is_healthy:
            raise CommandError(_advice(health), returncode=UNHEALTHY)
        if beyond := _beyond(counts, options):
            raise CommandError(
                f"{'; '.join(beyond)}. manage.py automation_resume --failed lists them, and lets them go on.",
                returncode=TROUBLED,
            )

    def _refuse(self, options: dict[str, Any]) -> None:
        for name in ("overdue", "max_age"):
            if options[name] <= 0:
                raise CommandError(f"--{name.replace('_', '-')}={options[name]:g} must be more than zero seconds.")
        for name in ("max_failed", "max_parked"):
            if options[name] is not None and options[name] < 0:
                raise CommandError(f"--{name.replace('_', '-')}={options[name]} must not be less than zero.")
        unknown = [each for each in options["kind"] if each not in known_kinds()]
        if unknown:
            raise CommandError(f"--kind: there is no {unknown[0]!r}; there are {', '.join(map(repr, known_kinds()))}.")

    def _say_liveness(self, options: dict[str, Any]) -> None:
        found = liveness.look(options["liveness"], options["max_age"])
        if options["json"]:
            self.stdout.write(json.dumps({"alive": found.is_alive, "seconds_since_touched": found.ages}))
        if not found.is_alive:
            raise CommandError(str(found), returncode=UNHEALTHY)
        if not options["json"]:
            self.stdout.write(str(found))

    def _explain(self, now: datetime, options: dict[str, Any]) -> int:
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


def _advice(health: Health) -> str:
    if not health.workers:
        return "Work is overdue and no worker is alive: start the workers."
    alone = sorted({each.queue for each in health.overdue if not each.workers})
    if alone:
        return f"Work is overdue in queues that no living worker looks at: start one for {', '.join(alone)}."
    return "Work is overdue and nobody makes progress with it: restart the workers (their supervisor can do that)."


def _beyond(counts: FailedAndParked, options: dict[str, Any]) -> list[str]:
    """Say which limits are passed."""
    found = []
    for name, found_of, what in (("failed", counts.failed, "have failed"), ("parked", counts.parked, "are parked")):
        limit, count = options[f"max_{name}"], sum(found_of.values())
        if limit is not None and count > limit:
            found.append(f"{count} rows {what}, and --max-{name}={limit}")
    return found
