"""``manage.py automation_reencrypt``: write every Context once more, with today's codec and first key."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...operations.reencrypt import reencrypt


class Command(BaseCommand):
    help = (
        "Write every Context and payload once more: encrypted with the first key, or plain where "
        "AUTOMATION['CONTEXT_CODEC'] is off. Workers may go on meanwhile; may be stopped and started again. Exit code "
        "1: some rows could not be read, and were left as they are."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--batch", type=int, default=200, help="rows in one transaction (default: 200)")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["batch"] < 1:
            raise CommandError(f"--batch={options['batch']} must be at least 1.")
        written = unreadable = 0
        for label, column, done, left in reencrypt(options["batch"]):
            self.stdout.write(f"{label}.{column}: {done:,} written, {left:,} unreadable")
            written, unreadable = written + done, unreadable + left
        if unreadable:
            raise CommandError(
                f"{unreadable:,} rows could not be read with the keys in use, and were left as they are.", returncode=1
            )
