"""``engine``: how code outside a workflow starts, signals, cancels and resumes runs."""

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
    """What code outside a workflow calls: start, signal, cancel and resume runs; use its one instance ``engine``.

    Every method writes rows in the caller's transaction and returns at once. Workers see them after the commit; after a
    rollback nothing has happened.

    Example:
        Start a workflow together with the row that it is about::

            with transaction.atomic():
                upload = Upload.objects.create(name="prices.csv")
                engine.start("import_prices", upload_id=upload.pk)
    """

    def start(self, workflow: str | type, /, **arguments: Any) -> WorkflowRun:
        """Start a workflow, and return its run.

        The run is inserted in the caller's transaction, and begins after the commit.

        Args:
            workflow: The workflow, as its name or its class.
            **arguments: Arguments of its ``create_context``; without one, the fields of its Context.

        Returns:
            The new ``WorkflowRun``.

        Raises:
            UnknownWorkflowError: If no workflow has this name.
            DefinitionError: If the class is not a workflow, or if ``create_context`` returns something else than a
                Context.
            pydantic.ValidationError: If the arguments do not fit the Context. Whatever else ``create_context`` raises
                is raised too.
            NotStorableError: If the Context cannot be stored as JSON.
            EventStormError: If runs start each other without end.

        Example:
            Start a workflow from a view::

                run = engine.start("import_prices", upload_id=upload.pk)
                return redirect("import", run.pk)
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
        """Send a signal to all runs that wait for it, or to one run.

        The signal is a row in the caller's transaction, delivered after the commit. A run that does not wait yet, but
        was created before the delivery, gets the signal when it waits for this name. The payload's keys that are fields
        of a run's Context are merged into it. On the channel of an event (``"event:invoice_paid"``) the signal also
        wakes the runs that wait for this event with a match that the payload satisfies.

        Args:
            name: Name of the signal, a string of 1 to 200 characters.
            payload: A dict of JSON values. Default: empty.
            run: The only run that shall get it, as a ``WorkflowRun`` or its primary key; the signal is kept until that
                run waits for it. Default: all runs.

        Returns:
            The new ``Signal``.

        Raises:
            DefinitionError: If ``name`` or ``payload`` is invalid.
            NotStorableError: If the payload cannot be stored as JSON.
            UnknownRunError: If ``run`` does not exist. Nothing is written then.

        Example:
            Answer the run that asked::

                engine.signal("approval", {"approved": True}, run=run_id)
        """
        check_name(name, f"engine.signal({name!r})")
        if payload is not None and not isinstance(payload, Mapping):
            raise DefinitionError(f"engine.signal({name!r}): payload={payload!r} must be a dict.")
        text = encode(dict(payload or {}), f"The payload of the signal {name!r}")
        run_pk = run.pk if isinstance(run, WorkflowRun) else run
        if run_pk is not None:
            _find(run_pk)  # else PostgreSQL would refuse the reference at the caller's COMMIT
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
        """Start the workflows of an event that has occurred. Idempotent.

        Workers call it automatically; a project needs it only if it has inserted event rows itself. The runs are
        inserted in the caller's transaction.

        Args:
            event: An ``Event`` that has occurred.

        Raises:
            DefinitionError: If the event has not occurred.

        Example:
            Make up for workflows that were deployed after the event::

                engine.handle_event_occurred(Event.objects.get(pk=event_id))
        """
        if event.status != EventStatus.PROCESSED:
            raise DefinitionError(f"{event} is {event.status}; only an event that has occurred can start workflows.")
        WorkflowSubscriber().occurred([event], timezone.now())

    def cancel(self, run: WorkflowRun | int, reason: str = "Cancelled.") -> bool:
        """End a run now, together with its child runs.

        The run is cancelled in the caller's transaction. A step that is running is not interrupted, but nothing of it
        is committed.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            reason: Why, as a string for the operator. It is kept in the run's ``error``. Default ``"Cancelled."``.

        Returns:
            True if the run was unfinished. False if it had ended, or was removed.

        Example:
            Stop the import when its file is deleted::

                if engine.cancel(upload.run_id, "The file was deleted."):
                    messages.info(request, "The import was stopped.")
        """
        pk = run.pk if isinstance(run, WorkflowRun) else run
        ended = end_runs(WorkflowRun.objects.filter(pk=pk), WorkflowStatus.CANCELLED, reason, timezone.now())
        if isinstance(run, WorkflowRun):
            with suppress(WorkflowRun.DoesNotExist):
                run.refresh_from_db()
        return ended > 0

    def resume(self, run: WorkflowRun | int, step: str | None = None, *, again: bool = False) -> WorkflowRun:
        """Let a parked run continue, or let a failed run retry its last step with new attempts.

        The run is due after the commit of the caller's transaction.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            step: Name of the step to continue at. Default: the step at which the run stopped.
            again: Continue even at a step that has started a child run which completed or still runs; the step may then
                start a second one. Default False.

        Returns:
            The ``WorkflowRun``.

        Raises:
            NotResumableError: If the run is neither parked nor failed, or if the step has started a child run and
                ``again`` is False.
            UnknownRunError: If the run does not exist.
            UnknownWorkflowError: If ``step`` is given and no class has the run's workflow.
            UnknownStepError: If the workflow has no such step.

        Example:
            Skip a step that cannot succeed::

                engine.resume(run, "notify")
        """
        row = run if isinstance(run, WorkflowRun) else _find(run)
        row.resume(step=step, again=again)
        return row

    def set_notifier(self, notifier: Notifier | None) -> None:
        """Use another notifier in this process: what wakes workers after a commit.

        Args:
            notifier: An object with a method ``ring(alias, queues)``; None for the one of the setting
                ``AUTOMATION["RUNTIME"]``.

        Example:
            Perform everything at once in a notebook::

                engine.set_notifier(InlineNotifier())
        """
        set_notifier(notifier)


def _find(pk: int) -> WorkflowRun:
    """Return the run. Raises ``UnknownRunError``."""
    found = WorkflowRun.objects.filter(pk=pk).first()
    if found is None:
        raise UnknownRunError(
            f"There is no workflow run #{pk}: it was removed (RETENTION_RUNS), or its transaction has not committed."
        )
    return found


engine = Engine()
