"""What the code declares, read from the registers: events, callbacks, workflows, agents and schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.utils.translation import gettext

from ...agents.definitions import AgentDefinition, all_agents
from ...events.callbacks import CANCELLED, CREATED, Callback, all_callbacks
from ...events.declarations import Declared, declared_events
from ...events.definitions import EventDefinition
from ...events.free_events import FreeEvent, all_free_events
from ...events.schedules.definitions import PREFIX, SCHEDULED, ScheduleDefinition, all_schedules
from ...events.subscriptions import Subscription, subscriptions
from ...events.transitions import alternatives
from ...events.upcoming import offset_text
from ...queues.lanes import shown_name
from ...values.clock import Offset
from ...workflows.definitions import Start, WorkflowDefinition, newest_workflows, versions_of
from ..story import duration_text
from .origins import first_paragraph, origin_of, origin_of_module, origin_of_name

EVENT, CALLBACK, WORKFLOW, AGENT, SCHEDULE = "event", "callback", "workflow", "agent", "schedule"
KINDS = (EVENT, CALLBACK, WORKFLOW, AGENT, SCHEDULE)


@dataclass(slots=True)
class CatalogueEntry:
    """One thing that the code declares.

    ``sentence``: what it does, made from its arguments. ``about``: the first paragraph of its docstring. ``origin``:
    its file and line. ``facts``: further arguments, as labels and texts.
    """

    kind: str
    name: str
    sentence: str
    about: str = ""
    origin: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    target: str = ""
    """Of a schedule: the name of the workflow or function that it starts."""
    target_kind: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name

    def has_word(self, word: str) -> bool:
        """Return whether its name, sentence, docstring or file has ``word``, in any case."""
        texts = (self.name, self.sentence, self.about, self.origin)
        return any(word.casefold() in text.casefold() for text in texts)


def entries(kind: str = "") -> list[CatalogueEntry]:
    """Return everything that the code declares, or everything of one kind, by kind and name. It makes no query."""
    kinds = (kind,) if kind else KINDS
    return [each for one in kinds for each in sorted(_readers[one](), key=lambda entry: entry.name)]


def find_entry(kind: str, name: str) -> CatalogueEntry | None:
    """Return what is declared under ``name``, or None."""
    return next((each for each in entries(kind) if each.name == name), None) if kind in KINDS else None


def counts_of_kinds() -> dict[str, int]:
    """Return how many things of each kind the code declares."""
    return {kind: sum(1 for _ in _readers[kind]()) for kind in KINDS}


# -- events ------------------------------------------------------------------------------------------------------------


def _events() -> Iterator[CatalogueEntry]:
    for name, owners in declared_events().items():
        definition = owners[0].definition
        yield CatalogueEntry(
            EVENT,
            name,
            " ".join(dict.fromkeys(_of_model(each) for each in owners)),
            about=_about_event(definition),
            origin=origin_of_name(owners[0].owner, name),
            facts=_facts_of_event(definition),
        )
    for event in all_free_events():
        if event.name != SCHEDULED.name:
            yield CatalogueEntry(EVENT, event.name, _of_free_event(event), _about_event(event), _origin_of_free(event))


def _origin_of_free(event: FreeEvent) -> str:
    return origin_of_module(event.module, event.name)


def _about_event(definition: EventDefinition) -> str:
    condition = definition.condition
    return first_paragraph(condition) if condition is not None else ""


def _of_model(declared: Declared) -> str:
    definition, model = declared.definition, str(declared.owner._meta.verbose_name)
    words = {"model": model, "date": definition.date_field, "fields": ", ".join(definition.watch_fields)}
    if definition.is_scheduled:
        text = gettext("Occurs at “%(date)s” of each %(model)s") % words
    elif definition.transition is not None:
        transition = definition.transition
        words["change"] = ", ".join(_change(name, transition.was, transition.becomes) for name in transition.fields)
        text = gettext("Occurs when a write changes %(change)s of a %(model)s") % words
    elif definition.watch_fields:
        text = gettext("Occurs when %(fields)s of a %(model)s changes") % words
    elif definition.triggers:
        verbs = {"create": gettext("created"), "update": gettext("updated"), "delete": gettext("deleted")}
        done = [verbs.get(each.value, each.value) for each in sorted(definition.triggers)]
        text = gettext("Occurs when a %(model)s is %(done)s") % {**words, "done": ", ".join(done)}
    else:
        text = gettext("Occurs once for each %(model)s") % words
    if definition.condition is not None:
        name = getattr(definition.condition, "__name__", "")
        has_name = name and name != "<lambda>"
        text += ", " + (gettext("if %s is true") % name if has_name else gettext("if its condition is true"))
    return f"{text}."


def _change(name: str, was: Any, becomes: Any) -> str:
    before, after = (_values(each.get(name)) if name in each else gettext("anything") for each in (was, becomes))
    return f"“{name}” ({before} → {after})"


def _values(expected: Any) -> str:
    if callable(expected):
        return gettext("computed")
    return " | ".join(str(each) for each in alternatives(expected))


def _of_free_event(event: FreeEvent) -> str:
    if event.is_family:
        return gettext("A family of events that code emits, without a model.")
    return gettext("Emitted by code, without a model.")


def _facts_of_event(definition: EventDefinition) -> list[tuple[str, str]]:
    facts = []
    if definition.is_scheduled:
        facts.append((gettext("Grace"), duration_text(definition.grace)))
    if isinstance(definition.namespace, str):
        facts.append((gettext("Namespace"), definition.namespace))
    if definition.rearm:
        facts.append((gettext("Again"), gettext("after its condition was false, or with a new date")))
    if definition.is_captured:
        facts.append((gettext("Capture"), gettext("also writes that send no signals")))
    return facts


# -- callbacks ---------------------------------------------------------------------------------------------------------


def _callbacks() -> Iterator[CatalogueEntry]:
    by_name: dict[str, list[Callback]] = {}
    for callback in all_callbacks():
        if not callback.event_name.startswith(PREFIX):
            by_name.setdefault(callback.name, []).append(callback)
    for name, several in by_name.items():
        first = several[0]
        when = "; ".join(_when(each) for each in several)
        facts = [(gettext("Queue"), shown_name(first.queue))]
        if first.namespace:
            facts.append((gettext("Namespace"), first.namespace))
        yield CatalogueEntry(
            CALLBACK,
            name,
            gettext("Called %s.") % when,
            first_paragraph(first.function),
            origin_of(first.function),
            facts,
        )


def _when(subscription: Subscription) -> str:
    """Return when a subscriber acts, in words."""
    event = f"“{subscription.event_name}”"
    if subscription.milestone == CREATED:
        return gettext("when %s is recorded") % event
    if subscription.milestone == CANCELLED:
        return gettext("when %s is cancelled") % event
    if subscription.offset is not None:
        return _at_offset(subscription.offset, event)
    text = gettext("when %s occurs") % event
    return text if subscription.window is None else f"{text}, " + gettext("collected with other events")


def _at_offset(offset: Offset, event: str) -> str:
    return offset_text(offset, event)


# -- workflows, agents and schedules -----------------------------------------------------------------------------------


def _workflows() -> Iterator[CatalogueEntry]:
    for definition in newest_workflows():
        starts = [each for each in subscriptions.all(Start) if each.workflow.name == definition.name]
        by_events = [_when(each) for each in starts if not each.event_name.startswith(PREFIX)]
        how = gettext("Started %s") % "; ".join(by_events) if by_events else gettext("Started by code")
        if len(by_events) < len(starts):
            how += ", " + gettext("and by a schedule")
        yield CatalogueEntry(
            WORKFLOW,
            definition.name,
            gettext("%(how)s. Steps: %(steps)s.") % {"how": how, "steps": len(definition.steps)},
            first_paragraph(definition.cls),
            origin_of(definition.cls),
            _facts_of_workflow(definition),
        )


def _facts_of_workflow(definition: WorkflowDefinition) -> list[tuple[str, str]]:
    facts = [
        (gettext("Versions"), ", ".join(versions_of(definition.name))),
        (gettext("Queue"), shown_name(definition.queue)),
    ]
    if definition.deadline is not None:
        facts.append((gettext("Deadline"), duration_text(definition.deadline)))
    if definition.cancel_on:
        names = (each.wait.event or each.wait.signal for each in definition.cancel_on)
        facts.append((gettext("Cancelled by"), ", ".join(names)))
    if definition.limits:
        facts.append((gettext("Limits"), ", ".join(each.name for each in definition.limits)))
    return facts


def _agents() -> Iterator[CatalogueEntry]:
    for definition in all_agents():
        events = list(dict.fromkeys(each.event_name for each in definition.handlers))
        spawned = ", ".join(f"“{each}”" for each in definition.spawn_on) or gettext("code")
        words = {
            "by": spawned,
            "events": ", ".join(f"“{each}”" for each in events),
            "handlers": len(definition.handlers),
        }
        yield CatalogueEntry(
            AGENT,
            definition.name,
            gettext("Spawned by %(by)s; handles %(events)s. Handlers: %(handlers)s.") % words,
            first_paragraph(definition.cls),
            origin_of(definition.cls),
            _facts_of_agent(definition),
        )


def _facts_of_agent(definition: AgentDefinition) -> list[tuple[str, str]]:
    facts = [(gettext("Version"), definition.version), (gettext("Queue"), shown_name(definition.queue))]
    if definition.match is not None:
        text = ", ".join(f"{name} = {value}" for name, value in definition.match.lookups)
        facts.append((gettext("Match"), text))
    if definition.singleton:
        facts.append((gettext("Singleton"), gettext("at most one for each match")))
    return facts


def _schedules() -> Iterator[CatalogueEntry]:
    workflows = {each.name for each in newest_workflows()}
    for definition in all_schedules():
        is_workflow = definition.target in workflows
        words = {"times": _times(definition), "target": definition.target}
        text = (
            gettext("%(times)s: starts the workflow %(target)s.")
            if is_workflow
            else gettext("%(times)s: calls %(target)s.")
        )
        yield CatalogueEntry(
            SCHEDULE,
            definition.name,
            text % words,
            first_paragraph(definition.owner),
            origin_of(definition.owner) if definition.owner is not None else "",
            _facts_of_schedule(definition),
            definition.target,
            WORKFLOW if is_workflow else CALLBACK,
        )


def _times(definition: ScheduleDefinition) -> str:
    when = definition.timetable.when
    if isinstance(when, timedelta):
        return gettext("Every %s") % duration_text(when)
    zone = definition.timetable.zone
    return str(definition.timetable) if zone is None else f"{definition.timetable} ({zone})"


def _facts_of_schedule(definition: ScheduleDefinition) -> list[tuple[str, str]]:
    catch_up = definition.catch_up
    missed = duration_text(catch_up) if isinstance(catch_up, timedelta) else str(catch_up)
    return [(gettext("Missed times made up for"), missed), (gettext("Overlap"), definition.overlap)]


_readers: dict[str, Callable[[], Iterator[CatalogueEntry]]] = {
    EVENT: _events,
    CALLBACK: _callbacks,
    WORKFLOW: _workflows,
    AGENT: _agents,
    SCHEDULE: _schedules,
}
