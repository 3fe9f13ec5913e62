"""Erasing everything that is kept of one entity: its events, runs and agents with their histories, and what people did
to them.

Rows are erased in short transactions, so it may be interrupted, and the same call continues. Of an entity that was
deleted, the rows are deleted. Of one that exists, the rows stay with their keys, names and times, because they keep
what has happened from happening again; their values are erased: Contexts, payloads, errors, histories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from ..agents.manager import AgentManager
from ..agents.models import AgentRun, HandlerExecution
from ..db.writer import alias_of
from ..events.models import CallbackExecution, CapturedWrite, Event, EventClaim, EventStatus, Snapshot
from ..exceptions import StateError
from ..queues.history import note_key
from ..queues.models import Action, HeldRow, Pause
from ..queues.pausable import PausableWakeable
from ..queues.pruning import remove
from ..workflows.engine import engine
from ..workflows.models import Signal, StepExecution, WorkflowRun
from .entities import Entity

BATCH_ROWS = 100
KEYS_PER_STATEMENT = 500
VALUES: dict[type[models.Model], dict[str, Any]] = {
    WorkflowRun: {"data": {}, "error": "", "branches": None, "ending": None, "caused_by": "", "trace_context": None},
    AgentRun: {"data": {}, "error": "", "caused_by": "", "trace_context": None},
    Event: {
        "payload": None,
        "changed_values": None,
        "error": "",
        "caused_by": "",
        "trace_context": None,
        "snapshot": None,
    },
    CallbackExecution: {"error": ""},
    HandlerExecution: {"error": ""},
}
"""The columns with values of the project, or of people, and what they hold once they are erased."""


def forget(entity: Entity, *, cancel: bool = False, at_once: bool = False, living: bool = False) -> dict[str, int]:
    """Erase everything that is kept of ``entity``, and return how many rows of each kind that were.

    Args:
        entity: The entity.
        cancel: First cancel what is unfinished. Default: refuse if something is.
        at_once: With ``cancel``: skip the ``@on_cancel`` of runs.
        living: Erase the values also if the entity exists. Default: refuse then.

    Raises:
        StateError: If something of it is unfinished, or if it exists.
    """
    work = Forgetting(entity)
    work.prepare(cancel=cancel, at_once=at_once, living=living)
    for _ in work.run():
        pass
    return dict(work.erased)


class Forgetting:
    """The erasure of one entity. ``erased``: how many rows of each kind were erased by this call."""

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.erased: Counter[str] = Counter()

    def unfinished(self) -> dict[str, int]:
        """Return how many rows of each kind still have something to do."""
        about = self.entity.condition
        pending = Q(status=EventStatus.PENDING, wake_at__isnull=False) | Q(status=EventStatus.PARKED)
        rows: dict[str, QuerySet[Any, Any]] = {
            "workflow": WorkflowRun.objects.unfinished().filter(about()),
            "agent": AgentRun.objects.unfinished().filter(about()),
            "event": Event.objects.filter(about()).filter(pending),
            "callback": CallbackExecution.unfinished().filter(about("event__")),
            "handler": HandlerExecution.unfinished().filter(about("event__")),
            "write": CapturedWrite.objects.filter(about()),
        }
        counts = {kind: found.order_by().count() for kind, found in rows.items()}
        return {kind: count for kind, count in counts.items() if count}

    def prepare(self, *, cancel: bool, at_once: bool, living: bool) -> None:
        """Cancel what is unfinished, if that is wanted. Raises ``StateError`` if nothing may be erased now."""
        if self.entity.row is not None and not living:
            raise StateError(
                f"{self.entity} exists, and its rows keep what has happened from happening again. Delete it first; or "
                "erase the values of the rows only: living=True (--living)."
            )
        found = self.unfinished()
        if found and not cancel:
            raise StateError(
                f"{self.entity} has unfinished rows: {_counted(found)}. Wait for their end, or cancel them: "
                "cancel=True (--cancel)."
            )
        if not found:
            return
        for run in WorkflowRun.objects.unfinished().filter(self.entity.condition()).order_by("pk"):
            engine.cancel(run, at_once=at_once)
        for agent in AgentRun.objects.unfinished().filter(self.entity.condition()).order_by("pk"):
            AgentManager.cancel(agent)
        for event in Event.objects.pending().filter(self.entity.condition()).order_by("pk"):
            event.cancel()
        ending = WorkflowRun.objects.unfinished().filter(self.entity.condition()).count()
        if ending:
            raise StateError(
                f"{ending} run(s) of {self.entity} were cancelled, and undo their work (@on_cancel). Call it again "
                "when they have ended, or skip that: at_once=True (--at-once)."
            )

    def total(self) -> int:
        """Return how many rows there are to erase, without those that depend on them."""
        about = self.entity.condition()
        return sum(model._base_manager.filter(about).count() for model in (WorkflowRun, AgentRun, Event, CapturedWrite))

    def run(self) -> Iterator[int]:
        """Erase the rows in batches, each in one transaction, and yield how many are done."""
        about, done = self.entity.condition(), 0
        for kind, model in (("workflow", WorkflowRun), ("agent", AgentRun), ("event", Event), ("write", CapturedWrite)):
            alias, after = alias_of(model), 0
            while True:
                with transaction.atomic(using=alias):
                    rows = model._base_manager.using(alias).filter(about, pk__gt=after).order_by("pk")
                    pks = list(rows.select_for_update().values_list("pk", flat=True)[:BATCH_ROWS])
                    if not pks:
                        break
                    self._erase(model, pks, alias)
                after, done = pks[-1], done + len(pks)
                self.erased[kind] += len(pks)
                yield done
        if self.erased:
            self._record()

    def _erase(self, model: type[models.Model], pks: Sequence[int], alias: str) -> None:
        if model is CapturedWrite:
            remove(model, pks, alias)
            return
        _erase_traces(model, pks)
        for theirs, column in DEPENDENT[model]:
            rows = theirs._base_manager.using(alias).filter(**{f"{column}__in": pks})
            dependent = list(rows.order_by().values_list("pk", flat=True))
            for start in range(0, len(dependent), KEYS_PER_STATEMENT):
                part = dependent[start : start + KEYS_PER_STATEMENT]
                _erase_traces(theirs, part)
                if theirs in VALUES:
                    theirs._base_manager.using(alias).filter(pk__in=part).update(**VALUES[theirs])
                else:
                    remove(theirs, part, alias)
        snapshots = []
        if model is Event:
            taken = Event.objects.filter(pk__in=pks, snapshot__isnull=False)
            snapshots = list(taken.values_list("snapshot", flat=True))
        if self.entity.row is not None:
            model._base_manager.using(alias).filter(pk__in=pks).update(**VALUES[model])
        else:
            remove(model, pks, alias)
        if snapshots:
            needed = Event.objects.filter(snapshot=OuterRef("pk"))
            Snapshot.objects.filter(~Exists(needed), pk__in=snapshots).delete()

    def _record(self) -> None:
        """Record who did it, with numbers only."""
        what = f"{self.entity}: {_counted(self.erased)}"
        note_key(self.entity.model or Event, self.entity.key, what, "Forgotten")


DEPENDENT: dict[type[models.Model], tuple[tuple[type[models.Model], str], ...]] = {
    WorkflowRun: ((StepExecution, "run"), (Signal, "run")),
    AgentRun: ((HandlerExecution, "run"),),
    Event: ((CallbackExecution, "event"), (HandlerExecution, "event")),
}
"""The rows that belong to a row, and by which column."""


def _erase_traces(model: type[models.Model], pks: Sequence[int]) -> None:
    """Delete what people did to rows, their pauses and claims, and Django's own log of them."""
    keys = [str(pk) for pk in pks]
    Action.objects.filter(model=model._meta.label_lower, key__in=keys).delete()
    if issubclass(model, PausableWakeable):
        HeldRow.objects.filter(kind=model.kind, row_pk__in=pks).delete()
        Pause.objects.filter(row_kind=model.kind, row_pk__in=pks).delete()
    if model in (WorkflowRun, AgentRun):
        EventClaim.objects.filter(owner_kind="workflow" if model is WorkflowRun else "agent", owner_id__in=pks).delete()
    if apps.is_installed("django.contrib.admin"):
        log = apps.get_model("admin", "LogEntry")
        of = {"content_type__app_label": model._meta.app_label, "content_type__model": model._meta.model_name}
        log._base_manager.filter(**of, object_id__in=keys).delete()


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}(s)" for kind, count in counts.items())
