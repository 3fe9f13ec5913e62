"""The story of a workflow run, in eleven queries at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext

from ..exceptions import AutomationError
from ..queues.admin_stories import Reader
from ..values.text import last_line
from ..workflows.deadlines import MISSED
from ..workflows.inspection import Target, calls_of
from ..workflows.models import Signal, StepExecution, Wait, WorkflowRun
from ..workflows.seen import seen_by_run
from ..workflows.statuses import ACTIONS, DEFERRED, EDITED, FORKED, REWOUND, SKIPPED_WAIT, TRIED_NOW, WorkflowStatus
from .failures import failure_of
from .flow import run_flow
from .reading import (
    MAX_ENTRIES,
    TONES,
    changes_between,
    data_of,
    deeds_of,
    deeds_of_people,
    facts_of_run,
    links_of,
    now_of,
    page_of,
    row_page,
    seen_text,
    tone_of,
)
from .story import Fact, Moment, Story, Tone, moment_text

FAILED_OUTCOMES = {"error", "fail", MISSED, StepExecution.LOST}


def run_story(run: WorkflowRun, reader: Reader, now: datetime) -> Story:
    """Return the story of ``run``."""
    status, waits = WorkflowStatus(run.status), _open_waits(run)
    story = Story(
        title=str(run),
        state=gettext("Running") if run.lease else str(status.label),
        tone=tone_of(run, status),
        now=gettext("It has completed.") if status == WorkflowStatus.COMPLETED else now_of(run, now),
        facts=list(_facts(run, reader, now)),
        details=[*_details(run), *_seen(run, reader)],
        failure=failure_of(run.error) if status in (WorkflowStatus.FAILED, WorkflowStatus.PARKED) else None,
        data_title=gettext("Context"),
        data=data_of(run.data, reader),
        deeds=deeds_of(run, reader),
        links=[*_links(run, reader), *links_of(reader)],
    )
    definition = _definition(run)
    story.flow = None if definition is None else run_flow(run, definition, waits)
    story.planned = [] if run.is_finished else list(_planned(run, waits, now))
    visits, story.is_cut = _visits(run, reader)
    story.past = sorted(
        [*visits, *_signals(run, reader), *_children(run, reader), *deeds_of_people(run, reader), *_ends(run, reader)],
        key=lambda entry: entry.at or now,
        reverse=True,
    )
    return story


def _open_waits(run: WorkflowRun) -> list[Wait]:
    return [] if run.is_finished else [wait for wait in run.waits.all() if wait.visit == run.visit]


def _facts(run: WorkflowRun, reader: Reader, now: datetime) -> Iterator[Fact]:
    definition = _definition(run)
    if definition is not None and (text := (definition.cls.__doc__ or "").strip()):
        yield Fact(gettext("About"), " ".join(text.split("\n\n")[0].split()))
    yield Fact(
        gettext("Workflow"), gettext("%(name)s, version %(version)s") % {"name": run.name, "version": run.version}
    )
    if run.current_step:
        yield Fact(gettext("Step"), run.current_step)
    if run.progress is not None:
        yield Fact(gettext("Progress"), f"{run.progress:.0%}")
    yield from facts_of_run(run, reader, now)


def _links(run: WorkflowRun, reader: Reader) -> Iterator[Fact]:
    if reader.may_edit and not run.has_no_context:
        yield Fact("", gettext("Edit the Context, resume at a step, or fork"), row_page(run, "repair", reader))


def _definition(run: WorkflowRun) -> Any:
    try:
        return run.find_definition()
    except AutomationError:  # parked for want of its code: the page must open all the same
        return None


def _details(run: WorkflowRun) -> Iterator[str]:
    if run.is_finished:
        return
    if run.next_deadline is not None:
        yield gettext("The run as a whole must end by %s.") % moment_text(run.next_deadline)
    if run.cancelling_events:
        yield gettext("It is cancelled by %s.") % " or ".join(run.cancelling_events)
    if run.attempt:
        yield gettext("Failed attempts of this step: %s.") % run.attempt


def _seen(run: WorkflowRun, reader: Reader) -> list[str]:
    """Return what the run has seen while it waits, and did not match."""
    if run.status != WorkflowStatus.SUSPENDED or run.lease:
        return []
    return [seen_text(each, reader) for each in seen_by_run(run)]


def _planned(run: WorkflowRun, waits: Sequence[Wait], now: datetime) -> Iterator[Moment]:
    """Yield what comes next: timers, timeouts, and the steps that may follow."""
    is_timer = run.wake_at is not None and run.wake_at not in [wait.deadline for wait in waits]
    if is_timer and not run.lease and run.status != WorkflowStatus.PARKED:
        title = gettext("%s continues") % (run.current_step or run.name)
        yield Moment(title, run.wake_at, Tone.WAITING, run.waiting_text(now))
    for wait in waits:
        text = gettext("then %s") % (wait.then or run.current_step)
        if wait.deadline is not None and wait.on_timeout and wait.on_timeout != wait.then:
            text += ", " + gettext("or %s after the timeout") % wait.on_timeout
        if wait.description:
            yield Moment(wait.description, wait.deadline, Tone.WAITING, text)
    definition = _definition(run)
    if definition is None:
        return
    names = [call.name for call in calls_of(definition) if isinstance(call, Target) and call.step == run.current_step]
    for name in dict.fromkeys(names):
        yield Moment(gettext("%s may follow") % name, None, Tone.NEUTRAL, gettext("by the code of this step"))


def _visits(run: WorkflowRun, reader: Reader) -> tuple[list[Moment], bool]:
    """Return the newest visits of steps with their attempts folded, and whether there are older ones."""
    history = run.steps.all() if reader.may_see_data else run.steps.defer("before")
    newest = list(history.order_by("-pk")[: 4 * MAX_ENTRIES + 1])
    is_cut = len(newest) > 4 * MAX_ENTRIES
    attempts = newest[: 4 * MAX_ENTRIES]
    attempts.reverse()
    groups: dict[tuple[int, str], list[StepExecution]] = {}
    found: list[Moment] = []
    for each in attempts:
        if each.outcome in ACTIONS:
            found.append(Moment(_outcome_text(each), each.finished, Tone.NEUTRAL, last_line(each.error)))
        elif each.outcome != StepExecution.ARRIVED:
            groups.setdefault((each.visit, each.step), []).append(each)
    free_since = None if is_cut else run.created_at
    contexts = [tries[0].before if reader.may_see_data else None for tries in groups.values()]
    following = [*contexts[1:], {"data": run.data}][: len(contexts)]
    for ((_visit, step), tries), before, after in zip(groups.items(), contexts, following, strict=True):
        begun = next((each.started for each in tries if each.started is not None), None)
        worked = sum((each.finished - each.started for each in tries if each.started is not None), timedelta(0))
        last = tries[-1]
        failed = last.outcome in FAILED_OUTCOMES
        is_shown_above = last.error == run.error
        found.append(
            Moment(
                step,
                begun or last.finished,
                Tone.BAD if failed else Tone.GOOD,
                _outcome_text(last),
                ended_at=last.finished,
                waited=None if begun is None or free_since is None else begun - free_since,
                worked=worked,
                failure=failure_of(last.error) if failed and not is_shown_above else None,
                tries=[_attempt(each) for each in tries],
                changes=changes_between(before, after),
            )
        )
        free_since = last.finished
    found.sort(key=lambda moment: moment.at or run.created_at)
    return found[-MAX_ENTRIES:], is_cut or len(found) > MAX_ENTRIES


def _attempt(each: StepExecution) -> Moment:
    tone = Tone.BAD if each.outcome in FAILED_OUTCOMES else Tone.GOOD
    worked = None if each.started is None else each.finished - each.started
    title = gettext("attempt %(number)s: %(outcome)s") % {"number": each.attempt, "outcome": _outcome_text(each)}
    return Moment(title, each.started or each.finished, tone, last_line(each.error), worked=worked)


def _outcome_text(each: StepExecution) -> str:
    words = {
        "goto": gettext("continued at another step"),
        "sleep": gettext("slept"),
        "wait": gettext("waited"),
        "wait_any": gettext("waited for the first of several"),
        "wait_all": gettext("waited for all of several"),
        "subflow": gettext("started a child run"),
        "complete": gettext("completed the run"),
        "fail": gettext("failed the run"),
        "error": gettext("raised an error"),
        StepExecution.LOST: gettext("was lost with its worker"),
        MISSED: gettext("missed the deadline of the run"),
        DEFERRED: gettext("asked for a later attempt"),
        TRIED_NOW: gettext("Tried again at once, by hand"),
        SKIPPED_WAIT: gettext("Skipped its wait, by hand"),
        EDITED: gettext("Its Context was edited"),
        FORKED: gettext("It was forked"),
        REWOUND: gettext("It was rewound"),
    }
    return words.get(each.outcome, each.outcome)


def _signals(run: WorkflowRun, reader: Reader) -> Iterator[Moment]:
    for signal in Signal.objects.filter(run=run).order_by("-pk")[:MAX_ENTRIES]:
        consumed = signal.consumed_at is not None
        text = gettext("consumed") if consumed else gettext("in the inbox, not consumed")
        title = gettext("Signal %s") % signal.name
        yield Moment(title, signal.sent_at, Tone.GOOD if consumed else Tone.WAITING, text, page_of(signal, reader))


def _children(run: WorkflowRun, reader: Reader) -> Iterator[Moment]:
    for child in run.children.order_by("-pk")[:MAX_ENTRIES]:
        tone = TONES.get(child.status, Tone.NEUTRAL)
        label = WorkflowStatus(child.status).label
        yield Moment(gettext("Child run %s") % child, child.created_at, tone, str(label), page_of(child, reader))


def _ends(run: WorkflowRun, reader: Reader) -> Iterator[Moment]:
    title, url = gettext("Created"), ""
    if run.event is not None:
        title, url = gettext("Created by %s") % run.event, page_of(run.event, reader)
    elif run.parent is not None:
        title, url = gettext("Created by %s") % run.parent, page_of(run.parent, reader)
    yield Moment(title, run.created_at, Tone.NEUTRAL, url=url)
    if run.finished_at is not None:
        status = WorkflowStatus(run.status)
        yield Moment(str(status.label), run.finished_at, TONES[status])
