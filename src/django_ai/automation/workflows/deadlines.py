"""Deadlines: a run that has not ended by its deadline fails, whatever it waits for.

``WorkflowRun.deadline`` is written when the run is inserted. A planned run gets it from the worker that is about to
start it, counted from its date, and so does the run of a window (``window_runs``), counted from the end of the window.
Wherever the run is released until a later time, ``by_deadline`` limits that time, so the run is due at its deadline.
The worker that claims it then enters no step, and commits its failure. A step that is running at the
deadline is not interrupted: the worker looks before the next one. The waits of the run stay, or are kept in ``ending``
while it is on its path: a run that is resumed waits for the rest. The path of a run that has failed or was cancelled
has no deadline. A parked run waits for an operator, and gets a new deadline when it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..queues.attempt import commit
from ..queues.limits.reasons import slot_reason
from ..queues.limits.release import release_but_life
from ..queues.signals import row_failed
from ..queues.wakeable import deferral_text
from ..values.languages import in_english
from ..values.text import last_line
from .current_run import KIND
from .definitions import WorkflowDefinition
from .ending import end_children
from .models import Wait, WorkflowRun
from .paths import with_waits
from .statuses import WorkflowStatus
from .transitions import Decision, State, deadline_change, end, no_deferrals

if TYPE_CHECKING:
    from .run_session import RunSession

MISSED = "deadline"
"""The outcome in the history of a run that has failed because of its deadline."""


def fail_at_deadline(session: RunSession) -> None:
    """Let the run of a session fail: it enters its ``@on_fail``, or ends. Its children are cancelled."""
    run, definition = session.run, session.definition
    session.begin(session.entry)
    state = session.state(session.entry)
    waits = [wait for wait in run.waits.all() if wait.visit == run.visit]
    decision = _missed(state, waits)
    progress = session.progress(state, decision)
    writes: list[Callable[[], Any]] = [*progress.writes, partial(end_children, run, decision.error, state.finished)]
    if not decision.ends:
        writes.append(Wait.objects.of_visits().filter(run=run.pk).delete)
        if definition.limits:
            writes.append(partial(release_but_life, KIND, [run.pk], state.finished))
    commit(run, replace(progress, writes=tuple(writes)))
    if decision.failure is not None:
        row_failed.send_robust(WorkflowRun, row=run, reason=decision.failure)


def _missed(state: State, waits: Sequence[Wait]) -> Decision:
    """Return the decision for a run whose deadline has passed. ``waits``: what it waits for."""
    run = state.run
    changes = {**no_deferrals(run), **deadline_change(run)}
    decision = end(state, WorkflowStatus.FAILED, _reason(run, state.definition, waits), changes)
    changes |= decision.changes if decision.ends else with_waits(decision.changes, waits)
    return replace(decision, changes=changes, outcome=MISSED)


@in_english
def _reason(run: WorkflowRun, definition: WorkflowDefinition, waits: Sequence[Wait]) -> str:
    assert run.deadline is not None
    found = [wait.description for wait in waits]
    if waited_for := " or ".join(each for each in found if each):
        state = f"waited for {waited_for}"
    elif definition.limits and (limit := slot_reason(KIND, run.pk)):
        state = f"waited for {limit}"
    elif run.deferrals:
        state = f"was to be repeated {deferral_text(run.deferrals, run.error)}"
    elif run.attempt:
        state = f"had failed {run.attempt} times: {last_line(run.error)}"
    else:
        state = "was not completed"
    moment = run.deadline.isoformat(timespec="seconds")
    return f"The deadline of this run, {moment}, has passed: its step {run.current_step or definition.start!r} {state}."
