"""``completion``: the shell completes verbs, options and names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from django.core.management.base import CommandParser

from ...agents.definitions import all_agents
from ...events.declarations import declaring_models
from ...queues.operations.resume import resumable_kinds
from ...queues.pauses import EVERYTHING
from ...queues.pausing import names_in, scopes
from ...workflows.definitions import all_workflows, newest_workflows
from ...workflows.inspection import signals_of
from ...workflows.wait_keys import EVENT_CHANNEL
from ..graphs import graph_names
from .kinds import KINDS
from .output import Output
from .pausing import SCHEDULE
from .verb import Options, Verb

BASH = """\
_django_automation() {
    local at=0 word
    for word in "${COMP_WORDS[@]:0:COMP_CWORD}"; do
        [ "$word" = automation ] && break
        at=$((at + 1))
    done
    [ "$at" -ge "$COMP_CWORD" ] && return
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[@]:0:at + 1}" completion --words "${COMP_WORDS[@]:at + 1:COMP_CWORD - at}" 2>/dev/null))
}
complete -o default -F _django_automation manage.py ./manage.py django-admin python
"""
ZSH = "autoload -Uz bashcompinit && bashcompinit\n" + BASH


class Completion(Verb):
    """``automation completion``."""

    name = "completion"
    help = "Print what a shell needs to complete verbs, options and names: source <(manage.py automation completion)"
    verbs: ClassVar[Callable[[], Mapping[str, type[Verb]]]]

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--shell", choices=["bash", "zsh"], default="bash", help="the shell (default: bash)")
        parser.add_argument(
            "--words", nargs=argparse.REMAINDER, help="print what may follow these words; the last one is begun"
        )

    def perform(self, options: Options, output: Output) -> Any:
        if options["words"] is None:
            script = ZSH if options["shell"] == "zsh" else BASH
            output.text(script)
            return {"script": script}
        *before, begun = options["words"] or [""]
        found = sorted(each for each in candidates(type(self).verbs(), before, begun) if each.startswith(begun))
        for each in found:
            output.line(each)
        return {"words": found}


def candidates(verbs: Mapping[str, type[Verb]], before: Sequence[str], begun: str) -> Iterable[str]:
    """Return what may stand in place of the word ``begun`` after the words ``before``."""
    if not before:
        return verbs.keys()
    verb = verbs.get(before[0])
    if verb is None:
        return ()
    parser = CommandParser()
    verb().add_to(parser)
    by_option = {option: action for action in parser._actions for option in action.option_strings}
    last = by_option.get(before[-1])
    if last is not None and last.nargs != 0:
        return _values(last, before)
    if begun.startswith("-"):
        return [option for option in by_option if option.startswith("--")]
    given = _positionals(before[1:], by_option)
    places = [action for action in parser._actions if not action.option_strings]
    if not places:
        return ()
    place = places[min(len(given), len(places) - 1)]
    if len(given) >= len(places) and place.nargs not in ("*", "+"):
        return ()
    return _values(place, before)


def _positionals(words: Sequence[str], by_option: Mapping[str, argparse.Action]) -> list[str]:
    found, takes_value = [], False
    for word in words:
        if word.startswith("-"):
            action = by_option.get(word)
            takes_value = action is not None and action.nargs != 0
        elif not takes_value:
            found.append(word)
        else:
            takes_value = False
    return found


def _values(action: argparse.Action, before: Sequence[str]) -> Iterable[str]:
    """Return the values of an argument; those of ``--name`` and ``--status`` depend on the kind that was given."""
    if action.choices is not None:
        return [str(each) for each in action.choices]
    kind = next((KINDS[word] for word in before if word in KINDS), KINDS["workflow"])
    values: dict[str, Callable[[], Iterable[str]]] = {
        "kind": lambda: [*resumable_kinds(), "all"] if before[0] == "resume" else list(KINDS),
        "workflow": lambda: {each.name for each in all_workflows()},
        "agent": lambda: {each.name for each in all_agents()},
        "signal": _signals,
        "what": lambda: [EVERYTHING, *scopes(), SCHEDULE],
        "names": lambda: next((names_in(word) for word in before if word in scopes()), _schedules_in(before)),
        "name": kind.names,
        "status": lambda: kind.statuses() if kind.has_status else (),
        "entity": lambda: [f"{model._meta.label}:" for model in declaring_models()],
        "graph_name": lambda: {name for names in graph_names().values() for name in names},
        "step": lambda: {step for each in newest_workflows() for step in each.steps},
        "handler": lambda: {each.method for agent in all_agents() for each in agent.handlers},
    }
    return values.get(action.dest, tuple)()


def _schedules_in(before: Sequence[str]) -> Iterable[str]:
    return KINDS[SCHEDULE].names() if SCHEDULE in before else []


def _signals() -> Iterable[str]:
    found = {name for each in newest_workflows() for name in signals_of(each.cls) or ()}
    return {name for name in found if not name.startswith(EVENT_CHANNEL)}
