"""What happens to another row while a step runs is not told of the step: a condition that raises as the step saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from django_ai.automation import EventDefinition, complete, engine, step, workflow
from django_ai.automation.contrib.telemetry.logs import AutomationFilter
from tests.apps.reservations.models import Ticket

pytestmark = pytest.mark.django_db(transaction=True)


def refuse(ticket: Any) -> bool:
    raise LookupError("a condition")


@pytest.fixture
def saving(declare, work) -> Callable[[], None]:
    """Return a function that runs a step that saves an entity whose condition raises."""
    declare(Ticket, EventDefinition("ticket_opened", refuse))

    @workflow("other:saves")
    class Saves:
        class Context(BaseModel):
            pass

        @step(start=True)
        def save(self):
            Ticket.objects.create()
            return complete()

    def run() -> None:
        found = engine.start(Saves)
        work()
        found.refresh_from_db()
        assert found.status == "completed"

    return run


def test_the_record_of_the_failed_condition_names_the_event(saving, caplog):
    caplog.handler.addFilter(AutomationFilter())
    saving()
    (record,) = [each for each in caplog.records if "a condition" in each.getMessage()]
    assert record.automation.startswith("event:")  # type: ignore[attr-defined]


def test_metrics_count_the_error_for_the_event(saving):
    pytest.importorskip("prometheus_client", reason="the extra [prometheus] is not installed")
    from django_ai.automation.contrib.telemetry import metrics

    metrics.connect()
    try:
        saving()
    finally:
        metrics.disconnect()
    samples = [each for each in metrics.ATTEMPTS.collect()[0].samples if each.name.endswith("_total")]
    found = {tuple(each.labels.values()): each.value for each in samples}
    assert found["workflow", "other:saves", "save", "success"] == 1
    assert ("workflow", "other:saves", "save", "error") not in found
    assert found["event", "ticket_opened", "", "error"] >= 1


def test_the_span_of_the_step_is_no_error(saving, monkeypatch):
    pytest.importorskip("opentelemetry.sdk", reason="the package opentelemetry-sdk is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from django_ai.automation.contrib.telemetry import traces

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    traces.connect()
    try:
        saving()
    finally:
        traces.disconnect()
    (span,) = [each for each in exporter.get_finished_spans() if each.name == "process other:saves save"]
    assert span.status.status_code is trace.StatusCode.UNSET
