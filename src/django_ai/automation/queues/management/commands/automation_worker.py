"""``manage.py automation_worker``: performs what is due, without any queue beside the project's database."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...liveness import start_pulse
from ...registry import of_queues, wakeables
from ...runtimes.reloading import CODE_CHANGED, LONGEST_BACKOFF_SECONDS, CodeWatcher
from ...runtimes.supervisor import LONGEST_BACKOFF, Supervisor
from ...runtimes.worker import WorkerLoop


class Command(BaseCommand):
    help = (
        "Perform events, workflows and agents as they become due, until SIGTERM. Needs no queue: LISTENs on PostgreSQL "
        "and looks each second elsewhere."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--processes", type=int, default=1, metavar="N", help="how many work at once (default: 1)")
        parser.add_argument(
            "--queues",
            default="",
            metavar="NAMES",
            help="which kinds of rows to perform, with commas between them: events, callbacks, signals, workflows, "
            "agents, maintenance (default: all; maintenance is done in any case)",
        )
        parser.add_argument(
            "--poll",
            type=float,
            default=1.0,
            metavar="SECONDS",
            help="the longest time between two looks at the database (default: 1)",
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=25.0,
            metavar="SECONDS",
            help="how long the step in hand may go on after SIGTERM, before it is given back (default: 25)",
        )
        parser.add_argument(
            "--once", "--burst", action="store_true", help="perform what is due now and exit, for instance under cron"
        )
        parser.add_argument(
            "--heartbeat-file",
            metavar="FILE",
            help="touch FILE every few seconds while this worker is alive, for automation_health --liveness FILE; the "
            "second process touches FILE.2, and so on",
        )
        parser.add_argument(
            "--reload",
            action="store_true",
            help="for development: when a file of the code changes, finish the step under way and start again with "
            "the new code",
        )
        parser.add_argument("--lifeline", type=int, help="used by the supervisor for its children")
        parser.add_argument(
            "--no-maintenance",
            action="store_true",
            help="leave it to others to put right what changed behind Django's back and to remove what is old",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["processes"] < 1:
            raise CommandError(f"--processes={options['processes']} must be at least 1.")
        if options["poll"] <= 0:
            raise CommandError(f"--poll={options['poll']:g} must be more than zero seconds.")
        if options["grace"] < 0:
            raise CommandError(f"--grace={options['grace']:g} must not be less than zero seconds.")
        if options["once"] and options["heartbeat_file"]:
            raise CommandError("--once ends by itself: leave --heartbeat-file out.")
        if options["once"] and options["processes"] > 1:
            raise CommandError("--once works in one process: start the command several times instead.")
        if options["once"] and options["reload"]:
            raise CommandError("--once exits after the work that is due now: leave --reload out.")
        names = [name.strip() for name in options["queues"].split(",") if name.strip()]
        try:
            models = of_queues(names) if names else None
        except ValueError as error:
            raise CommandError(f"--queues: {error}") from error
        if not wakeables():
            raise CommandError("No app of django_ai.automation with rows is in INSTALLED_APPS: add its events app.")
        grace = timedelta(seconds=options["grace"])
        if options["once"] or options["lifeline"] is not None:
            shift = WorkerLoop(
                models=models,
                poll=options["poll"],
                grace=grace,
                maintenance=not options["no_maintenance"],
                lifeline=options["lifeline"],
            )
            if options["once"]:
                self.stdout.write(f"Performed {shift.burst()}.")
            else:
                start_pulse(options["heartbeat_file"])
                watcher = CodeWatcher()
                if options["reload"]:
                    watcher.start()
                shift.run()
                if watcher.has_changed:
                    sys.exit(CODE_CHANGED)
            return
        if options["verbosity"]:
            count, what = options["processes"], ", ".join(names) or "everything"
            self.stdout.write(f"{count} process(es) work on {what}. SIGTERM or Ctrl-C ends them in good order.")
            self.stdout.flush()
        supervisor = Supervisor(
            options["processes"],
            self._passed_on(names, options),
            grace,
            options["heartbeat_file"],
            LONGEST_BACKOFF_SECONDS if options["reload"] else LONGEST_BACKOFF,
        )
        if code := supervisor.run():
            raise CommandError(
                "Not every worker process ended by itself; its rows are free when their leases end.", returncode=code
            )

    def _passed_on(self, names: list[str], options: dict[str, Any]) -> list[str]:
        """Return the options for the children."""
        found = [
            "--skip-checks",
            "--poll",
            str(options["poll"]),
            "--grace",
            str(options["grace"]),
            "--verbosity",
            str(options["verbosity"]),
        ]
        if names:
            found += ["--queues", ",".join(names)]
        if options["no_maintenance"]:
            found.append("--no-maintenance")
        if options["reload"]:
            found.append("--reload")
        return found
