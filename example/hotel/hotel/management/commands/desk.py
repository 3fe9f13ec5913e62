"""``manage.py desk open Monday`` and ``manage.py desk close 420``: open and close a day from a shell."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from hotel.desk import close_day, open_day


class Command(BaseCommand):
    help = "Open a day, which starts its night audit, or close it, which sends the audit its takings."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("open").add_argument("day")
        actions.add_parser("close").add_argument("takings", type=int)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "open":
            self.stdout.write(f"{open_day(options['day'])} waits for the day to be closed.")
        else:
            close_day(options["takings"])
            self.stdout.write("Closed. The night audit continues in half an hour.")
