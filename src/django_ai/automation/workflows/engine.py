"""``engine``: how code outside a workflow starts, finds, signals, cancels, repairs and pauses runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from django.db.models import Model
from django.utils import timezone

from ..db.writer import alias_of
from ..events.entities import rows_about
from ..events.models import Event, EventStatus
from ..exceptions import DefinitionError
from ..queues.acting import signed
from ..queues.causation import cause_now
from ..queues.history import note, noting, noting_reason
from ..queues.notifier import Notifier, ring_after_commit, set_notifier
from ..queues.pausable import PausableWakeable
from ..queues.pauses import EVERYTHING
from ..queues.pausing import find_target, pause, pause_row, unpause
from ..queues.run import key_of
from ..values.classes import declaration_of
from ..values.json_text import encode
from .definitions import WorkflowDefinition, find_workflow
from .ending import end_runs
from .keyed_start import IfExists, check_if_exists, check_key, start_keys, start_once
from .models import Signal, WorkflowRun, WorkflowRunQuerySet
from .operating import Operations
from .outcomes import check_name
from .receivable import warning_about
from .repairing import run_with
from .repairs import Repairs
from .starting import insert_run
from .statuses import WorkflowStatus
from .subscriber import WorkflowSubscriber

__all__ = ["Engine", "engine"]


class Engine(Repairs, Operations):
    """What code outside a workflow calls: start, find, signal, cancel, repair, pause; use its one instance ``engine``.

    Every method writes rows in the caller's transaction and returns at once. Workers see them after the commit; after a
    rollback nothing has happened.

    Example:
        Start a workflow together with the row that it is about::

            with transaction.atomic():
                upload = Upload.objects.create(name="prices.csv")
                engine.start("import_prices", upload_id=upload.pk)
    """

    def start(
        self,
        workflow: str | type,
        /,
        *,
        key: str | None = None,
        if_exists: IfExists = "return",
        **arguments: Any,
    ) -> WorkflowRun:
        """Start a workflow, and return its run.

        The run is inserted in the caller's transaction, and begins after the commit. With a ``key`` there is one run of
        the workflow for it, however often and from wherever it is started: of two transactions that start at the same
        time, one inserts the run, and the other one waits for the end of the first. The key is taken until the run is
        pruned, ``AUTOMATION["RETENTION_RUNS"]`` after its end.

        Inside ``acting_as(actor, reason)`` with a reason, the history of the run says who started it, and why.

        Args:
            workflow: The workflow, as its name or its class.
            key: What the run is unique for, as a string of 1 to 1000 characters: ``"order:12"``. Default: each call
                starts a run.
            if_exists: What to do if the workflow has a run with this key, finished or not: ``"return"`` that run (the
                default); ``"raise"``; or ``"restart"``: cancel it if it is unfinished, and start another one, in one
                transaction.
            **arguments: Arguments of its ``create_context``; without one, the fields of its Context. They are checked
                in any case, and cannot be called ``key`` or ``if_exists``.

        Returns:
            The ``WorkflowRun``.

        Raises:
            UnknownWorkflowError: If no workflow has this name.
            DefinitionError: If the class is not a workflow, if ``key`` or ``if_exists`` is invalid, or if
                ``create_context`` returns something else than a Context.
            RunExistsError: With ``if_exists="raise"``, if the workflow has a run with this key. Its ``run`` is that
                run.
            pydantic.ValidationError: If the arguments do not fit the Context. Whatever else ``create_context`` raises
                is raised too.
            NotStorableError: If the Context cannot be stored as JSON.
            EventStormError: If runs start each other without end.
            AutomationError: If a run has the key and this transaction, of a stricter isolation level, cannot see it.

        Example:
            Start a workflow from a view, once for each upload, also if the user clicks twice::

                run = engine.start("import_prices", upload_id=upload.pk, key=f"upload:{upload.pk}")
                return redirect("import", run.pk)
        """
        definition = _definition(workflow)
        what = f"engine.start({definition.name!r})"
        check_if_exists(if_exists, key, what)
        if key is not None:
            check_key(key, what)
        context = definition.make_context(None, **arguments)
        if key is not None:
            return start_once(definition, context, key, if_exists, timezone.now())
        with noting_reason(WorkflowRun) as is_noted:
            run = insert_run(definition, context, timezone.now())
            if is_noted:
                note(run, "Started")
        return run

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
            The new ``Signal``. Its ``warning`` says why the ``run`` may never receive it: it has ended, or no step of
            its workflow waits for this name (with the nearest one). It is empty if the run may, or if that is unknown,
            because a step computes the name. The signal is sent in any case.

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
        run_pk = None if run is None else key_of(run, WorkflowRun, f"engine.signal({name!r}, run=...)")
        # Read, because PostgreSQL would refuse a reference to a run that was removed only at the caller's COMMIT.
        receiver = None if run_pk is None else run_with(run_pk)
        now = timezone.now()
        with noting(WorkflowRun) as is_noted:
            signal = Signal.objects.create(
                name=name,
                payload=json.loads(text),
                run_id=run_pk,
                sent_at=now,
                wake_at=now,
                caused_by=cause_now()[0],
            )
            if is_noted and receiver is not None:
                note(receiver, "Signalled")
        signal.warning = "" if receiver is None else warning_about(receiver, name)
        ring_after_commit(alias_of(Signal), Signal)
        return signal

    def runs(
        self,
        workflow: str | type | None = None,
        *,
        entity: Model | None = None,
        status: str | Iterable[str] | None = None,
        key: str | None = None,
    ) -> WorkflowRunQuerySet:
        """Return the runs of a workflow or of an entity, the oldest first.

        Args:
            workflow: The workflow, as its name or its class. Default: all workflows.
            entity: Only runs that an event of this model instance has started, and their child runs. Default: all runs.
            status: Only runs with this status, as a string such as ``"failed"``, or one of several, as a list. Default:
                all.
            key: Only the run that ``engine.start(..., key=...)`` has started with this string. Needs ``workflow``.

        Returns:
            A QuerySet of ``WorkflowRun``, which may be filtered further; ``.unfinished()`` leaves those that have not
            ended.

        Raises:
            UnknownWorkflowError: If no workflow has this name.
            DefinitionError: If the class is not a workflow, if ``entity`` is not a saved model instance, if a status
                does not exist, or if ``key`` is given without a workflow.

        Example:
            Show what runs for an order, and what has failed::

                engine.runs(entity=order).unfinished()
                engine.runs("ship", entity=order, status="failed").last()
        """
        runs = WorkflowRun.objects.order_by("pk")
        name = None if workflow is None else _definition(workflow).name
        if name is not None:
            runs = runs.filter(name=name)
        if key is not None:
            if name is None:
                raise DefinitionError(f"engine.runs(key={key!r}) needs the workflow: each has its own keys.")
            check_key(key, "engine.runs()")
            runs = runs.filter(origin_key__in=start_keys(name, key))
        if entity is not None:
            runs = runs.filter(rows_about(entity))
        return runs if status is None else runs.filter(status__in=_statuses(status))

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

    def cancel(self, run: WorkflowRun | int, reason: str = "Cancelled.", *, at_once: bool = False) -> bool:
        """End a run now, together with its child runs.

        The run is cancelled in the caller's transaction. A step that is running is not interrupted, but nothing of it
        is committed. A run whose workflow has an ``@on_cancel`` enters that after the commit, and is cancelled when
        this path has ended. A run that is on such a path already is left alone: a second call does nothing.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            reason: Why, as a string for the operator. It is kept in the run's ``error``. Default ``"Cancelled."``.
            at_once: Skip ``@on_cancel``, of the child runs too, and end a run whose path has begun: as cancelled, or as
                failed on the path of its ``@on_fail``, with both reasons. Default False.

        Returns:
            True if the run was unfinished. False if it had ended, was removed, or is on the path of its ``@on_fail`` or
            ``@on_cancel`` (without ``at_once``).

        Example:
            Stop the import when its file is deleted::

                if engine.cancel(upload.run_id, "The file was deleted."):
                    messages.info(request, "The import was stopped.")
        """
        pk = key_of(run, WorkflowRun, "engine.cancel(run)")
        runs = WorkflowRun.objects.filter(pk=pk)
        with noting(WorkflowRun) as is_noted:
            text = signed("Cancelled", reason)
            ended = end_runs(runs, WorkflowStatus.CANCELLED, text, timezone.now(), at_once=at_once)
            if ended and is_noted:
                note(run if isinstance(run, WorkflowRun) else run_with(pk), "Cancelled", reason)
        if isinstance(run, WorkflowRun):
            with suppress(WorkflowRun.DoesNotExist):
                run.refresh_from_db()
        return ended > 0

    def resume(self, run: WorkflowRun | int, step: str | None = None, *, again: bool = False) -> WorkflowRun:
        """Let a parked run continue, or let a failed run retry its last step with new attempts.

        A run whose path of ``@on_fail`` or ``@on_cancel`` has failed, or was ended at once, continues that path. The
        run is due after the commit of the caller's transaction.

        Args:
            run: The run, as a ``WorkflowRun`` or its primary key.
            step: Name of the step to continue at. Default: the step at which the run stopped. A failed run leaves the
                path of its ``@on_fail`` with it.
            again: Continue even at a step that has started a child run which completed or still runs; the step may then
                start a second one. Default False.

        Returns:
            The ``WorkflowRun``.

        Raises:
            NotResumableError: If the run is neither parked nor failed, if ``step`` is given and the run was cancelled,
                or if the step has started a child run and ``again`` is False.
            UnknownRunError: If the run does not exist.
            UnknownWorkflowError: If ``step`` is given and no class has the run's workflow.
            UnknownStepError: If the workflow has no such step.

        Example:
            Skip a step that cannot succeed::

                engine.resume(run, "notify")
        """
        row = run if isinstance(run, WorkflowRun) else run_with(key_of(run, WorkflowRun, "engine.resume(run)"))
        row.resume(step=step, again=again)
        return row

    def pause(
        self,
        run: PausableWakeable | int | None = None,
        /,
        *,
        workflow: str | type | None = None,
        agent: str | type | None = None,
        callback: str | None = None,
        queue: str | None = None,
        everything: bool = False,
        reason: str = "",
    ) -> bool:
        """Pause one run, all runs of a workflow or agent, a callback, a queue, or everything.

        The pause is a row in the caller's transaction; workers see it after the commit, when they next look for due
        rows. A step that runs is finished, and its worker may enter the steps that follow for up to ``DRAIN_BUDGET``.
        Events still occur and signals are delivered meanwhile; what follows from them waits. Timers that fall due
        during the pause fire when it ends. New runs are started and wait. Pausing what is paused changes nothing.

        Args:
            run: One run to pause: a ``WorkflowRun``, its primary key, an ``AgentRun`` or a ``CallbackExecution``.
            workflow: A workflow to pause, as its name or its class.
            agent: An agent to pause, as its name or its class.
            callback: A callback to pause, as its name.
            queue: Name of a queue to pause.
            everything: Pause all runs, agents and callbacks. Default False.
            reason: Why, as a string for the operator. Default: none.

        Returns:
            True if it was not paused before. False if it was, or if the run has ended.

        Raises:
            DefinitionError: If not exactly one target is given, or if the code declares no such name.
            UnknownRunError: If ``run`` is the primary key of no run.

        Example:
            Stop a workflow while its supplier is down::

                engine.pause(workflow="order_parts", reason="The supplier is down.")
        """
        row, target = _pause_target("pause", run, workflow, agent, callback, queue, everything)
        return pause_row(row, reason) if row is not None else pause(target, reason)

    def unpause(
        self,
        run: PausableWakeable | int | None = None,
        /,
        *,
        workflow: str | type | None = None,
        agent: str | type | None = None,
        callback: str | None = None,
        queue: str | None = None,
        everything: bool = False,
    ) -> bool:
        """End a pause. What became due meanwhile is due at once, in the order in which it became due.

        Pauses are independent: a run whose workflow is paused, too, waits on.

        Args:
            run: The run that was paused: a ``WorkflowRun``, its primary key, an ``AgentRun`` or a
                ``CallbackExecution``.
            workflow: The workflow that was paused, as its name or its class.
            agent: The agent that was paused, as its name or its class.
            callback: The callback that was paused, as its name.
            queue: Name of the queue that was paused.
            everything: End the pause of everything. Default False.

        Returns:
            True if it was paused.

        Raises:
            DefinitionError: If not exactly one target is given, or if the code declares no such name and it is not
                paused.
            UnknownRunError: If ``run`` is the primary key of no run.

        Example:
            Continue when the supplier is back::

                engine.unpause(workflow="order_parts")
        """
        row, target = _pause_target("unpause", run, workflow, agent, callback, queue, everything)
        return unpause(target if row is None else row.own_target)

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


def _definition(workflow: str | type) -> WorkflowDefinition:
    """Return a workflow that is given by its name or its class."""
    if isinstance(workflow, type):
        return find_workflow(str(declaration_of(workflow, "__workflow__", "a workflow", "@workflow(...)").name))
    return find_workflow(workflow)


def _statuses(status: str | Iterable[str]) -> list[str]:
    """Return the given statuses. Raises ``DefinitionError`` for one that no run can have."""
    found = [status] if isinstance(status, str) else list(status)
    for each in found:
        if each not in WorkflowStatus.values:
            near = get_close_matches(str(each), WorkflowStatus.values, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(map(repr, WorkflowStatus.values))}."
            raise DefinitionError(f"engine.runs(status={each!r}): there is no such status. {hint}")
    return [str(each) for each in found]


def _pause_target(
    what: str,
    run: PausableWakeable | int | None,
    workflow: str | type | None,
    agent: str | type | None,
    callback: str | None,
    queue: str | None,
    everything: bool,
) -> tuple[PausableWakeable | None, str]:
    """Return the row, or the target, that was given."""
    named = {"workflow": workflow, "agent": agent, "callback": callback, "queue": queue}
    given = {scope: name for scope, name in named.items() if name is not None}
    if len(given) + (run is not None) + bool(everything) != 1:
        raise DefinitionError(
            f"engine.{what}() takes one target: a run, workflow=, agent=, callback=, queue= or everything=True."
        )
    if run is not None:
        row = run_with(run) if isinstance(run, int) else run
        if not isinstance(row, PausableWakeable):
            fix = "give a WorkflowRun, its primary key, an AgentRun or a CallbackExecution"
            if isinstance(run, str):
                fix = f"say what it names, as in workflow={run!r}, or {fix}"
            raise DefinitionError(f"engine.{what}({run!r}): {fix}.")
        return row, ""
    if everything:
        return None, EVERYTHING
    ((scope, name),) = given.items()
    return None, find_target(scope, name)


engine = Engine()
