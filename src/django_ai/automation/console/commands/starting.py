"""``start``, ``spawn`` and ``signal``: something begins, or is told to a run."""

from __future__ import annotations

from typing import Any, get_args

from django.core.management.base import CommandParser
from pydantic import ValidationError

from ...agents.definitions import all_agents
from ...agents.manager import AgentManager
from ...workflows.definitions import all_workflows, newest_workflows
from ...workflows.engine import engine
from ...workflows.inspection import signals_of
from ...workflows.keyed_start import IfExists
from ...workflows.models import Wait, WorkflowRun
from ...workflows.receivable import warning_about
from ...workflows.wait_keys import EVENT_CHANNEL
from .kinds import find_kind
from .names import add_fields, check_name, fields_of, hint
from .output import Output, Refused
from .verb import Options, Verb


def _problems(error: ValidationError) -> str:
    """Return which fields the Context does not accept, and why; without the values."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'Context'}: {each['msg']}" for each in error.errors())


class Start(Verb):
    """``automation start WORKFLOW``."""

    name = "start"
    help = "Start a workflow."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("workflow", metavar="WORKFLOW", help="its name")
        add_fields(parser, "--context", "Context, or arguments of create_context")
        parser.add_argument("--key", help="what the run is unique for")
        parser.add_argument(
            "--if-exists",
            choices=get_args(IfExists),
            default="raise",
            help="what to do if there is a run with this key (default: raise)",
        )

    def perform(self, options: Options, output: Output) -> Any:
        name = check_name(options["workflow"], {each.name for each in all_workflows()}, "workflow")
        arguments = fields_of(options["context"], options["set"], "--context")
        before = None if options["key"] is None else engine.runs(name, key=options["key"]).first()
        try:
            run = engine.start(
                name,
                key=options["key"],
                if_exists=options["if_exists"] if options["key"] is not None else "return",
                **arguments,
            )
        except (ValidationError, TypeError) as error:
            text = _problems(error) if isinstance(error, ValidationError) else str(error)
            raise Refused(f"{name!r} was not started: {text}") from error
        is_new = before is None or before.pk != run.pk
        output.line(f"started: workflow {run.pk}: {run}" if is_new else f"exists: workflow {run.pk}: {run}")
        return {"verb": "start", "workflow": name, "pk": run.pk, "started": is_new}


class Spawn(Verb):
    """``automation spawn AGENT``."""

    name = "spawn"
    help = "Spawn an agent."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("agent", metavar="AGENT", help="its name")
        add_fields(parser, "--context", "Context, or arguments of create_context")
        parser.add_argument("--event", type=int, metavar="PK", help="the event that spawns it")

    def perform(self, options: Options, output: Output) -> Any:
        name = check_name(options["agent"], {each.name for each in all_agents()}, "agent")
        arguments = fields_of(options["context"], options["set"], "--context")
        event = None if options["event"] is None else find_kind("event").find(options["event"])
        try:
            run = AgentManager.spawn(name, event, **arguments)
        except (ValidationError, TypeError) as error:
            text = _problems(error) if isinstance(error, ValidationError) else str(error)
            raise Refused(f"{name!r} was not spawned: {text}") from error
        output.line(f"spawned: agent {run.pk}: {run}")
        return {"verb": "spawn", "agent": name, "pk": run.pk}


class Signal(Verb):
    """``automation signal NAME``."""

    name = "signal"
    help = "Send a signal to one run, or to all runs that wait for it."
    changes = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("signal", metavar="NAME", help="name of the signal")
        add_fields(parser, "--payload", "payload")
        target = parser.add_mutually_exclusive_group(required=True)
        target.add_argument("--run", type=int, metavar="PK", help="the only run that shall get it")
        target.add_argument("--everyone", action="store_true", help="all runs that wait for it")
        parser.add_argument(
            "--anyway", action="store_true", help="send it even if no step is known to wait for this name"
        )

    def perform(self, options: Options, output: Output) -> Any:
        name, payload = options["signal"], fields_of(options["payload"], options["set"], "--payload")
        run: WorkflowRun | None = None if options["run"] is None else find_kind("workflow").find(options["run"])
        problem = warning_about(run, name) if run is not None else _problem_with(name)
        if problem and not options["anyway"]:
            raise Refused(f"The signal was not sent. {problem} --anyway sends it.")
        sent = engine.signal(name, payload, run=run)
        to = str(run) if run is not None else "all runs that wait for it"
        output.line(f"sent: signal {sent.pk}: {name!r} to {to}")
        if problem:
            output.warn(problem)
        return {
            "verb": "signal",
            "name": name,
            "pk": sent.pk,
            "run": None if run is None else run.pk,
            "warning": problem,
        }


def _problem_with(name: str) -> str:
    """Return why no run may receive a signal of this name; empty: one may, or that is unknown."""
    if name.startswith(EVENT_CHANNEL) or Wait.objects.filter(channel=name).exists():
        return ""
    known: set[str] = set()
    for definition in newest_workflows():
        names = signals_of(definition.cls)
        if names is None:
            return ""
        known |= {each for each in names if not each.startswith(EVENT_CHANNEL)}
    return "" if name in known else f"No step of a workflow waits for {name!r}. {hint(name, known)}"
