"""``plan``: what comes next, for an entity or in a period."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from ...events.upcoming import Upcoming, upcoming
from ...queues.progress import Progress
from ..agenda import planned_between
from ..deployment import CONTEXTS_OF_EACH, Finding, check_deployment
from ..story import moment_text
from .entities import find_entity
from .names import moment
from .output import Output, Refused, Usage
from .verb import Options, Verb

DEFAULT_LIMIT = 200
DEFAULT_HOURS = 24.0


class Plan(Verb):
    """``automation plan``."""

    name = "plan"
    help = (
        "List what is planned: in the next 24 hours, in a period, or for one entity. With --check, with new code and "
        "the database in use: list which rows would park, which runs lose their version, which offsets would fire at "
        "once, and which schedules vanish. Exit code 1: something would park."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--entity", metavar="MODEL:PK", help="everything of this entity, such as shop.Order:12")
        parser.add_argument("--from", dest="since", metavar="DATE", help="from this ISO date (default: now)")
        parser.add_argument("--until", metavar="DATE", help="until this ISO date")
        parser.add_argument("--hours", type=float, help="for this number of hours (default: 24)")
        parser.add_argument("--limit", type=int, default=DEFAULT_LIMIT, help="the greatest number (default: 200)")
        parser.add_argument("--check", action="store_true", help="compare the rows with this code")
        parser.add_argument(
            "--contexts",
            type=int,
            default=CONTEXTS_OF_EACH,
            metavar="N",
            help="with --check: how many Contexts of each workflow and agent are loaded (default: 100; 0: none)",
        )

    def perform(self, options: Options, output: Output) -> Any:
        if options["check"]:
            return self._check(options, output)
        limit = options["limit"]
        if limit < 1:
            raise Usage(f"--limit={limit} must be at least 1.")
        if options["entity"] is not None:
            if options["since"] or options["until"] or options["hours"]:
                raise Usage("--entity lists everything that is planned; leave --from, --until and --hours out.")
            return self._of_entity(options["entity"], limit, output)
        return self._of_period(options, limit, output)

    def _check(self, options: Options, output: Output) -> dict[str, Any]:
        if options["entity"] or options["since"] or options["until"] or options["hours"]:
            raise Usage("--check looks at all rows; leave --entity, --from, --until and --hours out.")
        if options["contexts"] < 0:
            raise Usage(f"--contexts={options['contexts']} must not be negative.")
        found = check_deployment(timezone.now(), options["contexts"], partial(Progress, output.err))
        parts = {
            "parks": ("Would park", found.parks),
            "versions": ("Lose their version", found.versions),
            "fires": ("Would fire at once", found.fires),
            "vanishes": ("Vanish", found.vanishes),
        }
        for title, findings in parts.values():
            output.line(f"{title}: {'' if findings else 'nothing'}".strip())
            for each in findings:
                output.line(f"{each.count} {each.kind} {each.name} (such as {each.example}): {each.why}", indent=2)
        document: dict[str, Any] = {
            name: [_finding(each) for each in findings] for name, (_, findings) in parts.items()
        }
        if not found.is_safe:
            rows = sum(each.count for each in [*found.parks, *found.vanishes])
            document["refused_because"] = f"{rows} row(s) would park with this code."
        return document

    def _of_entity(self, given: str, limit: int, output: Output) -> dict[str, Any]:
        entity = find_entity(given)
        if entity.row is None:
            raise Refused(f"{entity} does not exist (any more), so nothing is planned for it.")
        planned = upcoming(entity.row, limit=limit)
        _write(planned, output)
        return {"entity": given, "planned": [_document(each) for each in planned], "is_cut": len(planned) == limit}

    def _of_period(self, options: Options, limit: int, output: Output) -> dict[str, Any]:
        now = timezone.now()
        since, until = moment(options["since"], "--from"), moment(options["until"], "--until")
        hours = options["hours"]
        if until is not None and hours is not None:
            raise Usage("Give --until or --hours, not both.")
        if hours is not None and not 0 < hours < 1e6:
            raise Usage(f"--hours={hours:g} must be positive.")
        if until is None:
            until = (since or now) + timedelta(hours=DEFAULT_HOURS if hours is None else hours)
        if until <= (since or now):
            raise Usage(f"The period ends {moment_text(until)}, before it begins.")
        found = planned_between(since, until, now, limit)
        _write(found.planned, output)
        if found.is_cut:
            output.line(f"There is more than --limit {limit}.")
        return {
            "from": since or now,
            "until": until,
            "planned": [_document(each) for each in found.planned],
            "is_cut": found.is_cut,
        }


def _write(planned: list[Upcoming], output: Output) -> None:
    for each in planned:
        at = "-" if each.at is None else moment_text(each.at)
        output.line(f"{at:23}  {each.kind} {each.name}: {each.reason} ({each.row})")
    if not planned:
        output.line("Nothing is planned.")


def _finding(each: Finding) -> dict[str, Any]:
    return {"kind": each.kind, "name": each.name, "count": each.count, "example": each.example, "why": each.why}


def _document(each: Upcoming) -> dict[str, Any]:
    row = each.row
    return {
        "at": each.at,
        "kind": each.kind,
        "name": each.name,
        "reason": each.reason,
        "row": {"model": row._meta.label_lower, "pk": row.pk, "what": str(row)},
    }
