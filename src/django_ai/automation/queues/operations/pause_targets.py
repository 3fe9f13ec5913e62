"""The targets that ``automation_pause`` and ``automation_unpause`` take, and the list of what is paused."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ...db.writer import alias_of
from ...exceptions import DefinitionError
from ...values.text import last_line, one_line
from ..acting_command import acting_as_command
from ..models import HeldRow, Pause
from ..pausable import PausableWakeable
from ..pauses import EVERYTHING, QUEUE, described
from ..pausing import find_target, model_of, scopes
from ..wakeable import at_text


@dataclass(frozen=True, slots=True)
class Target:
    """What an operator names: the target of a pause, and the row, if it is one."""

    target: str
    row: PausableWakeable | None = None

    def __str__(self) -> str:
        return described(self.target) if self.row is None else f"{self.row._meta.verbose_name} {self.row}"


class PauseCommand(BaseCommand):
    """Base of both commands."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        known = ", ".join([EVERYTHING, *scopes()])
        parser.add_argument("what", nargs="?", help=f"one of {known} (default: list what is paused)")
        parser.add_argument("--name", nargs="+", default=[], help="names of workflows, agents, callbacks or queues")
        parser.add_argument("--pk", nargs="+", type=int, default=[], help="primary keys of single rows")
        parser.add_argument("--reason", default="", help="why, for other operators")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["what"] is None:
            if options["name"] or options["pk"]:
                raise CommandError(f"Say what to {self.verb}, as in: automation_{self.verb} workflow --name NAME")
            self.list_pauses()
            return
        changed = 0
        for target in list(targets_of(options["what"], options["name"], options["pk"])):
            with acting_as_command(f"automation_{self.verb}", options["reason"]):
                is_changed = self.apply(target)
            if is_changed:
                changed += 1
                self.stdout.write(one_line(f"{self.done}: {target}"))
            else:
                self.stdout.write(one_line(f"{self.refused}: {target}"))
        self.stdout.write(f"{self.done}: {changed}.")

    verb, done, refused = "", "", ""

    def apply(self, target: Target) -> bool:
        """Pause or unpause ``target``; return whether that changed something."""
        raise NotImplementedError

    def list_pauses(self) -> None:
        for pause in Pause.objects.order_by("pk"):
            held = HeldRow.objects.filter(target=pause.target).count()
            what = f"{pause.row_kind} {pause.row_pk}" if pause.row_kind else described(pause.target)
            reason = f": {last_line(pause.reason)}" if pause.reason else ""
            rows = f" ({held} row(s) wait)" if held else ""
            self.stdout.write(one_line(f"{what}, paused since {at_text(pause.paused_at)}{rows}{reason}"))
        if not Pause.objects.exists():
            self.stdout.write("Nothing is paused.")


def targets_of(what: str, names: list[str], pks: list[int]) -> Iterator[Target]:
    """Yield what the arguments name. Raises ``CommandError``."""
    if what == EVERYTHING:
        if names or pks:
            raise CommandError("everything takes neither --name nor --pk.")
        yield Target(EVERYTHING)
        return
    if what not in scopes():
        raise CommandError(f"Unknown {what!r}. Known: {', '.join([EVERYTHING, *scopes()])}.")
    if bool(names) == bool(pks):
        raise CommandError(f"Give --name or --pk, as in: {what} --name NAME")
    if pks and what == QUEUE:
        raise CommandError("A queue has a --name and no --pk.")
    for name in names:
        try:
            yield Target(find_target(what, name))
        except DefinitionError as error:
            raise CommandError(str(error)) from error
    if pks:
        model = model_of(what)
        rows = {row.pk: row for row in model._base_manager.using(alias_of(model)).filter(pk__in=pks)}
        for pk in pks:
            if pk not in rows:
                raise CommandError(f"There is no {model._meta.verbose_name} with the primary key {pk}.")
            yield Target(rows[pk].own_target, rows[pk])
