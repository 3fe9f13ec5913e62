"""``engine.edit_context`` and ``engine.fork``: other values in the Context of a run, validated by its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..exceptions import NoContextError
from ..queues.history import note
from ..state.editing import check_fields, edited_data
from ..state.versions import restore
from .definitions import workflow_of
from .models import WorkflowRun
from .repairing import from_outside, record, refuse, repaired
from .starting import insert_run
from .statuses import EDITED, FORKED, WorkflowStatus


def edit_context(run: WorkflowRun, fields: Mapping[str, Any], reason: str) -> None:
    """Store other values of ``fields`` in the Context of a run that rests."""
    what = f"engine.edit_context({run})"
    check_fields(fields, what)

    def edit(row: WorkflowRun, now: datetime) -> None:
        _check_editable(what, row)
        definition = workflow_of(row)
        data = edited_data(definition, row.data, row.version, fields, what)
        from_outside(row, data=json.loads(data), version=definition.version)
        record(row, EDITED, f"Edited {', '.join(fields)}", reason, now)

    repaired(run, what, edit)


def _check_editable(what: str, run: WorkflowRun) -> None:
    if run.is_finished and run.status != WorkflowStatus.FAILED:
        raise refuse(what, run, f"is {run.status}, and nothing reads its Context. Start another with engine.fork().")
    if run.lease is not None:
        raise refuse(
            what, run, f"is performed by {run.holder} at this moment. Pause it with engine.pause(), and edit it then."
        )
    if run.awaits_start:
        raise _no_context(what, run)


def _no_context(what: str, run: WorkflowRun) -> NoContextError:
    return NoContextError(
        f"{what}: {run} has no Context yet, because its first step has not ended: its event makes it. Change what the "
        "event is about.",
        run,
    )


def fork(run: WorkflowRun, now: datetime, step: str | None, fields: Mapping[str, Any], reason: str) -> WorkflowRun:
    """Insert a run of the same workflow, with the Context of a locked run and other values of ``fields``."""
    what = f"engine.fork({run})"
    if fields:
        check_fields(fields, what)
    if run.has_no_context:
        raise _no_context(what, run)
    definition = workflow_of(run)
    start = definition.start if step is None else definition.step(step).name
    data = edited_data(definition, run.data, run.version, fields, what)
    made = insert_run(
        definition,
        restore(definition, json.loads(data), definition.version, what).context,
        now,
        current_step=start,
        entity_type=run.entity_type,
        entity_id=run.entity_id,
        caused_by=f"workflow:{run.pk}",
    )
    note(made, "Forked", reason)
    record(run, FORKED, f"Forked as {made}, at {start!r}", reason, now)
    return made
