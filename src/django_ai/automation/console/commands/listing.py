"""``list`` and ``problems``: which rows there are, and what is broken."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from ..problems import problems
from ..story import moment_text
from .entities import find_entity
from .kinds import KINDS, Kind, find_kind, is_open, load_reasons, named
from .names import check_name, moment
from .output import Output, Usage
from .verb import Options, Verb

DEFAULT_LIMIT = 50
CREATED_FIELDS = ("created_at", "event_created_at", "sent_at", "held_at", "written_at", "started_at")


class List(Verb):
    """``automation list KIND``."""

    name = "list"
    help = "List rows of a kind, the newest first, with what each waits for or why it has failed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(KINDS)}")
        parser.add_argument("--name", help="only of this workflow, agent, event, callback, handler, signal or schedule")
        parser.add_argument("--status", action="append", default=[], help="only with this status; may be repeated")
        parser.add_argument("--entity", metavar="MODEL:PK", help="only of this entity, such as shop.Order:12")
        parser.add_argument("--since", metavar="DATE", help="only rows that were created at this ISO date or later")
        parser.add_argument(
            "--limit", type=int, default=DEFAULT_LIMIT, help="the greatest number of rows (default: 50)"
        )
        parser.add_argument("--after", type=int, metavar="PK", help="continue after this row of the list before")
        parser.add_argument("--declared", action="store_true", help="list the names that the code declares, not rows")

    def perform(self, options: Options, output: Output) -> Any:
        kind = find_kind(options["kind"])
        if options["limit"] < 1:
            raise Usage(f"--limit={options['limit']} must be at least 1.")
        if options["declared"]:
            names = sorted(kind.names())
            for name in names:
                output.line(name)
            return {"kind": kind.name, "names": names}
        rows = _selected(kind, options)
        found = list(rows.order_by("-pk")[: options["limit"] + 1])
        shown = found[: options["limit"]]
        load_reasons(shown)
        now = timezone.now()
        listed = [described(kind, row, now) for row in shown]
        columns = ("pk", "what", "status", "entity", "due", "says")
        output.table(
            [[_cell(each[name]) for name in columns] for each in listed],
            ["PK", kind.name.upper(), "STATUS", "ENTITY", "DUE", "WAITS FOR"],
        )
        following = shown[-1].pk if len(found) > len(shown) else None
        if not listed:
            output.line("None.")
        elif following is not None:
            output.line(f"There are more: --after {following}")
        return {"kind": kind.name, "rows": listed, "next": following}


def _selected(kind: Kind, options: Options) -> Any:
    rows = kind.rows()
    if options["name"] is not None:
        rows = named(rows, kind, options["name"])
    if options["status"]:
        if not kind.has_status:
            raise Usage(f"Rows of the kind {kind.name!r} have no status.")
        for status in options["status"]:
            check_name(status, kind.statuses(), "status")
        rows = rows.filter(status__in=options["status"])
    if options["entity"] is not None:
        if kind.entity is None:
            raise Usage(f"Rows of the kind {kind.name!r} belong to no entity.")
        rows = rows.filter(find_entity(options["entity"]).condition(kind.entity))
    since = moment(options["since"], "--since")
    if since is not None:
        rows = rows.filter(**{f"{created_field(kind)}__gte": since})
    return rows if options["after"] is None else rows.filter(pk__lt=options["after"])


def created_field(kind: Kind) -> str:
    """Return the field that says when a row was created."""
    names = [field.name for field in kind.model._meta.concrete_fields]
    return next(
        each
        for each in ("created_at", "event_created_at", "sent_at", "held_at", "written_at", "started_at")
        if each in names
    )


def described(kind: Kind, row: Any, now: datetime) -> dict[str, Any]:
    """Return what a list says of a row. Its Context or payload is not part of it."""
    entity_type, entity_id = _entity_of(kind, row)
    says = row.waits_for(now) if is_open(row) and hasattr(row, "waits_for") else ""
    return {
        "pk": row.pk,
        "what": kind.what(row),
        "name": getattr(row, kind.name_field),
        "status": str(getattr(row, "status", "")),
        "entity": f"{entity_type}:{entity_id}" if entity_type else "",
        "due": getattr(row, "wake_at", None),
        "says": says or getattr(row, "error_summary", ""),
    }


def _entity_of(kind: Kind, row: Any) -> tuple[str, str]:
    owner = row
    if kind.entity:
        owner = getattr(row, kind.entity.removesuffix("__"))
    elif kind.name == "write":
        return row.model, row.entity_id
    return getattr(owner, "entity_type", ""), getattr(owner, "entity_id", "")


def _cell(value: Any) -> object:
    return moment_text(value) if isinstance(value, datetime) else value


class Problems(Verb):
    """``automation problems``."""

    name = "problems"
    help = (
        "List what is parked and what has failed, grouped by kind, name and the last line of the error, with the "
        "command that resumes each group. Exit code 1 with --check: there is something."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", nargs="?", metavar="KIND", help="only rows of this kind")
        parser.add_argument("--check", action="store_true", help="exit with 1 if there is a problem")

    def perform(self, options: Options, output: Output) -> Any:
        kind = None if options["kind"] is None else find_kind(options["kind"])
        found = [each for each in problems() if kind is None or each.kind == kind.name]
        listed = [
            {
                "kind": each.kind,
                "name": each.name,
                "state": each.state,
                "error": each.error,
                "count": each.count,
                "is_capped": each.is_capped,
                "first_at": each.first_at,
                "last_at": each.last_at,
                "newest_pk": each.newest_pk,
                "command": each.command,
            }
            for each in found
        ]
        for each in found:
            more = "+" if each.is_capped else ""
            seen = [moment_text(at) for at in (each.first_at, each.last_at) if at is not None]
            output.line(f"{each.count}{more} {each.kind} {each.name}, {each.state}: {each.error}")
            output.line(f"{' to '.join(dict.fromkeys(seen))}; newest: {each.newest_pk}", indent=4)
            output.line(
                each.command or f"manage.py automation bulk resume {each.kind} --same-problem-as {each.newest_pk}",
                indent=4,
            )
        if not found:
            output.line("Nothing is parked, and nothing has failed.")
        document: dict[str, Any] = {"problems": listed}
        if found and options["check"]:
            document["refused_because"] = f"{len(found)} problem(s)."
        return document
