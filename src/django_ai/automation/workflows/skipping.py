"""``engine.skip_wait``: a run no longer waits, and continues as after its timeout, or with a payload from an operator.

A payload travels as every payload does: in a ``Signal`` to this run, on the channel that it waits for. So the step sees
``get_wake()`` as after that signal, the payload is merged into the Context, and the history names the signal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from ..exceptions import DefinitionError
from ..queues.causation import cause_now
from ..state.editing import edited
from ..values.json_text import encode
from ..values.languages import in_english
from .branches import Arrival, collect, withdraw_children
from .current_run import WakeReason
from .models import Signal, Wait, WorkflowRun
from .repairing import check_rests, from_outside, is_asleep, record, refuse
from .statuses import SKIPPED_WAIT, WorkflowStatus
from .wait_keys import SUBFLOW
from .waits import reason_of_timeout, waits_of
from .waking import wake


def skip_wait(
    run: WorkflowRun, now: datetime, what: str, payload: Mapping[str, Any] | None, branch: str | None, reason: str
) -> None:
    """Let a locked run continue that sleeps or is suspended."""
    if payload is not None and not isinstance(payload, Mapping):
        raise DefinitionError(f"{what}: payload={payload!r:.80} must be a dict.")
    check_rests(what, run)
    if is_asleep(run):
        if payload is not None or branch is not None:
            raise refuse(what, run, "sleeps, and a sleep brings no payload and has no branch. Leave both out.")
        from_outside(run, wake_at=now)
        record(run, SKIPPED_WAIT, "Skipped its sleep", reason, now)
        return
    if run.status != WorkflowStatus.SUSPENDED:
        waiting = run.waits_for(now)
        advice = "Use engine.try_now()." if run.is_retried else _advice(run)
        raise refuse(what, run, f"is {run.status} and waits for {waiting}, which cannot be skipped. {advice}")
    waits = waits_of(run)
    over = _chosen(run, waits, what, payload, branch)
    waited_for = _in_words(run, over)
    if over is None:  # the whole of a choice
        _skip_whole(run, waits, now)
    else:
        _skip(run, waits, over, _arrival(run, over, payload, what, now), now)
    record(run, SKIPPED_WAIT, f"Skipped {waited_for}", reason, now)


@in_english
def _in_words(run: WorkflowRun, wait: Wait | None) -> str:
    return run.suspended_reason() if wait is None else wait.description


def _advice(run: WorkflowRun) -> str:
    if run.awaits_start:
        return "It starts at the date of its event: move that date, or start another run with engine.start()."
    return "It is due without help."


def _chosen(
    run: WorkflowRun, waits: Sequence[Wait], what: str, payload: Mapping[str, Any] | None, branch: str | None
) -> Wait | None:
    """Return the wait that is over; None: the whole of a choice. Raises ``StateError``."""
    named = {wait.branch: wait for wait in sorted(waits, key=lambda each: each.pk) if wait.branch}
    first = next(iter(named), "")
    if branch is not None:
        if branch not in named:
            near = get_close_matches(str(branch), named, n=1)
            known = f"Did you mean {near[0]!r}?" if near else f"Open: {', '.join(map(repr, named)) or 'none'}."
            raise refuse(what, run, f"waits in no branch {branch!r}. {known}")
        if named[branch].is_timer and payload is not None:
            raise refuse(what, run, f"sleeps in its branch {branch!r}, and a sleep brings no payload. Leave it out.")
        return named[branch]
    if not named:
        return waits[0]
    if payload is not None:
        raise refuse(what, run, f"waits in several branches: say which gets the payload, branch={first!r}.")
    if run.wake_reason == WakeReason.ALL or any(wait.is_whole for wait in waits):
        return None
    raise refuse(
        what,
        run,
        f"waits for the first of several branches without a timeout: say which one wins, as in "
        f"branch={first!r}. Open: {', '.join(map(repr, named))}.",
    )


def _arrival(run: WorkflowRun, over: Wait, payload: Mapping[str, Any] | None, what: str, now: datetime) -> Arrival:
    """Return what ends the wait: time, or a signal with the payload, which this inserts as consumed."""
    if payload is None:
        return Arrival(reason_of_timeout(over))
    values = json.loads(encode(dict(payload), f"The payload of {what}"))
    if not over.channel.startswith(f"{SUBFLOW}:"):
        context = run.context
        known = {name: value for name, value in values.items() if name in type(context).model_fields}
        edited(context, known, f"{what}: the payload")
    signal = Signal.objects.create(
        name=over.channel,
        payload=values,
        run_id=run.pk,
        sent_at=now,
        delivered_at=now,
        consumed_at=now,
        caused_by=cause_now()[0],
    )
    return Arrival.of(signal)


def _skip(run: WorkflowRun, waits: Sequence[Wait], over: Wait, arrival: Arrival, now: datetime) -> None:
    withdraw_children(Wait.objects.filter(pk=over.pk), "its wait was skipped", now)
    if run.wake_reason == WakeReason.ALL and over.branch:
        collect({run.pk: [over.pk]}, arrival, now)
        return
    is_timeout = arrival.reason == WakeReason.TIMEOUT
    step = over.on_timeout if is_timeout else over.then
    wake(WorkflowRun.objects.filter(pk=run.pk), [run.pk], arrival, step, now, branch=over.branch)


def _skip_whole(run: WorkflowRun, waits: Sequence[Wait], now: datetime) -> None:
    """Let the timeout of a choice be over; a ``wait_all`` without one continues where it would after its last
    branch."""
    whole = next((wait for wait in waits if wait.is_whole), None)
    withdraw_children(Wait.objects.filter(pk__in=[wait.pk for wait in waits]), "its wait was skipped", now)
    step = run.wake_step if whole is None else whole.on_timeout
    wake(WorkflowRun.objects.filter(pk=run.pk), [run.pk], Arrival(WakeReason.TIMEOUT), step, now)
