"""``fire-now``, ``move`` and ``redeliver``: events occur at another time, or are handled again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from ...agents.manager import AgentManager
from ...events.models import Schedule
from ...events.schedules.firing import fire_now
from .kinds import Kind, find_kind
from .names import moment
from .output import Output
from .rows import RowsVerb
from .verb import Options, Verb


class FireNow(RowsVerb):
    """``automation fire-now KIND PK``."""

    name = "fire-now"
    help = "Let pending events occur now, or start what a schedule starts."
    kinds = ("event", "schedule")
    done = "fired"
    unchanged = "it is due already"
    selects = False

    def act(self, kind: Kind, row: Any, options: Options) -> bool:
        if isinstance(row, Schedule):
            fire_now(row, timezone.now())
            return True
        return bool(row.fire_now())


class Release(RowsVerb):
    """``automation release CLAIM``."""

    name = "release"
    help = "End claims before their time, whichever run holds them."
    kinds = ("claim",)
    done = "released"
    unchanged = "it has ended, or another run has taken it over"
    selects = False

    def act(self, kind: Kind, row: Any, options: Options) -> bool:
        return bool(row.release())


class Move(Verb):
    """``automation move EVENT DATE``."""

    name = "move"
    help = "Give a pending event without an entity another date."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("pk", type=int, metavar="EVENT", help="primary key of the event")
        parser.add_argument("at", metavar="DATE", help="the new date, an ISO date")

    def perform(self, options: Options, output: Output) -> Any:
        event, at = find_kind("event").find(options["pk"]), moment(options["at"], "DATE")
        is_moved = event.move(at)
        output.line(f"{'moved' if is_moved else 'has this date already'}: event {event.pk}: {event}")
        return {"verb": self.name, "pk": event.pk, "at": event.at, "moved": is_moved}


class Redeliver(Verb):
    """``automation redeliver KIND PK``."""

    name = "redeliver"
    help = "Let handlers handle an event again that they have skipped, or in which they have failed."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", metavar="KIND", help="event, or handler for one execution")
        parser.add_argument("pk", type=int, metavar="PK", help="primary key of the event or execution")
        parser.add_argument("--agent", type=int, metavar="PK", help="of an event: only by this agent")
        parser.add_argument("--handler", help="of an event: only by the handler with this name")

    def perform(self, options: Options, output: Output) -> Any:
        target = find_kind(options["kind"], ("event", "handler")).find(options["pk"])
        found = AgentManager.redeliver(target, options["agent"], handler=options["handler"])
        for each in found:
            output.line(f"redelivered: handler {each.pk}: {each}")
        return {"verb": self.name, "done": [each.pk for each in found]}
