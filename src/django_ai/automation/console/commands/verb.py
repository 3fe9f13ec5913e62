"""``Verb``: one verb of ``manage.py automation``, with its arguments and what it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import CommandParser

from ...exceptions import AutomationError
from ...queues.acting import acting_as
from ...queues.acting_command import acting_as_command
from .output import Output, Refused, Usage

Options = dict[str, Any]


class VerbParser(CommandParser):
    """Takes primary keys and names also after options: ``cancel workflow --reason "A double." 12``."""

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options and positional arguments in any order."""
        if self._is_intermixing:
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False


class Verb(ABC):
    """A verb. ``changes``: it changes rows, so it takes ``--reason`` and ``--actor``."""

    name: ClassVar[str]
    help: ClassVar[str]
    changes: ClassVar[bool] = False

    def add_to(self, parser: CommandParser) -> None:
        """Add the arguments of the verb, and those that all verbs have."""
        self.add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one line of JSON")
        if self.changes:
            parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the history of the rows")
            parser.add_argument(
                "--actor",
                default="",
                metavar="LABEL",
                help="who acts, such as user:5 (default: this command and the user of the operating system)",
            )

    @abstractmethod
    def add_arguments(self, parser: CommandParser) -> None:
        """Add the arguments of the verb."""

    @abstractmethod
    def perform(self, options: Options, output: Output) -> Any:
        """Do it, write lines for people, and return the JSON document."""

    def run(self, options: Options, output: Output) -> None:
        """Perform the verb as the person who acts, and write the document. Errors become exit codes."""
        try:
            with self._acting(options):
                document = self.perform(options, output)
        except (AutomationError, ObjectDoesNotExist) as error:
            raise Refused(str(error)) from error
        failed = document.pop("refused_because", "") if isinstance(document, dict) else ""
        output.finish(document)
        if failed:
            raise Refused(failed)

    @contextmanager
    def _acting(self, options: Options) -> Iterator[None]:
        if not self.changes:
            yield
            return
        actor, reason = options["actor"], options["reason"]
        try:
            acting = acting_as(actor, reason) if actor else acting_as_command("automation", reason)
            with acting:
                yield
        except AutomationError as error:
            if str(error).startswith("acting_as("):
                raise Usage(f"--actor: {error}") from error
            raise
