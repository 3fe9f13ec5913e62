"""``manage.py automation_reencrypt``: write every Context and payload again, with the current codec and first key."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...acting_command import acting_as_command, add_because
from ...operations.reencrypt import reencrypt


class Command(BaseCommand):
    help = (
        "Write every Context and payload again: encrypted with the first key, or in plain text if "
        "AUTOMATION['CONTEXT_CODEC'] is off. Workers may run meanwhile, and the command may be interrupted and started "
        "again. Exit code 1: some rows could not be read and were left unchanged."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--batch", type=int, default=200, help="number of rows per transaction (default: 200)")
        add_because(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch"] < 1:
            raise CommandError(f"--batch={options['batch']} must be at least 1.")
        total_written = total_unreadable = 0
        with acting_as_command("automation_reencrypt", options["because"]):
            for label, column, written, unreadable in reencrypt(options["batch"]):
                self.stdout.write(f"{label}.{column}: {written:,} written, {unreadable:,} unreadable")
                total_written, total_unreadable = total_written + written, total_unreadable + unreadable
        if total_unreadable:
            raise CommandError(
                f"{total_unreadable:,} row(s) could not be read with the configured keys and were left unchanged.",
                returncode=1,
            )
