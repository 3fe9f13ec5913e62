"""``manage.py automation_worker``: performs due rows, with the project's database as its only queue."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...lanes import check_queue_names, look_for_lanes
from ...liveness import start_liveness_file
from ...registry import due_times, kinds, models_of_kinds, wakeables
from ...runtimes.reloading import CODE_CHANGED, RELOAD_BACKOFF_SECONDS, CodeWatcher
from ...runtimes.supervisor import MAX_BACKOFF_SECONDS, Supervisor
from ...runtimes.worker import WorkerLoop


class Command(BaseCommand):
    help = (
        "Perform events, workflows and agents as they become due, until SIGTERM. Needs no queue: a commit wakes it "
        "on PostgreSQL and SQLite, and on MariaDB it polls every second."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--processes", type=int, default=1, metavar="N", help="number of worker processes (default: 1)"
        )
        parser.add_argument(
            "--concurrency",
            type=int,
            default=1,
            metavar="N",
            help="how many rows each process may perform beside each other, in threads, while their code waits for "
            "slow services, best with atomic=False (default: 1)",
        )
        parser.add_argument(
            "--connections",
            type=int,
            default=20,
            metavar="N",
            help="with --concurrency: how many database connections the threads of one process may have open at the "
            "same time; each process has up to four more (default: 20)",
        )
        parser.add_argument(
            "--queues",
            default="",
            metavar="NAMES",
            help="comma-separated queues to perform, as in queue='reports' of the code (default: all). Rows whose code "
            "names no queue, events, signals, limits and maintenance belong to the queue 'default'",
        )
        parser.add_argument(
            "--except-queues", default="", metavar="NAMES", help="comma-separated queues to leave to other workers"
        )
        parser.add_argument(
            "--kinds",
            default="",
            metavar="NAMES",
            help="comma-separated kinds of rows to perform: events, schedules, callbacks, signals, workflows, agents, "
            "limits, "
            "maintenance (default: all; maintenance is always included, see --no-maintenance)",
        )
        parser.add_argument(
            "--poll",
            type=float,
            default=1.0,
            metavar="SECONDS",
            help="longest interval between two polls of the database (default: 1)",
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=25.0,
            metavar="SECONDS",
            help="how long the running step may continue after SIGTERM before its row is released (default: 25)",
        )
        parser.add_argument(
            "--once",
            "--burst",
            action="store_true",
            help="perform the rows that are due now and exit, for instance under cron",
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
            help="for development: when a source file changes, finish the running step and restart with the new code",
        )
        parser.add_argument(
            "--lifeline", type=int, help="internal: file descriptor that is closed when the supervisor ends"
        )
        parser.add_argument("--started", type=float, default=0.0, help="internal: when the process was started")
        parser.add_argument(
            "--no-maintenance",
            action="store_true",
            help="do not reconcile events and do not prune old rows in this worker; another worker must do it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["processes"] < 1:
            raise CommandError(f"--processes={options['processes']} must be at least 1.")
        for option in ("concurrency", "connections"):
            if options[option] < 1:
                raise CommandError(f"--{option}={options[option]} must be at least 1.")
        if options["once"] and options["concurrency"] > 1:
            raise CommandError("--once performs one row after the other: remove --concurrency.")
        if options["poll"] <= 0:
            raise CommandError(f"--poll={options['poll']:g} must be positive.")
        if options["grace"] < 0:
            raise CommandError(f"--grace={options['grace']:g} must not be negative.")
        if options["once"] and options["heartbeat_file"]:
            raise CommandError(
                "--heartbeat-file cannot be combined with --once, which exits when the due rows are done."
            )
        if options["once"] and options["processes"] > 1:
            raise CommandError("--once runs in one process: remove --processes, or start the command several times.")
        if options["once"] and options["reload"]:
            raise CommandError("--reload cannot be combined with --once, which exits when the due rows are done.")
        names = {name: _names(options[name]) for name in ("queues", "except_queues", "kinds")}
        if names["queues"] and names["except_queues"]:
            raise CommandError("--queues and --except-queues cannot be combined: give one of them.")
        try:
            models = models_of_kinds(names["kinds"]) if names["kinds"] else None
        except ValueError as error:
            raise CommandError(f"--kinds: {error}") from error
        for option in ("queues", "except_queues"):
            _check_queues(option, names[option])
        if not wakeables():
            raise CommandError(
                "INSTALLED_APPS has no app of django_ai.automation with rows to perform: add its events app."
            )
        grace = timedelta(seconds=options["grace"])
        if options["once"] or options["lifeline"] is not None:
            loop = WorkerLoop(
                models=models,
                queues=names["queues"] or None,
                except_queues=names["except_queues"],
                poll=options["poll"],
                grace=grace,
                maintenance=not options["no_maintenance"],
                lifeline=options["lifeline"],
                concurrency=options["concurrency"],
                max_connections=options["connections"],
            )
            if options["once"]:
                self.stdout.write(f"Performed {loop.burst()}.")
            else:
                start_liveness_file(options["heartbeat_file"])
                watcher = CodeWatcher(options["started"])
                if options["reload"]:
                    watcher.start()
                loop.run()
                if watcher.has_changed:
                    sys.exit(CODE_CHANGED)
            return
        if options["verbosity"]:
            count, what = options["processes"], _description(names)
            self.stdout.write(f"{count} process(es) perform {what}. SIGTERM or Ctrl-C stops them gracefully.")
            self.stdout.flush()
        supervisor = Supervisor(
            options["processes"],
            self._child_options(names, options),
            grace,
            options["heartbeat_file"],
            RELOAD_BACKOFF_SECONDS if options["reload"] else MAX_BACKOFF_SECONDS,
        )
        if code := supervisor.run():
            raise CommandError(
                "Not every worker process ended in time. Its rows are claimed again when their leases expire.",
                returncode=code,
            )

    def _child_options(self, names: dict[str, list[str]], options: dict[str, Any]) -> list[str]:
        """Return the command line options of the child processes."""
        child_options = [
            "--skip-checks",
            "--poll",
            str(options["poll"]),
            "--grace",
            str(options["grace"]),
            "--concurrency",
            str(options["concurrency"]),
            "--connections",
            str(options["connections"]),
            "--verbosity",
            str(options["verbosity"]),
        ]
        for option, given in names.items():
            if given:
                child_options += [f"--{option.replace('_', '-')}", ",".join(given)]
        if options["no_maintenance"]:
            child_options.append("--no-maintenance")
        if options["reload"]:
            child_options.append("--reload")
        return child_options


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _check_queues(option: str, names: list[str]) -> None:
    """Raise ``CommandError`` for a queue that neither the code nor a row names."""
    try:
        check_queue_names(names, kinds())
    except ValueError:
        look_for_lanes(wakeables())  # rows that another release has inserted
        others = {lane.queue for lane in due_times() if lane.queue}
        try:
            check_queue_names(names, kinds(), others)
        except ValueError as error:
            raise CommandError(f"--{option.replace('_', '-')}: {error}") from error


def _description(names: dict[str, list[str]]) -> str:
    """Return what the worker performs, in words."""
    found = ", ".join(names["kinds"]) or "everything"
    if names["queues"]:
        found += f" in the queues {', '.join(names['queues'])}"
    return f"{found} but the queues {', '.join(names['except_queues'])}" if names["except_queues"] else found
