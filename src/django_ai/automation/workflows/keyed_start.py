"""``engine.start(..., key=...)``: one run for each key, however many processes start it, and however often.

The key becomes the run's unique ``origin_key``, and the insert ignores a conflict. So of two transactions that start at
the same time one inserts the run; the other one waits for its commit, and then finds that run, or for its rollback, and
then inserts its own. The key is taken for as long as the row exists: until it is pruned, or a restart releases the key.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from django.db import connections, transaction
from pydantic import BaseModel

from ..db.deadlocks import retry_on_deadlock
from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..exceptions import AutomationError, DefinitionError, RunExistsError
from ..queues.acting import signed
from ..queues.history import note, noting_reason
from ..queues.lanes import lane_of
from ..queues.notifier import ring_after_commit
from ..queues.positions import insert_bounded, lower_bound
from ..queues.renaming import former_names, former_names_query
from ..values.digests import digest
from ..values.text import one_line
from .current_run import KIND
from .definitions import WorkflowDefinition
from .ending import end_runs
from .models import WorkflowRun
from .starting import run_due_now
from .statuses import WorkflowStatus

IfExists: TypeAlias = Literal["return", "raise", "restart"]
"""What a start does if its key is taken."""

MAX_KEY_LENGTH = 1000
MAX_START_ATTEMPTS = 20
"""Attempts to insert a run or to find the one that has its key, before an error is raised."""


def start_key(name: str, key: str) -> str:
    """Return the ``origin_key`` of the run of the workflow ``name`` that is started with ``key``."""
    return digest("start", name, key)


def start_keys(name: str, key: str) -> list[str]:
    """Return the ``origin_keys`` that a run with ``key`` may have: also those of former names of the workflow
    (``RenameWorkflow``), because the key itself is not stored."""
    return [start_key(each, key) for each in (name, *former_names(KIND, name))]


def check_key(key: Any, what: str) -> None:
    """Raise ``DefinitionError`` unless ``key`` is a string that can identify a start."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY_LENGTH:
        hint = f" Write str({key!r})." if isinstance(key, int) else ""
        raise DefinitionError(
            f"{what}: key={key!r:.100} must be a string of 1 to {MAX_KEY_LENGTH} characters, as in "
            f'key="order:12".{hint}'
        )


def check_if_exists(if_exists: Any, key: str | None, what: str) -> None:
    """Raise ``DefinitionError`` for an unknown ``if_exists``, or for one without a ``key``."""
    known = get_args(IfExists)
    if if_exists not in known:
        raise DefinitionError(f"{what}: if_exists={if_exists!r} must be one of {', '.join(map(repr, known))}.")
    if key is None and if_exists != "return":
        raise DefinitionError(f"{what}: if_exists={if_exists!r} needs key=: without a key nothing exists yet.")


def start_once(
    definition: WorkflowDefinition, context: BaseModel, key: str, if_exists: IfExists, now: datetime
) -> WorkflowRun:
    """Start a run with ``key`` in the caller's transaction, or do what ``if_exists`` says if there is one.

    Raises ``RunExistsError``, and ``EventStormError`` if runs start each other without end.
    """
    alias = alias_of(WorkflowRun)

    def start() -> WorkflowRun:
        if if_exists != "restart":
            with noting_reason(WorkflowRun) as is_noted:
                return _start(definition, context, key, if_exists, now, is_noted=is_noted)
        # The old run ends if and only if the new one starts.
        with transaction.atomic(using=alias), noting_reason(WorkflowRun) as is_noted:
            return _start(definition, context, key, if_exists, now, is_noted=is_noted)

    return retry_on_deadlock(alias, start)


def _start(
    definition: WorkflowDefinition,
    context: BaseModel,
    key: str,
    if_exists: IfExists,
    now: datetime,
    *,
    is_noted: bool,
) -> WorkflowRun:
    run = run_due_now(definition, context, now, origin_key=start_key(definition.name, key))
    if if_exists == "restart" or not _insert_at_once(run):
        existing = _insert_or_find(run, key, now, is_restart=if_exists == "restart")
        if existing is not None and if_exists == "raise":
            raise RunExistsError(
                f"{existing} was started with the key {one_line(key)!r} and is {existing.status}. Use "
                'if_exists="return" to get it, or if_exists="restart" to start again.',
                existing,
            )
        if existing is not None:
            return existing
    ring_after_commit(alias_of(WorkflowRun), lane_of(run))
    if is_noted:
        note(run, "Started")
    return run


def _insert_at_once(run: WorkflowRun) -> bool:
    """Insert the run in one statement, and return whether it was: if its key is free, and its workflow was never
    renamed. Only on PostgreSQL."""
    sql, params = former_names_query(KIND, run.name)
    return insert_bounded(run, unless=sql, params=params, ignoring=True)


def _insert_or_find(run: WorkflowRun, key: str, now: datetime, *, is_restart: bool) -> WorkflowRun | None:
    """Insert the run and return None, or return the run that has its key. ``is_restart``: that releases the key."""
    alias, keys = alias_of(WorkflowRun), start_keys(run.name, key)
    rows = WorkflowRun.objects.filter(origin_key__in=keys)
    may_exist = is_restart or len(keys) > 1 or connections[alias].vendor == "postgresql"
    for _ in range(MAX_START_ATTEMPTS):
        existing = rows.first() if may_exist else None
        if existing is not None and not is_restart:
            return existing
        if existing is None or _release(existing, key, now):  # else another restart was faster, and its run has the key
            run.position = lower_bound()
            if insert_ignoring(WorkflowRun, [run], key="origin_key"):
                run._state.adding, run._state.db = False, alias
                return None
        may_exist = True
    raise AutomationError(
        f"engine.start({run.name!r}, key={key!r}): a run has this key, and this transaction does not see it. "
        "Use the isolation level READ COMMITTED (Django's default), or start it in another transaction."
    )


def _release(previous: WorkflowRun, key: str, now: datetime) -> bool:
    """Release the key of a run and end that run, if it is unfinished. Return whether it still had the key."""
    mine = WorkflowRun.objects.filter(pk=previous.pk, origin_key=previous.origin_key)
    if not mine.update(origin_key=None):
        return False
    reason = f"Restarted with the key {one_line(key)!r}."
    if end_runs([previous], WorkflowStatus.CANCELLED, signed("Cancelled", reason), now):
        note(previous, "Cancelled", reason)
    return True
