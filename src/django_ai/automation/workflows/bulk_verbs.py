"""What can be done to many runs and signals at once, and ``cancel_run``, which the admin calls, too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext

from ..exceptions import AutomationError
from ..queues.acting import signed
from ..queues.bulk.verbs import BulkKind, BulkVerb, pausing_verbs, register_bulk_kind, resuming
from ..queues.history import note
from .bulk_ending import cancel_plain_runs
from .engine import engine
from .models import Signal, WorkflowRun
from .statuses import FINISHED, WorkflowStatus

UNFINISHED = ~Q(status__in=FINISHED)


def cancel_run(run: WorkflowRun, reason: str = "", *, at_once: bool = False) -> bool:
    """Cancel a run; return False if it had finished. Raises ``AutomationError`` if it is on its way to an end."""
    done = engine.cancel(run, reason or "Cancelled.", at_once=at_once)
    if not done and not run.is_finished:
        raise AutomationError(gettext("%(run)s has begun its %(path)s already.") % {"run": run, "path": run.path})
    return done


def cancel_runs(runs: Sequence[WorkflowRun], reason: str = "", *, at_once: bool = False) -> set[int]:
    """Cancel those of ``runs`` that few statements can cancel together, and return their keys.

    Call it in the transaction of a bulk action; ``cancel_run`` cancels the others.
    """
    given = reason or "Cancelled."
    pks, text = [run.pk for run in runs], signed("Cancelled", given)
    ended = cancel_plain_runs(pks, text, timezone.now(), at_once=at_once)
    for run in ended:
        note(run, "Cancelled", given)
    return {run.pk for run in ended}


def register_verbs(undelivered: Q) -> None:
    """Register the kinds of rows of this layer. ``undelivered``: the condition of parked signals."""
    waiting = Q(status__in=[WorkflowStatus.WAITING, WorkflowStatus.SUSPENDED])
    verbs = {
        "resume": resuming(Q(status__in=[WorkflowStatus.PARKED, WorkflowStatus.FAILED])),
        "try_now": BulkVerb(
            lambda run, reason: engine.try_now(run, reason=reason),
            "Tried now",
            lambda: Q(status__in=[WorkflowStatus.WAITING, WorkflowStatus.RUNNING]),
        ),
        "skip_wait": BulkVerb(lambda run, reason: engine.skip_wait(run, reason=reason), "Skipped", lambda: waiting),
        "cancel": BulkVerb(cancel_run, "Cancelled", lambda: UNFINISHED, is_final=True, act_together=cancel_runs),
        "cancel_at_once": BulkVerb(
            partial(cancel_run, at_once=True),
            "Cancelled",
            lambda: UNFINISHED,
            is_final=True,
            act_together=partial(cancel_runs, at_once=True),
        ),
        **pausing_verbs(WorkflowRun, UNFINISHED),
    }
    register_bulk_kind(BulkKind("workflow", WorkflowRun, "name", verbs))
    register_bulk_kind(BulkKind("signal", Signal, "name", {"resume": resuming(undelivered)}))
