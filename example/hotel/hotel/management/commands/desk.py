"""``manage.py desk close 420``: close the day from a shell."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from hotel.desk import close_day


class Command(BaseCommand):
    help = "Close the day, which sends each night audit that waits its takings."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("close").add_argument("takings", type=int)

    def handle(self, *args: Any, **options: Any) -> None:
        close_day(options["takings"])
        self.stdout.write("Closed. A night audit that waits continues in half an hour.")
