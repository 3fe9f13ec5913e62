"""What each button of a page will do, in one sentence, before it is pressed."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext

from ..agents.models import AgentRun, HandlerStatus
from ..events.models import Event, EventClaim, Schedule
from ..workflows.models import WorkflowRun
from .story import moment_text
from .verb_pages import counted

AHEAD = (HandlerStatus.PENDING, HandlerStatus.WAITING, HandlerStatus.PARKED)


def effect_of(row: Any, name: str) -> str:
    """Return what the action ``name`` will do to ``row``; empty: its label says it all."""
    if isinstance(row, AgentRun) and name in ("complete", "cancel"):
        return _end_of_agent(row)
    if isinstance(row, WorkflowRun) and name in ("cancel", "cancel_at_once"):
        return _end_of_run(row, at_once=name == "cancel_at_once")
    if isinstance(row, Event) and name in ("fire_now", "cancel"):
        return _end_of_event(row, name)
    if isinstance(row, Schedule) and name != "resume":
        return _of_schedule(name)
    return _common(name)


def _of_schedule(name: str) -> str:
    return {
        "fire": gettext("It starts its target once more, now. Its next times stay."),
        "pause": gettext("It fires no more until it is continued; times that pass meanwhile are left out."),
        "unpause": gettext("It continues with its next time; what has passed meanwhile is left out."),
    }.get(name, "")


def _common(name: str) -> str:
    return {
        "resume": gettext("It is due at once, and is tried with new attempts."),
        "redeliver": gettext("Its agent asks its condition and claims again, and handles the event at once."),
        "try_now": gettext("Its next attempt is due at once; it counts as it would have later."),
        "skip_wait": gettext("It continues as after the timeout; what comes later is kept for its next wait."),
        "pause": gettext("Code that runs now ends; nothing more begins until it is unpaused, then all that is due."),
        "unpause": gettext("What has become due meanwhile is performed at once."),
        "release": gettext("Other runs receive the event from now on. What they have skipped can be redelivered."),
    }.get(name, "")


def _end_of_agent(run: AgentRun) -> str:
    mailbox = counted(run.executions.filter(status__in=AHEAD))
    claims = counted(EventClaim.objects.filter(owner_kind="agent", owner_id=run.pk)) if run.holds_claims else "0"
    return gettext(
        "It ends for good. What is left in its mailbox is cancelled (%(mailbox)s), and its claims are released "
        "(%(claims)s)."
    ) % {"mailbox": mailbox, "claims": claims}


def _end_of_run(run: WorkflowRun, *, at_once: bool) -> str:
    children = counted(run.children.unfinished())
    if at_once:
        said = gettext("It ends at once, and no step of it undoes its work. Its child runs end with it (%s).")
    else:
        said = gettext("It ends, after the steps of its @on_cancel if it has one. Its child runs end with it (%s).")
    return said % children


def _end_of_event(event: Event, name: str) -> str:
    if name == "cancel":
        return gettext(
            "It never occurs: what is planned for it is withdrawn. Callbacks of its cancellation are called."
        )
    date = "" if event.at is None else moment_text(event.at)
    return (
        gettext(
            "It occurs now instead of on %s: its condition is evaluated, and every subscriber is notified. Its "
            "offsets keep their dates."
        )
        % date
    )
