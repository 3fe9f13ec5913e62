"""``bulk``, ``mute`` and ``unmute``: many rows in the background, and problems that alert no more."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from ...db.writer import alias_of
from ...queues.bulk.verbs import bulk_kinds
from ...queues.models import BulkAction
from ...workflows.engine import engine
from ..story import moment_text
from .entities import find_entity
from .kinds import KINDS, find_kind, named
from .names import check_name, moment
from .output import Output, Refused, Usage
from .verb import Options, Verb


class Bulk(Verb):
    """``automation bulk ACTION KIND``."""

    name = "bulk"
    help = "Let workers do something to many rows, in the background. Without arguments: what can be done."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", nargs="?", metavar="ACTION", help="what to do, such as cancel")
        parser.add_argument("kind", nargs="?", default="workflow", metavar="KIND", help="the kind of row (workflow)")
        parser.add_argument("--name", help="all of this workflow, agent, handler, event, callback or signal")
        parser.add_argument("--status", action="append", default=[], help="all with this status; may be repeated")
        parser.add_argument("--entity", metavar="MODEL:PK", help="all of this entity, such as shop.Order:12")
        parser.add_argument("--same-problem-as", type=int, metavar="PK", help="all that failed for the same reason")
        parser.add_argument("--all", action="store_true", help="all")
        parser.add_argument("--cancel", type=int, metavar="PK", help="stop this bulk action; what is done stays done")

    def perform(self, options: Options, output: Output) -> Any:
        known = bulk_kinds()
        if options["cancel"] is not None:
            return self._cancel(options["cancel"], output)
        if options["action"] is None:
            for kind in known.values():
                output.line(f"{kind.name}: {', '.join(sorted(kind.verbs))}")
            return {"kinds": {kind.name: sorted(kind.verbs) for kind in known.values()}}
        found = find_kind(options["kind"], [each for each in KINDS if each in known])
        action = check_name(options["action"].replace("-", "_"), known[found.name].verbs, f"action for {found.name!r}")
        conditions: dict[str, Any] = {}
        if options["name"] is not None:
            named(found.rows(), found, options["name"])
            conditions["name"] = options["name"]
        if options["status"]:
            conditions["status"] = [check_name(each, found.statuses(), "status") for each in options["status"]]
        if options["entity"] is not None:
            entity = find_entity(options["entity"])
            if entity.row is None:
                raise Refused(f"{entity} does not exist (any more): name its rows by --name.")
            conditions["entity"] = entity.row
        if options["same_problem_as"] is not None:
            conditions["same_problem_as"] = found.find(options["same_problem_as"])
        if not conditions and not options["all"]:
            raise Usage("Say which rows: --name, --status, --entity, --same-problem-as or --all.")
        made = engine.bulk(action, found.name, **conditions, everything=options["all"], reason=options["reason"])
        output.line(f"created: {made}, {made.total} row(s) match")
        return {"verb": self.name, "pk": made.pk, "action": action, "kind": found.name, "total": made.total}

    def _cancel(self, pk: int, output: Output) -> dict[str, Any]:
        row = BulkAction.objects.using(alias_of(BulkAction)).filter(pk=pk).first()
        if row is None:
            raise Refused(f"There is no bulk action with the primary key {pk}.")
        if not engine.cancel_bulk(row):
            raise Refused(f"{row} has ended already.")
        output.line(f"cancelled: {row}")
        return {"verb": self.name, "cancelled": row.pk}


class Mute(Verb):
    """``automation mute KIND PK``."""

    name = "mute"
    help = "Mute the problem that a failed or parked row has: no alerts for it, of no row."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", metavar="KIND", help="the kind of row")
        parser.add_argument("pk", type=int, metavar="PK", help="its primary key")
        parser.add_argument("--until", metavar="DATE", help="when the mute ends, an ISO date (default: unmute)")

    def perform(self, options: Options, output: Output) -> Any:
        row, until = find_kind(options["kind"]).find(options["pk"]), moment(options["until"], "--until")
        found = engine.mute(row, until=until, reason=options["reason"])
        ends = f" until {moment_text(until)}" if until is not None else ""
        output.line(f"muted{ends}: {found.kind} {found.name}, {found.state}: {found.error}")
        return {"verb": self.name, "key": found.key, "until": until, "error": found.error}


class Unmute(Verb):
    """``automation unmute KIND PK``."""

    name = "unmute"
    help = "End the mute of the problem that a row has."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", metavar="KIND", help="the kind of row")
        parser.add_argument("pk", type=int, metavar="PK", help="its primary key")

    def perform(self, options: Options, output: Output) -> Any:
        row = find_kind(options["kind"]).find(options["pk"])
        ended = engine.unmute(row)
        output.line(f"unmuted: {row}" if ended else f"was not muted: {row}")
        return {"verb": self.name, "unmuted": ended}
