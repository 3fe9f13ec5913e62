"""``engine``: what code outside a workflow says to it: start, signal, cancel, resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from django.utils import timezone

from ..db.writer import alias_of
from ..events.models import Event, EventStatus
from ..exceptions import DefinitionError, UnknownRunError
from ..queues.causation import current_cause
from ..queues.notifier import Notifier, ring_after_commit, set_notifier
from ..values.classes import declaration_of
from ..values.json_text import encode
from .definitions import find_workflow
from .ending import end_runs
from .models import Signal, WorkflowRun, WorkflowStatus
from .outcomes import check_name
from .starting import insert_run
from .subscriber import WorkflowSubscriber

__all__ = ["Engine", "engine"]


class Engine:
    """The way in from outside. Every method only writes rows, in the caller's transaction, and returns at once."""

    def start(self, workflow: str | type, /, **arguments: Any) -> WorkflowRun:
        """Start a workflow by its name (or class), and return its run.

        ``arguments`` go to its ``create_context``, or build its Context. The run begins after the commit; if the
        transaction is rolled back, there is no run. Raises ``UnknownWorkflowError``, what ``create_context`` raises,
        pydantic's ``ValidationError``, and ``NotStorableError``.
        """
        if isinstance(workflow, type):
            name = str(declaration_of(workflow, "__workflow__", "a workflow", "@workflow(...)").name)
        else:
            name = workflow
        definition = find_workflow(name)
        return insert_run(definition, definition.make_context(None, **arguments), timezone.now())

    def signal(
        self, name: str, payload: Mapping[str, Any] | None = None, *, run: WorkflowRun | int | None = None
    ) -> Signal:
        """Send a signal to all runs that wait for ``name``, or to one ``run`` (a run or its primary key).

        Runs that wait are woken after the commit; every other run that was created before the signal is delivered hears
        it when it waits for ``name``. For one run it is kept until that run waits for it. ``payload`` keys merge into
        the Context where that has the fields. On the channel of an event (``"event:paid"``) it also wakes those who
        wait for that event with a match that ``payload`` satisfies. Raises ``DefinitionError``, ``NotStorableError``,
        and ``UnknownRunError`` for a run that is not there; then nothing is written.
        """
        check_name(name, f"engine.signal({name!r})")
        if payload is not None and not isinstance(payload, Mapping):
            raise DefinitionError(f"engine.signal({name!r}): payload={payload!r} must be a dict.")
        text = encode(dict(payload or {}), f"The payload of the signal {name!r}")
        run_pk = run.pk if isinstance(run, WorkflowRun) else run
        if run_pk is not None:
            _find(run_pk)  # a reference to no row would be refused, on PostgreSQL by the caller's COMMIT
        now, cause = timezone.now(), current_cause()
        signal = Signal.objects.create(
            name=name,
            payload=json.loads(text),
            run_id=run_pk,
            sent_at=now,
            wake_at=now,
            caused_by=cause.label if cause else "",
        )
        ring_after_commit(alias_of(Signal), Signal)
        return signal

    def handle_event_occurred(self, event: Event) -> None:
        """Start the workflows of an event that has occurred. Idempotent; the bridge does it in normal operation.

        Raises ``DefinitionError`` for an event that has not occurred.
        """
        if event.status != EventStatus.PROCESSED:
            raise DefinitionError(f"{event} is {event.status}; only an event that has occurred starts workflows.")
        WorkflowSubscriber().occurred([event], timezone.now())

    def cancel(self, run: WorkflowRun | int, reason: str = "Cancelled.") -> bool:
        """End a run now, with its children; say whether it was still unfinished.

        A step that is under way is not interrupted, but nothing of it is kept. Returns at once. A run that was removed
        was finished.
        """
        pk = run.pk if isinstance(run, WorkflowRun) else run
        ended = end_runs(WorkflowRun.objects.filter(pk=pk), WorkflowStatus.CANCELLED, reason, timezone.now())
        if isinstance(run, WorkflowRun):
            with suppress(WorkflowRun.DoesNotExist):
                run.refresh_from_db()
        return ended > 0

    def resume(self, run: WorkflowRun | int, step: str | None = None, *, again: bool = False) -> WorkflowRun:
        """Let a parked run go on, or a failed one try its last step again; with ``step``, go on at that one instead.

        ``again``: also at a step that has started a child run which completed or is under way (default: refused).

        Raises ``NotResumableError``, ``UnknownRunError``, ``UnknownWorkflowError`` and ``UnknownStepError``.
        """
        row = run if isinstance(run, WorkflowRun) else _find(run)
        row.resume(step=step, again=again)
        return row

    def set_notifier(self, notifier: Notifier | None) -> None:
        """Use another executor in this process: ``InlineNotifier()`` in a test, ``None`` for what the settings say."""
        set_notifier(notifier)


def _find(pk: int) -> WorkflowRun:
    """Return the run. Raises ``UnknownRunError``."""
    found = WorkflowRun.objects.filter(pk=pk).first()
    if found is None:
        raise UnknownRunError(
            f"There is no workflow run #{pk}. It was removed (RETENTION_RUNS), or its transaction has not committed."
        )
    return found


engine = Engine()
