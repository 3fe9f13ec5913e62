"""The verbs that do one thing to rows: named by their keys, or selected by name, status and entity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from django.core.management.base import CommandParser
from django.db.models import QuerySet

from ...agents.manager import AgentManager
from ...events.models import EventStatus
from ...exceptions import AutomationError
from ...workflows.engine import engine
from .entities import find_entity
from .kinds import Kind, find_kind, named
from .names import check_name
from .output import Output, Usage
from .verb import Options, Verb

BATCH_SIZE = 100
MAX_LISTED_ROWS = 50


class RowsVerb(Verb):
    """A verb for rows.

    ``kinds``: which it takes; with one kind only, its name is no argument. ``done``: the past participle.
    ``unchanged``: why a row was left alone for which ``act`` returns False. ``selects``: many rows can be selected.
    """

    changes = True
    kinds: ClassVar[tuple[str, ...]]
    done: ClassVar[str]
    unchanged: ClassVar[str] = "it has ended"
    selects: ClassVar[bool] = True

    def add_arguments(self, parser: CommandParser) -> None:
        if len(self.kinds) > 1:
            parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(self.kinds)}")
        parser.add_argument(
            "pks", nargs="*" if self.selects else "+", type=int, metavar="PK", help="primary keys of the rows"
        )
        if self.selects:
            parser.add_argument("--name", help="all of this workflow, agent or event")
            parser.add_argument("--status", action="append", default=[], help="all with this status; may be repeated")
            parser.add_argument("--entity", metavar="MODEL:PK", help="all of this entity, such as shop.Order:12")
            parser.add_argument("--all", action="store_true", help="all")
            parser.add_argument("--dry-run", action="store_true", help="only list the rows")

    @abstractmethod
    def act(self, kind: Kind, row: Any, options: Options) -> bool:
        """Do it to ``row``; return whether that changed something."""

    def select(self, kind: Kind) -> QuerySet[Any]:
        """Return the rows among which many are selected."""
        return kind.rows()

    def perform(self, options: Options, output: Output) -> Any:
        kind = find_kind(options["kind"], self.kinds) if len(self.kinds) > 1 else find_kind(self.kinds[0])
        rows = self._selected(kind, options)
        if options.get("dry_run"):
            return self._listed(kind, rows, output)
        done: list[int] = []
        refused: list[dict[str, Any]] = []
        total = rows.count()
        for row in output.progress(_in_batches(rows), total, f"{self.name} {kind.name}"):
            why = ""
            try:
                if not self.act(kind, row, options):
                    why = f"{kind.what(row)}: {self.unchanged}."
            except AutomationError as error:
                why = str(error)
            if why:
                refused.append({"pk": row.pk, "why": why})
                output.warn(f"not {self.done}: {kind.name} {row.pk}: {why}")
            else:
                done.append(row.pk)
                if total <= MAX_LISTED_ROWS:
                    output.line(f"{self.done}: {kind.name} {row.pk}: {kind.what(row)}")
        missing = sorted(set(options["pks"]) - {*done, *(each["pk"] for each in refused)})
        for pk in missing:
            why = f"There is no {kind.name} with the primary key {pk}."
            refused.append({"pk": pk, "why": why})
            output.warn(why)
        output.line(f"{self.done.capitalize()}: {len(done)}.")
        document: dict[str, Any] = {"verb": self.name, "kind": kind.name, "done": done, "refused": refused}
        if refused:
            document["refused_because"] = f"{len(refused)} row(s) were not {self.done}; the reasons are above."
        return document

    def _selected(self, kind: Kind, options: Options) -> QuerySet[Any]:
        filters = [name for name in ("name", "status", "entity", "all") if options.get(name)]
        if options["pks"]:
            if filters:
                raise Usage(f"Give primary keys or --{filters[0]}, not both.")
            return kind.rows().filter(pk__in=options["pks"])
        if not filters:
            raise Usage("Say which rows: primary keys, --name, --status, --entity or --all.")
        rows = self.select(kind)
        if options["name"]:
            rows = named(rows, kind, options["name"])
        for status in options["status"]:
            check_name(status, kind.statuses(), "status")
        if options["status"]:
            rows = rows.filter(status__in=options["status"])
        if options["entity"]:
            rows = rows.filter(find_entity(options["entity"]).condition(kind.entity or ""))
        return rows

    def _listed(self, kind: Kind, rows: QuerySet[Any], output: Output) -> dict[str, Any]:
        count = rows.count()
        shown = list(rows[:MAX_LISTED_ROWS])
        for row in shown:
            output.line(f"{kind.name} {row.pk}: {kind.what(row)}, {row.status}")
        if count > len(shown):
            output.line(f"and {count - len(shown)} more")
        output.line(f"{count} row(s); nothing was changed (--dry-run).")
        pks = [row.pk for row in shown]
        return {"verb": self.name, "kind": kind.name, "dry_run": True, "count": count, "pks": pks}


def _in_batches(rows: QuerySet[Any]) -> Iterator[Any]:
    after = 0
    while batch := list(rows.filter(pk__gt=after).order_by("pk")[:BATCH_SIZE]):
        after = batch[-1].pk
        yield from batch


class Cancel(RowsVerb):
    """``automation cancel KIND``."""

    name = "cancel"
    help = "Cancel runs (with their child runs), agents, or pending events."
    kinds = ("workflow", "agent", "event")
    done = "cancelled"
    unchanged = "it has ended, or is on its way to its end"

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--at-once", action="store_true", help="of runs: skip @on_cancel, and end a path that has begun"
        )

    def select(self, kind: Kind) -> QuerySet[Any]:
        if kind.name == "event":
            return kind.rows().filter(status=EventStatus.PENDING)
        return kind.rows().unfinished()  # type: ignore[attr-defined, no-any-return]

    def act(self, kind: Kind, row: Any, options: Options) -> bool:
        if kind.name == "workflow":
            return engine.cancel(row, at_once=options["at_once"])
        if options["at_once"]:
            raise Usage("--at-once is for workflow runs.")
        if kind.name == "agent":
            return AgentManager.cancel(row)
        return bool(row.cancel())


class Complete(RowsVerb):
    """``automation complete AGENT``."""

    name = "complete"
    help = "End agents successfully."
    kinds = ("agent",)
    done = "completed"

    def select(self, kind: Kind) -> QuerySet[Any]:
        return kind.rows().unfinished()  # type: ignore[attr-defined, no-any-return]

    def act(self, kind: Kind, row: Any, options: Options) -> bool:
        return AgentManager.complete(row)


class TryNow(RowsVerb):
    """``automation try-now RUN``."""

    name = "try-now"
    help = "Let runs try again now that wait for their next attempt."
    kinds = ("workflow",)
    done = "tried again"

    def select(self, kind: Kind) -> QuerySet[Any]:
        return kind.rows().filter(status="waiting")

    def act(self, kind: Kind, row: Any, options: Options) -> bool:
        engine.try_now(row, reason=options["reason"])
        return True
