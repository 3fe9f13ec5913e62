"""``manage.py automation VERB``: what operators ask and do, in one command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ...commands.names import hint
from ...commands.output import USAGE, Output
from ...commands.verb import VerbParser
from ...commands.verbs import VERBS


class Command(BaseCommand):
    help = (
        "See and change events, runs and agents. Each verb calls the function of the same name and records who did it. "
        "Exit code 0: done; 1: something was not done, or a check found something, and the reasons are on stderr; 2: "
        "the command was called in a wrong way, and nothing was done."
    )

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Name the nearest verb for one that does not exist, and all verbs if none is given."""
        if len(argv) < 3:
            self.create_parser(argv[0], argv[1]).print_help(self.stderr)
            sys.exit(USAGE)
        given = argv[2]
        if not given.startswith("-") and given not in VERBS:
            self.stderr.write(f"There is no verb {given!r}. {hint(given, VERBS)}")
            sys.exit(USAGE)
        super().run_from_argv(list(argv))

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=VerbParser)
        for verb in VERBS.values():
            verb().add_to(verbs.add_parser(verb.name, help=verb.help, description=verb.help))

    def handle(self, *args: Any, **options: Any) -> None:
        output = Output(self.stdout, self.stderr, as_json=options["json"])
        VERBS[options["verb"]]().run(options, output)
