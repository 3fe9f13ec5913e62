"""``manage.py automation_resume``: list parked and failed rows, and resume many at once."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from ....values.text import one_line
from ...acting_command import acting_as_command
from ...operations.resume import (
    ResumableKind,
    ResumeRequest,
    names_to_resume,
    resumable_kinds,
    resumable_line,
    resume_all,
    why_not,
)

MAX_LISTED_ROWS = 50


class Command(BaseCommand):
    help = (
        "List parked rows, and resume them if --name, --pk, --since, --reason or --all is given. Rows that are parked "
        "because their code is missing resume automatically once a worker has that code."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        known = ", ".join(resumable_kinds())
        parser.add_argument("kind", nargs="*", help=f"kinds of rows: {known} (default: all)")
        parser.add_argument("--name", help="only rows of this workflow, agent, handler, event, callback or signal")
        parser.add_argument("--pk", nargs="+", type=int, help="only rows with these primary keys, of one kind")
        parser.add_argument("--since", help="only rows that were parked (or failed) at this ISO date or later")
        parser.add_argument("--reason", help="only rows whose error contains this string")
        parser.add_argument("--because", default="", metavar="TEXT", help="why you resume them, for their history")
        parser.add_argument("--failed", action="store_true", help="also failed rows, which are tried again")
        parser.add_argument("--step", help="continue workflow runs at this step (with --name or --pk)")
        parser.add_argument(
            "--again", action="store_true", help="with --step: even if that may start a second child run"
        )
        parser.add_argument("--all", action="store_true", help="all parked rows")
        parser.add_argument("--dry-run", action="store_true", help="only list the rows that would be resumed")

    def handle(self, *args: Any, **options: Any) -> None:
        kinds = self._selected_kinds(options["kind"])
        request = ResumeRequest(
            options["name"], options["pk"], _moment(options["since"]), options["reason"], options["failed"]
        )
        has_selection = options["all"] or any(
            each is not None for each in (request.name, request.pks, request.since, request.reason)
        )
        if request.pks is not None and len(kinds) != 1:
            raise CommandError("--pk needs the kind of the rows, as in: automation_resume workflow --pk 12")
        if options["step"] is not None:
            if len(kinds) != 1 or not kinds[0].takes_step:
                raise CommandError("--step is for workflow runs: automation_resume workflow --name NAME --step STEP")
            if request.name is None and request.pks is None:
                raise CommandError("--step needs --name or --pk: a step belongs to one workflow.")
        if options["again"] and options["step"] is None:
            raise CommandError("--again needs --step: only that can start a second child run.")
        if options["dry_run"] or not has_selection:
            if self._list(kinds, request, options["verbosity"]) and not has_selection:
                self.stdout.write(
                    "Nothing was resumed: select rows with --name, --pk, --since or --reason, or give --all."
                )
            return
        with acting_as_command("automation_resume", options["because"]):
            self._resume(kinds, request, options["step"], options["verbosity"], again=options["again"])

    def _selected_kinds(self, names: list[str]) -> list[ResumableKind]:
        known = resumable_kinds()
        for name in names:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Kinds: {', '.join(known)}."
                raise CommandError(f"Unknown kind {name!r}. {hint}")
        return [known[name] for name in dict.fromkeys(names)] or list(known.values())

    def _list(self, kinds: list[ResumableKind], request: ResumeRequest, verbosity: int) -> int:
        total = 0
        for kind in kinds:
            rows = request.rows_of(kind)
            count = rows.count()
            total += count
            for row in rows if verbosity > 1 else rows[:MAX_LISTED_ROWS]:
                self.stdout.write(resumable_line(kind, row))
            if count > MAX_LISTED_ROWS and verbosity < 2:
                self.stdout.write(f"{kind.name}: and {count - MAX_LISTED_ROWS} more (-v 2 shows all)")
        if request.pks is not None:
            for pk in sorted(set(request.pks) - set(request.rows_of(kinds[0]).values_list("pk", flat=True))):
                self.stdout.write(why_not(kinds[0], pk, request))
        self.stdout.write(f"{total} to resume." if total else "Nothing to resume.")
        if not total:
            self._say_what_is_near(kinds, request)
        return total

    def _say_what_is_near(self, kinds: list[ResumableKind], request: ResumeRequest) -> None:
        """Write why the request may select nothing: its rows have failed, or their name is another one."""
        failed = 0 if request.failed else sum(replace(request, failed=True).rows_of(kind).count() for kind in kinds)
        if failed:
            self.stdout.write(f"{failed} failed: add --failed to try again what has failed.")
        elif request.name is not None:
            known = [name for kind in kinds for name in names_to_resume(kind)]
            near = get_close_matches(request.name, known, n=1)
            if near and request.name not in known:
                self.stdout.write(f"No row that could be resumed is called {request.name!r}. Did you mean {near[0]!r}?")

    def _resume(
        self, kinds: list[ResumableKind], request: ResumeRequest, step: str | None, verbosity: int, *, again: bool
    ) -> None:
        resumed, refused, awaiting_code, seen = 0, 0, 0, set()
        for kind in kinds:
            for each in resume_all(kind, request, step, again=again):
                row, error = each.row, each.error
                seen.add(row.pk)
                if error is None:
                    resumed += 1
                    awaiting_code += each.awaited_code
                    if verbosity > 1:
                        self.stdout.write(one_line(f"resumed {kind.name} {row.pk}: {row}"))
                else:
                    refused += 1
                    self.stderr.write(one_line(f"not resumed: {kind.name} {row.pk}: {error}"))
        self.stdout.write(f"Resumed: {resumed}.")
        if not resumed and not refused:
            self._say_what_is_near(kinds, request)
        if awaiting_code:
            self.stdout.write(
                f"{awaiting_code} of them had been parked because their code was missing. They are parked again "
                "unless a worker has that code now."
            )
        missing = sorted(set(request.pks or ()) - seen)
        if missing:
            raise CommandError(" ".join(why_not(kinds[0], pk, request) for pk in missing))
        if refused:
            raise CommandError(f"{refused} row(s) could not be resumed; the reasons are above.")


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"--since {text!r} is not an ISO date. Write 2030-01-07 or 2030-01-07T12:00+01:00."
        ) from error
    return timezone.make_aware(found) if timezone.is_naive(found) else found
