"""``pause`` and ``unpause``. The old commands call the same functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.core.management.base import CommandError, CommandParser

from ...db.writer import alias_of
from ...events.models import Schedule
from ...queues.models import HeldRow, Pause
from ...queues.operations.pause_targets import Target, targets_of
from ...queues.pauses import EVERYTHING, QUEUE, described
from ...queues.pausing import pause, pause_row, scopes, unpause
from ...queues.wakeable import at_text
from ...values.text import last_line
from .kinds import find_kind, named
from .names import check_name
from .output import Output, Usage
from .verb import Options, Verb

SCHEDULE = "schedule"
"""Schedules are paused themselves: their times pass meanwhile, and are left out."""


class PauseVerb(Verb):
    """The base of both."""

    changes = True
    done: ClassVar[str]
    unchanged: ClassVar[str]

    def add_arguments(self, parser: CommandParser) -> None:
        known = ", ".join([EVERYTHING, *scopes(), SCHEDULE])
        parser.add_argument("what", nargs="?", metavar="WHAT", help=f"one of {known} (default: list what is paused)")
        parser.add_argument("names", nargs="*", metavar="NAME|PK", help="names, or primary keys of single rows")

    def perform(self, options: Options, output: Output) -> Any:
        if options["what"] is None:
            return _listed(output)
        what = check_name(options["what"].removesuffix("s"), [EVERYTHING, *scopes(), SCHEDULE], "kind")
        pks = [int(each) for each in options["names"] if each.isdigit()] if what != QUEUE else []
        names = [each for each in options["names"] if what == QUEUE or not each.isdigit()]
        if names and pks:
            raise Usage("Give names or primary keys, not both.")
        targets: Sequence[Target | Schedule] = (
            _schedules(names, pks) if what == SCHEDULE else _targets(what, names, pks)
        )
        changed: list[str] = []
        left: list[str] = []
        for target in targets:
            is_changed = self.apply_to_schedule(target) if isinstance(target, Schedule) else self.apply(target)
            (changed if is_changed else left).append(str(target))
            output.line(f"{self.done if is_changed else self.unchanged}: {target}")
        return {"verb": self.name, "done": changed, "unchanged": left}

    def apply(self, target: Target) -> bool:
        """Pause or unpause; return whether that changed something."""
        raise NotImplementedError

    def apply_to_schedule(self, row: Schedule) -> bool:
        """Pause a schedule or let it continue; return whether that changed something."""
        raise NotImplementedError


def _targets(what: str, names: list[str], pks: list[int]) -> list[Target]:
    """Return the targets that are named. Raises ``Usage``."""
    try:
        return list(targets_of(what, names, pks))
    except CommandError as error:
        raise Usage(str(error)) from error


def _schedules(names: list[str], pks: list[int]) -> list[Schedule]:
    """Return the schedules that are named. Raises ``Usage`` and ``Refused``."""
    kind = find_kind(SCHEDULE)
    if not names and not pks:
        raise Usage("Say which schedules: their names or primary keys.")
    return [row for name in names for row in named(kind.rows(), kind, name)] + [kind.find(pk) for pk in pks]


def _listed(output: Output) -> dict[str, Any]:
    listed = []
    for each in Pause.objects.order_by("pk"):
        held = HeldRow.objects.filter(target=each.target).count()
        what = f"{each.row_kind} {each.row_pk}" if each.row_kind else described(each.target)
        reason = last_line(each.reason) if each.reason else ""
        listed.append({"target": each.target, "since": each.paused_at, "held": held, "reason": reason})
        rows = f" ({held} row(s) wait)" if held else ""
        output.line(f"{what}, paused since {at_text(each.paused_at)}{rows}{f': {reason}' if reason else ''}")
    for name, since in Schedule.objects.using(alias_of(Schedule)).order_by("pk").values_list("name", "paused_at"):
        if since is None:
            continue
        listed.append({"target": f"{SCHEDULE}:{name}", "since": since, "held": 0, "reason": ""})
        output.line(f"the schedule {name!r}, paused since {at_text(since)}")
    if not listed:
        output.line("Nothing is paused.")
    return {"pauses": listed}


class PauseThem(PauseVerb):
    """``automation pause``."""

    name = "pause"
    help = "Pause everything, a queue, a workflow, an agent, a callback, a schedule or rows, or list what is paused."
    done, unchanged = "paused", "has ended, or was paused already"

    def apply(self, target: Target) -> bool:
        return pause(target.target) if target.row is None else pause_row(target.row)

    def apply_to_schedule(self, row: Schedule) -> bool:
        if row.paused_at is not None:
            return False
        row.pause()
        return True


class UnpauseThem(PauseVerb):
    """``automation unpause``."""

    name = "unpause"
    help = "End pauses, or list them."
    done, unchanged = "unpaused", "was not paused"

    def apply(self, target: Target) -> bool:
        return unpause(target.target)

    def apply_to_schedule(self, row: Schedule) -> bool:
        if row.paused_at is None:
            return False
        row.unpause()
        return True
