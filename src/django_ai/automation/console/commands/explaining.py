"""``why``: why a subscriber acted, will act or did not."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from ...events.models import Event, Schedule
from ...events.why import Why, why
from .entities import find_entity
from .kinds import KINDS, find_kind
from .names import check_name
from .output import Output, Refused, Usage
from .verb import Options, Verb

SIGNS = {True: "+", False: "-", None: "?"}


class WhyVerb(Verb):
    """``automation why SUBJECT [SUBSCRIBER]``."""

    name = "why"
    help = "Say why a subscriber acted on the events of an entity or on one event, will act, or did not."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "subject", metavar="SUBJECT", help="an entity such as shop.Order:12, or event:5, or schedule:NAME"
        )
        parser.add_argument(
            "subscriber",
            nargs="?",
            default="",
            metavar="SUBSCRIBER",
            help="a callback, workflow, agent, or agent.handler",
        )
        parser.add_argument("--limit", type=int, default=50, help="the greatest number of events (default: 50)")
        parser.add_argument("--data", action="store_true", help="also show the values that are compared")

    def perform(self, options: Options, output: Output) -> Any:
        if options["limit"] < 1:
            raise Usage(f"--limit={options['limit']} must be at least 1.")
        found = why(_subject(options["subject"]), options["subscriber"], limit=options["limit"])
        _write(found, output, with_data=options["data"])
        document = found.to_dict()
        for answer, listed in zip(found.answers, document["answers"], strict=True):
            for condition, each in zip(answer.conditions, listed["conditions"], strict=True):
                if condition.is_data and not options["data"]:
                    each["expected"] = each["found"] = None
        return document


def _subject(given: str) -> Any:
    kind, _, key = given.partition(":")
    if kind == "event" and key.isdigit():
        return find_kind("event").find(int(key))
    if kind == "schedule" and key:
        row = Schedule.objects.filter(name=key).first()
        if row is None:
            check_name(key, {*KINDS["schedule"].names(), *Schedule.objects.values_list("name", flat=True)}, "schedule")
            raise Refused(f"The schedule {key!r} has no row yet: no worker has started with it.")
        return row
    entity = find_entity(given)
    if entity.row is None:
        newest = Event.objects.filter(entity.condition()).order_by("-pk").first()
        if newest is None:
            raise Refused(f"There is no {entity}, and no event of it.")
        raise Refused(f"{entity} was deleted. Ask about one of its events, such as event:{newest.pk}.")
    return entity.row


def _write(found: Why, output: Output, *, with_data: bool) -> None:
    output.line(found.subject)
    for answer in found.answers:
        number = "" if answer.event_pk is None else f" #{answer.event_pk}"
        at = f" at {answer.milestone}" if answer.milestone else ""
        agent = f" ({answer.agent})" if answer.agent else ""
        output.line(
            f"{answer.kind} {answer.subscriber}{agent} on {answer.event}{number}{at}: {answer.standing}", indent=2
        )
        output.line(answer.reason, indent=4)
        for each in answer.conditions:
            hidden = each.is_data and not with_data
            values = "the values are shown with --data" if hidden else f"expected {each.expected}; found {each.found}"
            sign = "~" if each.holds is False and each.may_change else SIGNS[each.holds]
            output.line(f"{sign} {each.name}: {values}", indent=4)
    if not found.answers:
        output.line("No event, and no subscriber.", indent=2)
