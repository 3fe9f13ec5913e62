"""``manage.py automation_dispatcher``: sends doorbells for a queue whose workers only wait for messages."""

from __future__ import annotations

import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...liveness import start_liveness_file
from ...notifier import get_notifier
from ...runtimes.dispatcher import Dispatcher
from ...runtimes.poller import automation_alias
from ...runtimes.task_queues import doorbell_names


class Command(BaseCommand):
    help = (
        "Ring AUTOMATION['RUNTIME'] while rows are due, until SIGTERM. For workers of Django tasks and of other queues "
        "that run no dispatcher of their own. It performs nothing itself."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--poll",
            type=float,
            default=1.0,
            metavar="SECONDS",
            help="longest interval between two polls of the database (default: 1)",
        )

        parser.add_argument(
            "--heartbeat-file",
            metavar="FILE",
            help="touch FILE every few seconds while the dispatcher is alive, for automation_health --liveness FILE",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["poll"] <= 0:
            raise CommandError(f"--poll={options['poll']:g} must be positive.")
        alias = automation_alias()

        def ring(task_queue: str) -> None:
            get_notifier().ring(alias, doorbell_names(task_queue))

        dispatcher = Dispatcher(ring, options["poll"])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: dispatcher.stop())
        start_liveness_file(options["heartbeat_file"])
        dispatcher.run()
