"""``baseline``: what already holds for existing rows is marked as having occurred, as by ``automation_baseline``."""

from __future__ import annotations

from io import StringIO
from typing import Any

from django.core.management.base import CommandError, CommandParser

from ...events.management.commands.automation_baseline import Command
from .output import Output, Usage
from .verb import Options, Verb


class Baseline(Verb):
    """``automation baseline``."""

    name = "baseline"
    help = Command.help
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        command = Command()
        command.has_reason = False
        command.add_arguments(parser)

    def perform(self, options: Options, output: Output) -> Any:
        # Not through ``output``: the lines of the command are safe to print already.
        command = Command(stdout=StringIO() if output.as_json else output.out, stderr=output.err)  # type: ignore[arg-type]
        try:
            command.handle(**options)
        except CommandError as error:
            if not command.report:
                raise Usage(str(error)) from error
            return {"verb": self.name, "counts": command.report, "refused_because": str(error)}
        return {"verb": self.name, "dry_run": options["dry_run"], "counts": command.report}
