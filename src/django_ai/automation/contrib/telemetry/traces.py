"""Traces for OpenTelemetry: spans of events and of attempts, in the trace of what has caused them.

An event has one when it occurs; a step, callback or handler has one for each attempt.

What is recorded or started carries the W3C trace context of the span in which that happens, in the column
``trace_context`` of its row. The attempt that performs the row continues that trace. After a timer or a wait a new
trace starts, with a link to the old one: a trace that lasts for days is of no use.

Only the API of OpenTelemetry is used, so without an SDK nothing is recorded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ...queues.causation import CurrentRun
from ...queues.observing import forget_observer, observe_attempts, subject_of
from ...queues.signals import attempt_finished
from ...queues.tracing import LINK, MAX_LENGTH, provide_trace_contexts
from ...queues.wakeable import Wakeable
from .facts import Facts, facts_of

OBSERVER = "opentelemetry"
TRACER = "django_ai.automation"
SYSTEM = "django_ai_automation"
OPERATIONS = {"workflow": "step", "agent": "activate", "handler": "handler", "callback": "callback"}

_propagator = TraceContextTextMapPropagator()
_spans: dict[int, Any] = {}
"""The spans of the attempts that run, by the identity of their ``CurrentRun``."""


def connect() -> None:
    provide_trace_contexts(carried_now, event_occurs)
    observe_attempts(OBSERVER, AttemptSpan)
    attempt_finished.connect(_on_attempt, dispatch_uid="automation.traces_attempt")


def disconnect() -> None:
    provide_trace_contexts(None)
    forget_observer(OBSERVER)
    attempt_finished.disconnect(dispatch_uid="automation.traces_attempt")


def carried_now() -> str | None:
    """Return the trace context of the current span, as a row carries it; None outside a trace."""
    return carried_by(otel_context.get_current())


def carried_by(context: Any) -> str | None:
    """Return the trace context of the span of ``context``, as a row carries it; None if it has none."""
    headers: dict[str, str] = {}
    _propagator.inject(headers, context)
    parent = headers.get("traceparent")
    if parent is None:
        return None
    whole = f"{parent} {headers.get('tracestate', '')}".rstrip()
    return whole if len(whole) < MAX_LENGTH else parent


def _extracted(carried: str) -> Any:
    parent, _, state = carried.removeprefix(LINK).partition(" ")
    return _propagator.extract({"traceparent": parent, "tracestate": state}, otel_context.Context())


def _parent_and_links(carried: str | None) -> tuple[Any, list[Any]]:
    """Return the parent of a span for a row that carries ``carried``, and its links: one of the two."""
    if carried is None:
        return otel_context.Context(), []
    parent = _extracted(carried)
    if not carried.startswith(LINK):
        return parent, []
    return otel_context.Context(), [Link(trace.get_current_span(parent).get_span_context())]


def event_occurs(event: Any) -> str | None:
    """Make a span of no length for an event that occurs; return its context, which what the event causes continues."""
    parent, links = _parent_and_links(event.trace_context)
    facts = facts_of(event)
    span = trace.get_tracer(TRACER).start_span(
        f"send {event.declared_as}",
        context=parent,
        kind=SpanKind.PRODUCER,
        attributes={**attributes_of(facts, ""), "messaging.operation.type": "send"},
        links=links,
    )
    span.end()
    return carried_by(trace.set_span_in_context(span, parent))


class AttemptSpan(AbstractContextManager[None]):
    """The span of one attempt: current while the attempt runs, so that spans of user code are its children."""

    def __init__(self, row: Wakeable, current: CurrentRun) -> None:
        self.current = current

    def __enter__(self) -> None:
        current = self.current
        facts = facts_of(current.row, current)
        parent, links = _parent_and_links(current.trace_context)
        span = trace.get_tracer(TRACER).start_span(
            " ".join(filter(None, ("process", facts.name, facts.part))),
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes_of(facts, current.key),
            links=links,
        )
        self.span = _spans[id(current)] = span
        self.token = otel_context.attach(trace.set_span_in_context(span, parent))
        if links:
            current.started_trace = carried_now()

    def __exit__(self, *error: object) -> None:
        _spans.pop(id(self.current), None)
        otel_context.detach(self.token)
        self.span.end()


def attributes_of(facts: Facts, key: str) -> dict[str, Any]:
    """Return the attributes of a span, by the semantic conventions for messaging, and with the project's names."""
    found = {
        "messaging.system": SYSTEM,
        "messaging.operation.type": "process",
        "messaging.operation.name": OPERATIONS.get(facts.kind, facts.kind),
        "messaging.destination.name": facts.queue or "default",
        "messaging.message.id": f"{facts.kind}:{facts.id}",
        "messaging.message.conversation_id": facts.entity,
        "automation.name": facts.name,
        "automation.part": facts.part,
        "automation.attempt": facts.attempt,
        "automation.key": key,
        "automation.run": facts.run,
        "automation.causes": list(facts.causes),
        "automation.entity": facts.entity,
    }
    return {name: value for name, value in found.items() if value}


def _on_attempt(sender: Any, row: Any, error: Exception | None, **kwargs: Any) -> None:
    subject = subject_of(row)
    span = _spans.get(id(subject.current)) if subject is not None and subject.current is not None else None
    if span is not None and error is not None:
        span.record_exception(error)
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(Status(StatusCode.ERROR, str(error)[:500]))
