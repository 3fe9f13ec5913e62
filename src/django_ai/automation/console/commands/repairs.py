"""The verbs that repair one run: ``skip-wait``, ``edit-context``, ``fork`` and ``rewind``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from ...workflows.engine import engine
from ...workflows.models import WorkflowRun
from ..story import moment_text
from .kinds import find_kind
from .names import add_fields, check_name, fields_of
from .output import Output, Refused, Usage
from .verb import Options, Verb

MAX_LISTED_VISITS = 50


def _find(pk: int) -> WorkflowRun:
    run: WorkflowRun = find_kind("workflow").find(pk)
    return run


class SkipWait(Verb):
    """``automation skip-wait RUN``."""

    name = "skip-wait"
    help = "Let a run continue that sleeps, or waits for a signal, an event or a child run."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("pk", type=int, metavar="RUN", help="primary key of the run")
        add_fields(parser, "--payload", "payload that the signal would have brought")
        parser.add_argument("--branch", help="the branch of a wait_any that wins, or of a wait_all that is over")

    def perform(self, options: Options, output: Output) -> Any:
        run = _find(options["pk"])
        payload = fields_of(options["payload"], options["set"], "--payload")
        given = payload if payload or options["payload"] is not None else None
        run = engine.skip_wait(run, given, branch=options["branch"], reason=options["reason"])
        output.line(f"skipped its wait: workflow {run.pk}: {run}")
        return {"verb": self.name, "pk": run.pk}


class EditContext(Verb):
    """``automation edit-context KIND PK``."""

    name = "edit-context"
    help = "Give fields of the Context of a run or an agent other values."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", metavar="KIND", help="workflow or agent")
        parser.add_argument("pk", type=int, metavar="PK", help="its primary key")
        add_fields(parser, "--context", "Context")

    def perform(self, options: Options, output: Output) -> Any:
        kind = find_kind(options["kind"], ("workflow", "agent"))
        fields = fields_of(options["context"], options["set"], "--context")
        if not fields:
            raise Usage("Give the fields: --set NAME=VALUE, or --context JSON.")
        row = engine.edit_context(kind.find(options["pk"]), fields, reason=options["reason"])
        output.line(f"edited {', '.join(sorted(fields))}: {kind.name} {row.pk}: {row}")
        return {"verb": self.name, "kind": kind.name, "pk": row.pk, "fields": sorted(fields)}


class Fork(Verb):
    """``automation fork RUN``."""

    name = "fork"
    help = "Start another run with the Context of a run, which stays as it is."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("pk", type=int, metavar="RUN", help="primary key of the run")
        parser.add_argument("--step", help="the step at which it begins (default: the first)")
        add_fields(parser, "--context", "Context that get other values")

    def perform(self, options: Options, output: Output) -> Any:
        run, fields = _find(options["pk"]), fields_of(options["context"], options["set"], "--context")
        _check_step(run, options["step"])
        made = engine.fork(run, options["step"], fields, reason=options["reason"])
        output.line(f"forked {run}: workflow {made.pk}: {made}")
        return {"verb": self.name, "pk": run.pk, "fork": made.pk}


class Rewind(Verb):
    """``automation rewind RUN [VISIT]``."""

    name = "rewind"
    help = "Let a run continue at an earlier visit of a step, or list the visits."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("pk", type=int, metavar="RUN", help="primary key of the run")
        parser.add_argument("visit", nargs="?", type=int, metavar="VISIT", help="number of the visit (default: list)")
        parser.add_argument("--step", help="the last visit of this step")
        parser.add_argument(
            "--again", action="store_true", help="even to before a child run that has completed; it may start another"
        )

    def perform(self, options: Options, output: Output) -> Any:
        run, visit = _find(options["pk"]), options["visit"]
        if visit is not None and options["step"] is not None:
            raise Usage("Give the number of a visit, or --step.")
        if options["step"] is not None:
            visit = self._last_visit(run, options["step"])
        if visit is None:
            return self._listed(run, output)
        run = engine.rewind(run, visit, again=options["again"], reason=options["reason"])
        output.line(f"rewound to visit {visit}: workflow {run.pk}: {run}")
        return {"verb": self.name, "pk": run.pk, "visit": visit}

    def _last_visit(self, run: WorkflowRun, step: str) -> int:
        found = (
            run.steps.filter(step=step, before__isnull=False).order_by("-pk").values_list("visit", flat=True).first()
        )
        if found is None:
            check_name(step, set(run.steps.values_list("step", flat=True)), f"visited step of {run} called")
            raise Refused(f"The history of {run} has kept no Context of a visit of {step!r}.")
        return int(found)

    def _listed(self, run: WorkflowRun, output: Output) -> dict[str, Any]:
        kept = run.steps.filter(before__isnull=False).order_by("-pk").defer("before", "error")[:MAX_LISTED_VISITS]
        visits: list[dict[str, Any]] = []
        for each in kept:
            visits.append({"visit": each.visit, "step": each.step, "started": each.started})
            output.line(f"{each.visit}: {each.step}{f', {moment_text(each.started)}' if each.started else ''}")
        if not visits:
            output.line(f"{run} can be rewound to no visit: its history has kept no Context.")
        return {"verb": self.name, "pk": run.pk, "visits": visits}


def _check_step(run: WorkflowRun, step: str | None) -> None:
    if step is not None:
        check_name(step, run.find_definition().steps, f"step of {run.name!r} called")
