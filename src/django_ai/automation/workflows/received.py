"""What a run has received when it is woken: the payloads of signals, events and children, merged into its Context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..events.models import Event
from ..exceptions import ContextError, DecryptionError, PayloadError
from ..state.contexts import merge
from ..state.encryption import check_readable, decrypt
from .current_run import Wake, WakeReason
from .models import Signal, WorkflowRun
from .wait_keys import EVENT_CHANNEL, SUBFLOW


def receive(run: WorkflowRun, reason: WakeReason, context: BaseModel) -> Wake:
    """Return why a step of the run is entered. Merge the payloads into ``context``, unless an earlier attempt has
    committed that: then ``wake_step`` is empty.

    Raises ``PayloadError`` for a payload that the Context does not accept or that no key decrypts.
    """
    if run.branches is None:
        return Wake(reason) if run.wake_ref is None else Wake(reason, _receive_row(run, reason, context))
    _check_payload(run.branches, f"What has arrived for {run}")
    names = [each["branch"] for each in run.branches if "reason" not in each]
    if names:
        payload = {} if run.wake_ref is None else _receive_row(run, reason, context)
        return Wake(reason, payload, branch=names[0])
    branches = {each["branch"]: _receive_branch(run, each, context) for each in run.branches}
    return Wake(reason, branches=branches)


def _receive_row(run: WorkflowRun, reason: WakeReason, context: BaseModel) -> Mapping[str, Any]:
    """Return the payload of the signal or event that woke the run."""
    payload: Any = None
    channel = ""
    if reason == WakeReason.SIGNAL:
        signal = Signal.objects.filter(pk=run.wake_ref or 0).first()
        if signal is not None:
            _check_payload(signal.payload, f"The payload of {signal} that woke {run}")
            channel, payload = signal.name, signal.payload
    elif reason == WakeReason.EVENT:
        event = Event.objects.filter(pk=run.wake_ref or 0).first()
        if event is not None:
            channel, payload = f"{EVENT_CHANNEL}{event.event_name}", event.payload
    return _merged(run, payload or {}, channel, context)


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
