"""``manage.py automation_resume``: let parked rows go on, many at once."""

from __future__ import annotations

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from ....db.writer import alias_of
from ....values.text import one_line
from ...operations.resume import Kind, ResumeRequest, kinds, resume_all

SHOWN = 50


class Command(BaseCommand):
    help = (
        "Lists what is parked, and with --name, --pk, --since, --reason or --all resumes it. What is parked for want "
        "of code goes on by itself once a worker has that code; this is for the rest, and for the impatient."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        known = ", ".join(kinds())
        parser.add_argument("kind", nargs="*", help=f"kinds of rows: {known} (default: all)")
        parser.add_argument("--name", help="only of this workflow, agent, handler, event, callback or signal")
        parser.add_argument("--pk", nargs="+", type=int, help="only these primary keys, of one kind")
        parser.add_argument("--since", help="only what was parked (or failed) at this ISO date or later")
        parser.add_argument("--reason", help="only what has this text in its error")
        parser.add_argument("--failed", action="store_true", help="what has failed, too: it is tried again")
        parser.add_argument("--step", help="let workflow runs go on at this step (with --name or --pk)")
        parser.add_argument("--again", action="store_true", help="with --step: even if it may start a second child run")
        parser.add_argument("--all", action="store_true", help="all of it")
        parser.add_argument("--dry-run", action="store_true", help="only list what would be resumed")

    def handle(self, *args: Any, **options: Any) -> None:
        meant = self._kinds(options["kind"])
        wish = ResumeRequest(
            options["name"], options["pk"], _moment(options["since"]), options["reason"], options["failed"]
        )
        narrowed = options["all"] or any(each is not None for each in (wish.name, wish.pks, wish.since, wish.reason))
        if wish.pks is not None and len(meant) != 1:
            raise CommandError("--pk needs the kind of the rows, as in: automation_resume workflow --pk 12")
        if options["step"] is not None:
            if len(meant) != 1 or not meant[0].takes_step:
                raise CommandError("--step is for workflow runs: automation_resume workflow --name NAME --step STEP")
            if wish.name is None and wish.pks is None:
                raise CommandError("--step needs --name or --pk: a step belongs to one workflow.")
        if options["again"] and options["step"] is None:
            raise CommandError("--again is for --step: without one, no step is entered anew.")
        if options["dry_run"] or not narrowed:
            if self._list(meant, wish, options["verbosity"]) and not narrowed:
                self.stdout.write("Nothing was resumed: say which with --name, --pk, --since or --reason, or --all.")
            return
        self._resume(meant, wish, options["step"], options["verbosity"], again=options["again"])

    def _kinds(self, names: list[str]) -> list[Kind]:
        known = kinds()
        for name in names:
            if name not in known:
                raise CommandError(f"There is no kind {name!r}. Kinds: {', '.join(known)}.")
        return [known[name] for name in dict.fromkeys(names)] or list(known.values())

    def _list(self, meant: list[Kind], wish: ResumeRequest, verbosity: int) -> int:
        total = 0
        for kind in meant:
            rows = wish.rows_of(kind)
            count = rows.count()
            total += count
            for row in rows if verbosity > 1 else rows[:SHOWN]:
                self.stdout.write(_line(kind, row))
            if count > SHOWN and verbosity < 2:
                self.stdout.write(f"{kind.name}: and {count - SHOWN} more (-v 2 shows all)")
        if wish.pks is not None:
            for pk in sorted(set(wish.pks) - set(wish.rows_of(meant[0]).values_list("pk", flat=True))):
                self.stdout.write(_why_not(meant[0], pk, wish))
        self.stdout.write(f"{total} to resume." if total else "Nothing to resume.")
        return total

    def _resume(self, meant: list[Kind], wish: ResumeRequest, step: str | None, verbosity: int, *, again: bool) -> None:
        resumed, refused, awaiting, seen = 0, 0, 0, set()
        for kind in meant:
            for each in resume_all(kind, wish, step, again=again):
                row, error = each.row, each.error
                seen.add(row.pk)
                if error is None:
                    resumed += 1
                    awaiting += each.awaited_code
                    if verbosity > 1:
                        self.stdout.write(one_line(f"resumed {kind.name} {row.pk}: {row}"))
                else:
                    refused += 1
                    self.stderr.write(one_line(f"not resumed: {kind.name} {row.pk}: {error}"))
        self.stdout.write(f"Resumed: {resumed}.")
        if awaiting:
            self.stdout.write(
                f"{awaiting} of them had been parked because their code was missing: they are parked again unless a "
                "worker has that code now."
            )
        missing = sorted(set(wish.pks or ()) - seen)
        if missing:
            raise CommandError(" ".join(_why_not(meant[0], pk, wish) for pk in missing))
        if refused:
            raise CommandError(f"{refused} could not be resumed; the reasons are above.")


def _why_not(kind: Kind, pk: int, wish: ResumeRequest) -> str:
    """Say why the row with this key was not among those that are meant."""
    row = kind.model._default_manager.using(alias_of(kind.model)).filter(pk=pk).first()
    if row is None:
        return f"There is no {kind.name} with the primary key {pk}."
    known = ResumeRequest(pks=[pk], failed=True)
    if not wish.failed and known.rows_of(kind).exists():
        return f"{kind.name} {pk} has failed; add --failed to try it again."
    status = getattr(row, "status", "delivered")
    if not known.rows_of(kind).exists():
        return f"{kind.name} {pk} is {status}; only what is parked or has failed can be resumed."
    return f"{kind.name} {pk} is {status}, but --name, --since or --reason leave it out."


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(f"--since {text!r} is no ISO date, as 2030-01-07 or 2030-01-07T12:00+01:00.") from error
    return timezone.make_aware(found) if timezone.is_naive(found) else found


def _line(kind: Kind, row: Any) -> str:
    """Say in one line which row it is, since when it stands, and why."""
    status = getattr(row, "status", "parked")
    since = row.parked_at if status == "parked" else getattr(row, "finished_at", None)
    when = f" since {timezone.localtime(since):%Y-%m-%d %H:%M}" if since else ""
    lines = row.error.strip().splitlines() or [""]
    why = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return one_line(f"{kind.name} {row.pk}: {row}, {status}{when}: {why}")
