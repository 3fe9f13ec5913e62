"""The answers of ``why`` as the pages show them: lines of a table, and the conditions of one subscriber."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlencode

from django.contrib.auth import get_permission_codename
from django.db.models import Model
from django.http import HttpRequest
from django.utils.translation import gettext

from ..agents.models import AgentRun, HandlerExecution
from ..events.models import CallbackExecution
from ..events.why import Answer, Condition, Standing
from ..queues.admin_stories import Reader
from ..workflows.models import WorkflowRun
from .reading import page_of
from .story import SIGNS, Tone, moment_text

MODELS: dict[str, type[Model]] = {
    "callback": CallbackExecution,
    "workflow": WorkflowRun,
    "agent": AgentRun,
    "handler": HandlerExecution,
}
"""The model of the rows of each kind of subscriber: the permission to view it shows the answers."""

TONES = {
    Standing.RAN: Tone.GOOD,
    Standing.FAILED: Tone.BAD,
    Standing.WAITS: Tone.WAITING,
    Standing.SKIPPED: Tone.STOPPED,
    Standing.NOT_YET: Tone.WAITING,
    Standing.DID_NOT: Tone.STOPPED,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A condition as it is shown. The values of a Context are hidden from those who may not see them."""

    name: str
    expected: str
    found: str
    sign: str
    tone: Tone
    verdict: str


@dataclass(slots=True)
class AnswerLine:
    """One subscriber and one event in a table."""

    kind: str
    subscriber: str
    event: str
    standing: str
    tone: Tone
    reason: str
    time_text: str
    url: str
    why_url: str
    agent: str = ""
    conditions: list[Asked] = field(default_factory=list)

    @property
    def sign(self) -> str:
        return SIGNS[self.tone]


def may_view(request: HttpRequest, model: type[Model]) -> bool:
    """Return whether the user may view rows of ``model``."""
    options = model._meta
    codename = get_permission_codename("view", options)
    changes = get_permission_codename("change", options)
    return any(request.user.has_perm(f"{options.app_label}.{each}") for each in (codename, changes))


def may_see_contexts(request: HttpRequest) -> bool:
    """Return whether the user may see values of the Contexts of agents, which matches compare."""
    return request.user.has_perm("automation_agents.view_data_agentrun")


def lines_of(
    answers: Iterable[Answer], reader: Reader, kinds: Iterable[str], *, base: str, may_see_data: bool, detailed: bool
) -> list[AnswerLine]:
    """Return the answers of subscribers of the ``kinds`` that the user may view. ``base``: the address of the page that
    explains one of them."""
    shown = set(kinds)
    return [
        AnswerLine(
            kind=kind_text(each.kind),
            subscriber=each.subscriber,
            event=each.event,
            standing=standing_text(each.standing),
            tone=TONES[each.standing],
            reason=each.reason,
            time_text="" if each.at is None else moment_text(each.at),
            url=page_of(each.row, reader),
            why_url=f"{base}?{urlencode({'subscriber': each.subscriber})}#automation-why" if base else "",
            agent=each.agent,
            conditions=[_asked(one, may_see_data) for one in each.conditions] if detailed else [],
        )
        for each in answers
        if each.kind in shown
    ]


def _asked(condition: Condition, may_see_data: bool) -> Asked:
    is_hidden = condition.is_data and not may_see_data
    hidden = gettext("hidden")
    if condition.holds is None:
        tone, verdict = Tone.NEUTRAL, gettext("unknown")
    elif condition.holds:
        tone, verdict = Tone.GOOD, gettext("yes")
    elif condition.may_change:
        tone, verdict = Tone.WAITING, gettext("not yet")
    else:
        tone, verdict = Tone.BAD, gettext("no")
    return Asked(
        condition.name,
        hidden if is_hidden else condition.expected,
        hidden if is_hidden else condition.found,
        SIGNS[tone],
        tone,
        verdict,
    )


def kind_text(kind: str) -> str:
    words = {
        "callback": gettext("callback"),
        "workflow": gettext("workflow"),
        "agent": gettext("agent"),
        "handler": gettext("handler"),
        "event": gettext("event"),
        "schedule": gettext("schedule"),
    }
    return words.get(kind, kind)


def standing_text(standing: Standing) -> str:
    words = {
        Standing.RAN: gettext("ran"),
        Standing.FAILED: gettext("failed"),
        Standing.WAITS: gettext("waits"),
        Standing.SKIPPED: gettext("skipped"),
        Standing.NOT_YET: gettext("not yet"),
        Standing.DID_NOT: gettext("did not act"),
    }
    return words[standing]
