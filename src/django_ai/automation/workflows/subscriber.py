"""A subscriber that plans, starts, wakes and withdraws runs of workflows.

A workflow with an offset has a *planned run* for each event that could start it: a WAITING row whose ``wake_at`` is the
timer. The run exists while the event's condition is true, or the event has occurred. It moves with the date in the same
transaction. It is withdrawn with the event, with the reason in ``error``, and a later save may plan it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.apps import apps
from django.db.models import Exists, Min, OuterRef, Q

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..events.declarations import declared_on
from ..events.matching.match import namespaced_key
from ..events.models import Event, EventStatus, Shapes
from ..events.subscribers import Notification, Subscriber
from ..queues.advance import Started
from ..queues.lanes import lane_of
from ..queues.lease import revoke
from ..queues.limits.release import has_asked
from ..queues.notifier import ring_after_commit
from ..queues.positions import insert_bounded, lower_bound
from .cancel_on import event_of
from .current_run import KIND
from .definitions import WorkflowDefinition, all_workflows, has_limits, newest_workflows, workflows_on
from .delivery import wake_waiting_for
from .ending import end_runs, release_planned, withdraw, withdrawal_reason
from .models import WorkflowRun
from .planning import needs_run
from .registration import forget_cancel_on
from .starting import new_run, origin_key, priority_by_event, replan
from .statuses import WorkflowStatus
from .transitions import ended
from .wait_keys import own_key
from .waits import ended_by_deletion, has_delete_trigger, pending_deletions


class WorkflowSubscriber(Subscriber):
    """Plans, starts, wakes and withdraws runs when events change."""

    def plan(self, events: Sequence[Event], now: datetime, *, fresh: bool) -> None:
        pairs = [
            (event, definition)
            for event in events
            for definition in workflows_on(event)
            if definition.offset is not None
        ]
        if not fresh:
            self._withdraw_others(events, now)
        if not pairs:
            return
        known: dict[str | None, WorkflowRun] = {}
        if not fresh:
            keys = [origin_key(event, definition) for event, definition in pairs]
            known = {run.origin_key: run for run in WorkflowRun.objects.filter(origin_key__in=keys)}
        to_plan: list[tuple[Event, WorkflowDefinition, WorkflowRun | None]] = []
        for event, definition in pairs:
            run = known.get(origin_key(event, definition))
            is_needed = needs_run(event, definition, now)
            if run is None or run.status == WorkflowStatus.WITHDRAWN:
                if is_needed:
                    to_plan.append((event, definition, run))
            elif not is_needed:
                withdraw(WorkflowRun.objects.filter(pk=run.pk), withdrawal_reason(event), now)
            elif event.at is not None and not run.is_retried:
                wake_at = event.moment_of(definition.offset)
                if wake_at != run.wake_at and run.lease is None:
                    self._move(run, definition, wake_at, now)
                elif run.lease is not None and wake_at > now:
                    # A worker is about to start it, and its date was moved to later: revoke the lease.
                    self._move(run, definition, wake_at, now)
        _insert_planned(to_plan, now)

    def _move(self, run: WorkflowRun, definition: WorkflowDefinition, wake_at: datetime, now: datetime) -> None:
        """Let a planned run start at ``wake_at``. One that waits for its limits stays in their queues, unless that is
        later."""
        planned, changes = WorkflowRun.objects.not_started().filter(pk=run.pk), {"wake_at": wake_at}
        has_asked_already = has_limits(run.name) and wake_at <= now and has_asked(KIND, run.pk)
        if wake_at > now and (has_limits(run.name) or definition.cancel_on):
            # Its Context is made again at the new date.
            if revoke(planned, **changes, data={}, deadline=None) and definition.cancel_on:
                forget_cancel_on(run)
            release_planned(planned, now)
        elif not has_asked_already:
            revoke(planned, **changes)

    def _withdraw_others(self, events: Sequence[Event], now: datetime) -> None:
        """Withdraw the runs of events that have another name or namespace now."""
        renamed = [event for event in events if (found := event.definition) is not None and found.may_be_renamed]
        if not renamed:
            return
        by_pk = {event.pk: event for event in renamed}
        known = {definition.name for definition in newest_workflows()}
        for run in WorkflowRun.objects.not_started().filter(event__in=by_pk):
            event = by_pk[run.event_id or 0]
            started = {definition.name for definition in workflows_on(event)}
            if run.name in known - started:
                where = f" in the namespace {event.namespace!r}" if event.namespace else ""
                reason = f"its event now has the name {event.event_name!r}{where}"
                withdraw(WorkflowRun.objects.filter(pk=run.pk), reason, now)

    def prepare(self, events: Sequence[Event]) -> None:
        for event in events:
            for definition in workflows_on(event):
                priority_by_event(event, definition)

    def has_begun(self, event: Event) -> bool:
        return WorkflowRun.objects.filter(event=event.pk, planned=True, started_at__isnull=False).exists()

    def occurred(self, events: Sequence[Event], now: datetime) -> None:
        started = [(event, definition) for event in events for definition in _started_at_once(event)]
        if not started:
            return
        # Before these events, too: the run receives what occurs in the same commit.
        before = [event.position - 1 for event in events if event.position]
        if len(started) == 1 and started[0][1].offset is None:
            run = new_run(*started[0], now)
            if insert_bounded(run, at_most=min(before, default=None), ignoring=True):
                ring_after_commit(alias_of(WorkflowRun), lane_of(run))
                return
        position = 0
        if any(definition.offset is None or definition.cancel_on for _, definition in started):
            position = min([lower_bound(), *before])
        runs = [new_run(event, definition, now, position=position) for event, definition in started]
        if insert_ignoring(WorkflowRun, runs):
            ring_after_commit(alias_of(WorkflowRun), *map(lane_of, runs))

    def started_by(self, event: Event, now: datetime) -> Sequence[Started] | None:
        definitions = _started_at_once(event)
        if any(definition.offset is not None for definition in definitions):
            return None  # planned runs, which have positions of their own
        return [Started(new_run(event, definition, now), is_bounded=True) for definition in definitions]

    def wants_notification(self, event: Event, milestone: str) -> bool:
        return milestone == "" and bool(all_workflows())

    def notify(self, notifications: Sequence[Notification], shapes: Shapes, now: datetime) -> None:
        occurred = [each.event for each in notifications if each.milestone == ""]
        if occurred:
            wake_waiting_for(occurred, shapes, now)

    def withdrawn(self, events: Sequence[Event], now: datetime, reason: str = "") -> None:
        events = [event for event in events if workflows_on(event)]
        if not events:
            return
        occurred = [event.pk for event in events if event.status == EventStatus.PROCESSED]
        if occurred:
            error = "Skipped: the entity of its event was deleted, or its date moved, before this run was to start."
            planned = WorkflowRun.objects.not_started().filter(event__in=occurred)
            release_planned(planned, now)
            revoke(planned, **ended(WorkflowStatus.CANCELLED, error, now))
        by_reason: dict[str, list[int]] = {}
        for event in events:
            if event.status != EventStatus.PROCESSED:
                by_reason.setdefault(reason or withdrawal_reason(event), []).append(event.pk)
        for each, pks in by_reason.items():
            withdraw(WorkflowRun.objects.filter(event__in=pks), each, now)

    def entities_deleted(self, label: str, entity_ids: Sequence[str], now: datetime) -> None:
        """Cancel the runs that wait for an event of these entities, which can no longer occur."""
        if not all_workflows():
            return
        declared = [each.definition for each in declared_on(apps.get_model(label))]
        theirs = Event.objects.filter(entity_type=label, entity_id__in=entity_ids)
        to_come = pending_deletions(label, entity_ids) if any(map(has_delete_trigger, declared)) else set()
        spaces = {(entity_id, "") for entity_id in entity_ids}
        for namespace in {each.namespace for each in declared if isinstance(each.namespace, str)}:
            spaces |= {(entity_id, namespace) for entity_id in entity_ids}
        if any(callable(each.namespace) for each in declared):
            spaces |= set(theirs.values_list("entity_id", "namespace"))
        keys = {
            namespaced_key(namespace, key) if namespace else key: entity_id
            for entity_id, namespace in spaces
            for each in declared
            if (entity_id, each.name) not in to_come
            for key in [own_key(each.name, label, entity_id)]
        }
        waiting: dict[str, set[int]] = {}
        for wait in ended_by_deletion(list(keys)):
            waiting.setdefault(keys[wait.key], set()).add(wait.run_id)
        for entity_id, pks in waiting.items():
            reason = f"{label} {entity_id}, whose event it waited for, was deleted."
            waiting_runs = WorkflowRun.objects.filter(pk__in=pks)
            end_runs(waiting_runs, WorkflowStatus.CANCELLED, reason, now, breaks_path=True)

    def is_unfinished(self, event: Event) -> bool:
        return WorkflowRun.objects.unfinished().filter(event=event.pk).exists()

    def needed_events(self) -> Sequence[Q]:
        waiting = WorkflowRun.objects.filter(event=OuterRef("pk"), started_at=None).unfinished()
        return [Q(Exists(waiting)), *_needed_by_planned_runs()]


def _started_at_once(event: Event) -> list[WorkflowDefinition]:
    """Return the workflows that ``event`` starts. One with a window is started by the window, which collects it."""
    return [definition for definition in workflows_on(event) if definition.window is None]


def _insert_planned(to_plan: Sequence[tuple[Event, WorkflowDefinition, WorkflowRun | None]], now: datetime) -> None:
    """Insert the runs that are planned now, or plan those again that were withdrawn."""
    position = lower_bound() if any(definition.cancel_on for _, definition, _ in to_plan) else 0
    missing, planned = [], []
    for event, definition, withdrawn_run in to_plan:
        planned.append(new_run(event, definition, now, position=position))
        if withdrawn_run is None:
            missing.append(planned[-1])
        else:
            replan(withdrawn_run, planned[-1])
            if definition.cancel_on:
                forget_cancel_on(withdrawn_run)
    insert_ignoring(WorkflowRun, missing)
    if due := [run for run in planned if run.wake_at is not None and run.wake_at <= now]:
        ring_after_commit(alias_of(WorkflowRun), *map(lane_of, due))


def _needed_by_planned_runs() -> list[Q]:
    """Return the condition of events that cancel a planned run, which looks for them when it starts."""
    cancelled = [each for each in all_workflows() if each.cancel_on and each.offset is not None]
    if not cancelled:
        return []
    planned = WorkflowRun.objects.filter(
        Q(wake_at__isnull=False) | Q(parked_at__isnull=False),
        name__in={each.name for each in cancelled},
        planned=True,
        started_at=None,
    )
    oldest = planned.aggregate(first=Min("position"))["first"]
    if oldest is None:
        return []
    begins = {event_of(on).partition("{{")[0] for each in cancelled for on in each.cancel_on}
    return [Q(event_name__startswith=begin, position__gt=oldest) for begin in sorted(begins)]
