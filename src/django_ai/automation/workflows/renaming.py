"""Renaming a workflow, or a step of one: the tables in which their names are stored.

The name of a workflow is no progress of a run: a worker that performs a step keeps its lease, and its commit does not
write the name. A step is: a leased run that is at the renamed step loses its lease, so that its worker cannot commit
the old name later, and the step is attempted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import models
from django.db.models import Q
from django.utils import timezone

from ..db.locks import locked
from ..events.renaming import rename_collected, rename_schedules
from ..exceptions import DecryptionError, DefinitionError
from ..queues.bites import in_bites
from ..queues.lease import revoke
from ..queues.renaming import rename_in_words, rename_limiters, rename_muted_name, rename_pauses
from ..state.encryption import check_readable
from .current_run import KIND
from .models import StepExecution, Wait, WorkflowRun
from .starting import origin_key_of
from .statuses import FINISHED, WorkflowStatus

SMALL_BITE = 500
"""Keys in one range of a table whose rows have large columns."""
SUPERSEDED = "Its event has another run of the workflow, under its new name."


def rename_workflow(what: str, old: str, new: str) -> int:
    """Rename a workflow in all tables. Return how many rows were changed. Raises ``DefinitionError``."""
    changed = rename_collected(what, KIND, old, new, _move_window)
    changed += in_bites(what, WorkflowRun, lambda rows: _rename_runs(what, old, new, rows))
    changed += rename_limiters(what, KIND, Q(name=old), {old: new}.get)
    changed += rename_pauses(what, WorkflowRun.pause_scope, old, new) + rename_muted_name(what, KIND, old, new)
    changed += rename_in_words(what, WorkflowRun._meta.label_lower, f"{old} #", f"{new} #")
    return changed + rename_schedules(what, old, new)


def _move_window(before: str, after: str) -> None:
    """Give the run of an open window its new key. A worker that closes it at this moment loses its lease."""
    runs = WorkflowRun.objects.filter(origin_key=before)
    revoke(runs.filter(lease__isnull=False), wake_at=timezone.now())
    revoke(runs, origin_key=after)


def _rename_runs(what: str, old: str, new: str, rows: models.QuerySet[models.Model]) -> int:
    found = rows.filter(name=old).values_list("pk", "name", "event", "origin_key", "started_at", "status")
    alike, changed = [], 0
    keys = {pk: origin_key_of(event, new) for pk, _, event, key, *_ in found if key == origin_key_of(event, old)}
    taken = dict(WorkflowRun.objects.filter(origin_key__in=keys.values()).values_list("origin_key", "pk"))
    for pk, name, event, _, started_at, status in found:
        if name != old:
            continue  # MariaDB ignores case
        if pk not in keys or event is None:
            alike.append(pk)
        elif keys[pk] not in taken:
            changed += rows.filter(pk=pk).update(name=new, origin_key=keys[pk])
        elif started_at is None and (status in FINISHED or status == WorkflowStatus.WAITING):
            changed += _supersede(rows.filter(pk=pk), new)
        else:
            raise DefinitionError(
                f"{what}: run #{pk} of {old!r} and run #{taken[keys[pk]]} of {new!r} were started by the same event "
                f"#{event}. The new code has run before this migration. Cancel one of the two (engine.cancel) and "
                "delete its row, and migrate again."
            )
    return changed + rows.filter(pk__in=alike).update(name=new)


def _supersede(row: models.QuerySet[models.Model], new: str) -> int:
    """End a run that is only planned, in place of which another is planned."""
    ended: dict[str, Any] = {"name": new, "origin_key": None, "wake_at": None}
    live = row.filter(finished_at=None)
    changes = {"status": WorkflowStatus.CANCELLED, "error": SUPERSEDED, "finished_at": timezone.now()}
    return revoke(live, **ended, **changes) or revoke(row, **ended)


# -- steps -------------------------------------------------------------------------------------------------------------


def rename_step(what: str, workflow: str, version: str | None, old: str, new: str) -> int:
    """Rename a step of the runs of a workflow. Return how many rows were changed. Raises ``DecryptionError``."""
    runs = WorkflowRun.objects.filter(name=workflow)
    if version is not None:
        runs = runs.filter(version=version)

    def change_runs(rows: models.QuerySet[models.Model]) -> int:
        return _rename_step_of_runs(what, rows.filter(pk__in=runs.values("pk")), old, new)

    def change_waits(rows: models.QuerySet[models.Model]) -> int:
        mine, changed = rows.filter(run__in=runs.values("pk")), 0
        for column in ("then", "on_timeout"):
            changed += mine.filter(**{column: old}).update(**{column: new})
        return changed

    def change_history(rows: models.QuerySet[models.Model]) -> int:
        return _rename_step_of_history(what, rows.filter(run__in=runs.values("pk")), old, new)

    changed = in_bites(what, WorkflowRun, change_runs, SMALL_BITE) + in_bites(what, Wait, change_waits)
    return changed + in_bites(what, StepExecution, change_history, SMALL_BITE)


def _rename_step_of_runs(what: str, rows: models.QuerySet[models.Model], old: str, new: str) -> int:
    concerned = rows.filter(Q(current_step=old) | Q(wake_step=old) | Q(ending__isnull=False))
    changed = 0
    for run in locked(concerned).only("pk", "name", "current_step", "wake_step", "ending", "lease"):
        assert isinstance(run, WorkflowRun)
        _readable(run.ending, f"{what}: run #{run.pk}, ending")
        values: dict[str, Any] = {name: new for name in ("current_step", "wake_step") if getattr(run, name) == old}
        ending = _renamed_ending(run.ending, old, new)
        if ending != run.ending:
            values["ending"] = ending
        if values and run.lease is not None:
            values["wake_at"] = timezone.now()
        if values:
            changed += revoke(rows.filter(pk=run.pk), **values)
    return changed


def _renamed_ending(ending: Any, old: str, new: str) -> Any:
    if not isinstance(ending, dict):
        return ending
    found = _renamed(ending, ("current_step", "wake_step"), old, new)
    if "waits" in ending:
        found["waits"] = [_renamed(each, ("then", "on_timeout"), old, new) for each in ending["waits"]]
    return found


def _renamed(values: Mapping[str, Any], names: Iterable[str], old: str, new: str) -> dict[str, Any]:
    return {**values, **{name: new for name in names if values.get(name) == old}}


def _rename_step_of_history(what: str, rows: models.QuerySet[models.Model], old: str, new: str) -> int:
    # What a branch has received is recorded under the name of the branch.
    changed = rows.filter(step=old).exclude(outcome=StepExecution.ARRIVED).update(step=new)
    for pk, run, before in rows.filter(before__isnull=False).values_list("pk", "run", "before"):
        _readable(before, f"{what}: step execution #{pk} of run #{run}, before")
        renamed = _renamed(before, ("step", "wake_step"), old, new) if isinstance(before, dict) else before
        if renamed != before:
            changed += rows.filter(pk=pk).update(before=renamed)
    return changed


def _readable(value: Any, where: str) -> None:
    """Raise ``DecryptionError`` if no key decrypts a stored value."""
    try:
        check_readable(value, where)
    except DecryptionError as error:
        raise DecryptionError(f"{error} Then migrate again.") from error
