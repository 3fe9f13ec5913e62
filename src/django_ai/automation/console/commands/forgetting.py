"""``forget``: everything that is kept of one entity is erased."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from ...queues.progress import Progress
from ..forgetting import Forgetting
from .entities import find_entity
from .output import Output, Usage
from .verb import Options, Verb


class Forget(Verb):
    """``automation forget MODEL:PK``."""

    name = "forget"
    help = (
        "Erase everything that is kept of one entity: its events, runs and agents with their Contexts, payloads and "
        "histories. It may be interrupted, and the same call continues. Exit code 1: something of it is unfinished, or "
        "it exists."
    )
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("entity", metavar="MODEL:PK", help="the entity, such as shop.Order:12")
        parser.add_argument("--cancel", action="store_true", help="first cancel what is unfinished")
        parser.add_argument("--at-once", action="store_true", help="with --cancel: skip @on_cancel")
        parser.add_argument(
            "--living", action="store_true", help="of an entity that exists: erase the values, and keep the rows"
        )
        parser.add_argument("--dry-run", action="store_true", help="only count the rows")

    def perform(self, options: Options, output: Output) -> Any:
        if options["at_once"] and not options["cancel"]:
            raise Usage("--at-once needs --cancel.")
        entity = find_entity(options["entity"])
        work = Forgetting(entity)
        total = work.total()
        if options["dry_run"]:
            unfinished = work.unfinished()
            for kind, count in unfinished.items():
                output.line(f"unfinished: {count} {kind}(s)")
            output.line(f"{total} row(s) of {entity}; nothing was changed (--dry-run).")
            return {"verb": self.name, "dry_run": True, "count": total, "unfinished": unfinished}
        work.prepare(cancel=options["cancel"], at_once=options["at_once"], living=options["living"])
        shown = Progress(output.err, f"forget {entity}", total)
        for done in work.run():
            shown.show(done)
        shown.end()
        for kind, count in work.erased.items():
            output.line(f"erased: {count} {kind}(s)")
        output.line(f"{entity} is forgotten." if work.erased else f"Nothing is kept of {entity}.")
        return {"verb": self.name, "entity": options["entity"], "erased": dict(work.erased)}
