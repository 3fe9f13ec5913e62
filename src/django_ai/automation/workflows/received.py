"""What a run has received when it is woken: the payloads of signals, events and children, merged into its Context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..db.selects import read_by_pk
from ..events.models import Event
from ..exceptions import ContextError, DecryptionError, PayloadError
from ..state.contexts import merge
from ..state.encryption import check_readable, decrypt
from .current_run import Wake, WakeReason
from .models import Signal, WorkflowRun
from .wait_keys import EVENT_CHANNEL, SUBFLOW


def read_arrived(run: WorkflowRun, reason: WakeReason) -> Signal | Event | None:
    """Return the signal or the event that woke the run, if one has and it still exists.

    It is read before the attempt, because what has arrived never changes: a step that sends nothing to the database
    then needs no transaction.
    """
    if run.wake_ref is None:
        return None
    if reason == WakeReason.SIGNAL:
        return read_by_pk(Signal, [run.wake_ref]).get(run.wake_ref)
    return read_by_pk(Event, [run.wake_ref]).get(run.wake_ref) if reason == WakeReason.EVENT else None


def receive(run: WorkflowRun, reason: WakeReason, context: BaseModel, arrived: Signal | Event | None) -> Wake:
    """Return why a step of the run is entered. Merge the payloads into ``context``, unless an earlier attempt has
    committed that: then ``wake_step`` is empty. ``arrived``: see ``read_arrived``.

    Raises ``PayloadError`` for a payload that the Context does not accept or that no key decrypts.
    """
    if run.branches is None:
        return Wake(reason) if run.wake_ref is None else Wake(reason, _receive_row(run, arrived, context))
    _check_payload(run.branches, f"What has arrived for {run}")
    names = [each["branch"] for each in run.branches if "reason" not in each]
    if names:
        payload = {} if run.wake_ref is None else _receive_row(run, arrived, context)
        return Wake(reason, payload, branch=names[0])
    branches = {each["branch"]: _receive_branch(run, each, context) for each in run.branches}
    return Wake(reason, branches=branches)


def _receive_row(run: WorkflowRun, arrived: Signal | Event | None, context: BaseModel) -> Mapping[str, Any]:
    """Return the payload of the signal or event that woke the run."""
    if arrived is None:
        return _merged(run, {}, "", context)
    if isinstance(arrived, Event):
        return _merged(run, arrived.payload or {}, f"{EVENT_CHANNEL}{arrived.event_name}", context)
    _check_payload(arrived.payload, f"The payload of {arrived} that woke {run}")
    return _merged(run, arrived.payload or {}, arrived.name, context)


def _receive_branch(run: WorkflowRun, entry: Mapping[str, Any], context: BaseModel) -> Wake:
    """Return what a branch of ``wait_all`` has brought."""
    payload, channel = decrypt(entry.get("payload")), entry.get("channel", "")
    _check_payload(payload, f"The payload of {channel!r} that {run} has received")
    return Wake(WakeReason(entry["reason"]), _merged(run, payload or {}, channel, context))


def _merged(run: WorkflowRun, payload: Mapping[str, Any], channel: str, context: BaseModel) -> Mapping[str, Any]:
    """Merge ``payload`` into ``context``, and return it."""
    if channel.startswith(f"{SUBFLOW}:"):
        return payload  # the end of a child is not merged into the Context
    fields = {name: value for name, value in payload.items() if name in type(context).model_fields}
    if run.entity_id and fields.get("entity_id", run.entity_id) != run.entity_id:
        # The event of another entity woke the run; it must not replace the entity of the run.
        del fields["entity_id"]
    if fields and run.wake_step:
        try:
            merge(context, fields, f"The payload of {channel!r} that woke {run}")
        except ContextError as error:
            raise PayloadError(str(error)) from error
    return payload


def _check_payload(payload: Any, what: str) -> None:
    """Raise ``PayloadError``, which parks the run, for a payload that no key decrypts."""
    try:
        check_readable(payload, what)
    except DecryptionError as error:
        raise PayloadError(str(error)) from error
