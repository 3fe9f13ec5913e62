"""Whether a run can receive a signal: what is known of its state, its waits, and the source of its class."""

from __future__ import annotations

from difflib import get_close_matches

from .definitions import registered_workflow
from .inspection import signals_of
from .models import WorkflowRun
from .statuses import WorkflowStatus

MAX_LISTED_NAMES = 8


def warning_about(run: WorkflowRun, name: str) -> str:
    """Return why a run may never receive the signal ``name``; empty if it may, or if that is unknown. It queries only
    for a name that the class does not wait for."""
    if run.status == WorkflowStatus.FAILED:
        return f"{run} has failed, and receives {name!r} only if it is resumed and waits for it."
    if run.is_finished:
        return f"{run} is {run.status}, and receives nothing any more."
    definition = registered_workflow(run.name, run.version)
    names = None if definition is None else signals_of(definition.cls)
    if names is None or name in names or run.waits.filter(channel=name).exists():
        return ""
    if not names:
        return f"No step of {run.name!r} waits for a signal, so {run} may never receive {name!r}."
    near = get_close_matches(name, names, n=1)
    listed = ", ".join(map(repr, sorted(names)[:MAX_LISTED_NAMES]))
    hint = f"Did you mean {near[0]!r}?" if near else f"They wait for {listed}."
    return f"No step of {run.name!r} waits for {name!r}, so {run} may never receive it. {hint}"
