"""``resume``: parked and failed rows continue. The old command ``automation_resume`` calls the same functions."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from ...queues.operations.resume import (
    ResumableKind,
    ResumeRequest,
    names_to_resume,
    resumable_kinds,
    resumable_line,
    resume_all,
    why_not,
)
from .names import check_name, hint, moment
from .output import Output, Usage
from .verb import Options, Verb

MAX_LISTED_ROWS = 50


class Resume(Verb):
    """``automation resume KIND``."""

    name = "resume"
    help = "Resume parked rows, and with --failed those that have failed."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(resumable_kinds())}, or 'all'")
        parser.add_argument("pks", nargs="*", type=int, metavar="PK", help="primary keys of the rows")
        parser.add_argument("--name", help="all of this workflow, agent, handler, event, callback or signal")
        parser.add_argument(
            "--since", metavar="DATE", help="all that were parked (or failed) at this ISO date or later"
        )
        parser.add_argument("--error", metavar="TEXT", help="all whose error contains this string")
        parser.add_argument("--all", action="store_true", help="all")
        parser.add_argument("--failed", action="store_true", help="also failed rows, which are tried again")
        parser.add_argument("--step", help="let workflow runs continue at this step")
        parser.add_argument(
            "--again", action="store_true", help="with --step: even if that may start a second child run"
        )
        parser.add_argument("--dry-run", action="store_true", help="only list the rows")

    def perform(self, options: Options, output: Output) -> Any:
        kinds = self._kinds(options)
        pks = options["pks"] or None
        failed = options["failed"] or pks is not None
        request = ResumeRequest(options["name"], pks, moment(options["since"], "--since"), options["error"], failed)
        self._check(kinds, request, options)
        if options["dry_run"]:
            return self._listed(kinds, request, output)
        done: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        for kind in kinds:
            total = request.rows_of(kind).count()
            results = resume_all(kind, request, options["step"], again=options["again"])
            for each in output.progress(results, total, f"resume {kind.name}"):
                if each.error is None:
                    done.append({"kind": kind.name, "pk": each.row.pk, "awaited_code": each.awaited_code})
                    if total <= MAX_LISTED_ROWS:
                        output.line(f"resumed: {kind.name} {each.row.pk}: {each.row}")
                else:
                    refused.append({"kind": kind.name, "pk": each.row.pk, "why": str(each.error)})
                    output.warn(f"not resumed: {kind.name} {each.row.pk}: {each.error}")
        seen = {each["pk"] for each in [*done, *refused]}
        for pk in sorted(set(pks or ()) - seen):
            why = why_not(kinds[0], pk, request)
            refused.append({"kind": kinds[0].name, "pk": pk, "why": why})
            output.warn(why)
        output.line(f"Resumed: {len(done)}.")
        awaited = sum(each["awaited_code"] for each in done)
        if awaited:
            output.line(f"{awaited} of them lacked their code. They are parked again unless a worker has it now.")
        document: dict[str, Any] = {"verb": "resume", "done": done, "refused": refused}
        if refused:
            document["refused_because"] = f"{len(refused)} row(s) were not resumed; the reasons are above."
        return document

    def _kinds(self, options: Options) -> list[ResumableKind]:
        known = resumable_kinds()
        if options["kind"] == "all":
            return list(known.values())
        given = options["kind"].removesuffix("s")
        return [known[check_name("workflow" if given == "run" else given, [*known, "all"], "kind")]]

    def _check(self, kinds: list[ResumableKind], request: ResumeRequest, options: Options) -> None:
        filters = (request.name, request.since, request.reason)
        if not options["all"] and request.pks is None and all(each is None for each in filters):
            raise Usage("Say which rows: primary keys, --name, --since, --error or --all.")
        if request.pks is not None and len(kinds) != 1:
            raise Usage("Primary keys need the kind of the rows, as in: automation resume workflow 12")
        if options["step"] is not None and (len(kinds) != 1 or not kinds[0].takes_step):
            raise Usage("--step is for workflow runs: automation resume workflow 12 --step STEP")
        if options["step"] is not None and request.name is None and request.pks is None:
            raise Usage("--step needs --name or primary keys: a step belongs to one workflow.")
        if options["again"] and options["step"] is None:
            raise Usage("--again needs --step: only that can start a second child run.")
        if request.name is not None and not any(request.rows_of(kind).exists() for kind in kinds):
            names = {name for kind in kinds for name in names_to_resume(kind)}
            if request.name not in names:
                raise Usage(f"No row that could be resumed is called {request.name!r}. {hint(request.name, names)}")

    def _listed(self, kinds: list[ResumableKind], request: ResumeRequest, output: Output) -> dict[str, Any]:
        total, listed = 0, []
        for kind in kinds:
            rows = request.rows_of(kind)
            total += rows.count()
            for row in rows[:MAX_LISTED_ROWS]:
                listed.append({"kind": kind.name, "pk": row.pk})
                output.line(resumable_line(kind, row))
        output.line(f"{total} to resume; nothing was changed (--dry-run).")
        return {"verb": "resume", "dry_run": True, "count": total, "rows": listed}
