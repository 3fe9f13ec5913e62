"""``manage.py automation_health``: for monitors, for liveness probes of containers (``--liveness``), and for operators
who ask why nothing happens."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError
from django.utils import timezone

from ... import liveness
from ...operations.explanations import explain, explainable_kinds
from ...operations.failed_and_parked import MAX_COUNTED_ROWS, FailedAndParked, count_failed_and_parked
from ...operations.health import DEFAULT_TOLERANCE, Health, check_health

EXIT_UNHEALTHY = 1
EXIT_DATABASE_FAILURE = 2
EXIT_OVER_LIMIT = 3


class Command(BaseCommand):
    help = (
        "Report whether due work is overdue while no worker makes progress with it, and how many rows have failed or "
        "are parked. Exit code 0: healthy; 1: not healthy, or with --explain a row waits for nothing; 2: the database "
        "could not be queried; 3: more rows have failed or are parked than --max-failed or --max-parked allows. With "
        "--liveness: whether the worker with that heartbeat file is alive (0) or not (1), without the database."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--overdue",
            type=float,
            default=DEFAULT_TOLERANCE.total_seconds(),
            metavar="SECONDS",
            help="how long rows may be overdue without progress before that is unhealthy (default: 90)",
        )
        parser.add_argument("--max-failed", type=int, metavar="N", help="exit with 3 if more than N rows have failed")
        parser.add_argument("--max-parked", type=int, metavar="N", help="exit with 3 if more than N rows are parked")
        parser.add_argument("--json", action="store_true", help="print one line of JSON")
        parser.add_argument(
            "--explain", action="store_true", help="list every unfinished row with the one thing that it waits for"
        )
        parser.add_argument(
            "--kind",
            action="append",
            default=[],
            help="with --explain: only rows of this kind, such as 'workflow run'; may be repeated",
        )
        parser.add_argument(
            "--liveness",
            metavar="FILE",
            help="only check whether the worker processes that were started here with --heartbeat-file FILE are alive",
        )
        parser.add_argument(
            "--max-age",
            type=float,
            default=liveness.MAX_AGE_SECONDS,
            metavar="SECONDS",
            help="with --liveness: maximum age of the file (default: 30)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self._validate(options)
        if options["liveness"]:
            self._report_liveness(options)
            return
        now = timezone.now()
        limits = [limit for limit in (options["max_failed"], options["max_parked"]) if limit is not None]
        try:
            health = check_health(now, timedelta(seconds=options["overdue"]))
            counts = count_failed_and_parked(max([MAX_COUNTED_ROWS, *limits]))
            if options["json"]:
                self.stdout.write(json.dumps(health.as_dict() | counts.as_dict()))
            else:
                self.stdout.write(f"{health} {counts}")
            stuck = self._explain(now, options) if options["explain"] else 0
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(
                f"The database could not be queried: {error}", returncode=EXIT_DATABASE_FAILURE
            ) from error
        if stuck:
            raise CommandError(
                f"{stuck} row(s) wait for nothing, so nothing will wake them: report a bug.", returncode=EXIT_UNHEALTHY
            )
        if not health.is_healthy:
            raise CommandError(_advice(health), returncode=EXIT_UNHEALTHY)
        if exceeded := _exceeded_limits(counts, options):
            raise CommandError(
                f"{'; '.join(exceeded)}. manage.py automation_resume --failed lists and resumes them.",
                returncode=EXIT_OVER_LIMIT,
            )

    def _validate(self, options: dict[str, Any]) -> None:
        for name in ("overdue", "max_age"):
            if options[name] <= 0:
                raise CommandError(f"--{name.replace('_', '-')}={options[name]:g} must be positive.")
        for name in ("max_failed", "max_parked"):
            if options[name] is not None and options[name] < 0:
                raise CommandError(f"--{name.replace('_', '-')}={options[name]} must not be negative.")
        known = explainable_kinds()
        for kind in options["kind"]:
            if kind not in known:
                near = get_close_matches(kind, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Kinds: {', '.join(map(repr, known))}."
                raise CommandError(f"--kind: unknown kind {kind!r}. {hint}")

    def _report_liveness(self, options: dict[str, Any]) -> None:
        found = liveness.check_liveness(options["liveness"], options["max_age"])
        if options["json"]:
            self.stdout.write(json.dumps({"alive": found.is_alive, "seconds_since_touched": found.ages}))
        if not found.is_alive:
            raise CommandError(str(found), returncode=EXIT_UNHEALTHY)
        if not options["json"]:
            self.stdout.write(str(found))

    def _explain(self, now: datetime, options: dict[str, Any]) -> int:
        """Print the explanations; return how many rows wait for nothing."""
        stuck = 0
        for each in explain(now, options["kind"]):
            stuck += not each.waits_for
            if options["json"]:
                line = {"kind": each.kind, "pk": each.pk, "row": each.row, "status": each.status}
                self.stdout.write(json.dumps({**line, "waits_for": each.waits_for or None}))
            else:
                self.stdout.write(str(each))
        return stuck


def _advice(health: Health) -> str:
    if not health.workers:
        return "Work is overdue and no worker is alive: start the workers."
    unserved = [each for each in health.overdue if not each.workers]
    if unserved:
        what = sorted(f"{each.worker_kind} of the queue {each.queue!r}" for each in unserved)
        return f"Work is overdue in queues that no live worker polls: start a worker for {', '.join(what)}."
    return (
        "Work is overdue and no live worker makes progress with it: restart the workers. A supervisor can do that "
        "automatically."
    )


def _exceeded_limits(counts: FailedAndParked, options: dict[str, Any]) -> list[str]:
    exceeded = []
    for name, by_kind, what in (("failed", counts.failed, "have failed"), ("parked", counts.parked, "are parked")):
        limit, count = options[f"max_{name}"], sum(by_kind.values())
        if limit is not None and count > limit:
            exceeded.append(f"{count} row(s) {what}, and --max-{name}={limit}")
    return exceeded
