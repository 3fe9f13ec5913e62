"""A row that is made in a fraction of the time of Django's constructor is the same row."""

from __future__ import annotations

import pytest
from django.utils import timezone

from django_ai.automation.db.new_rows import new
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.models import StepExecution, WorkflowRun

NOW = timezone.now()


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        (Event, {"event_name": "paid", "event_created_at": NOW, "at": NOW, "trace_context": None}),
        (WorkflowRun, {"name": "import", "created_at": NOW, "call_key": "1", "data": {"a": 1}, "parent_id": 3}),
        (StepExecution, {"run_id": 2, "step": "first", "before": None}),
        (CallbackExecution, {"event_id": 2, "callback": "mail", "created_at": NOW, "unique_key": "a", "call_key": "1"}),
    ],
)
def test_it_has_the_values_of_the_constructor(model, columns):
    made, expected = new(model, **columns), model(**columns)
    found = {name: value for name, value in vars(made).items() if name != "_state"}
    assert found == {name: value for name, value in vars(expected).items() if name != "_state"}
    assert (made._state.adding, made._state.db, made.pk) == (True, None, None)
    assert made._state.fields_cache == {}
    assert made == made
    assert made != expected  # as any two unsaved rows


def test_what_is_made_for_each_row_is_not_shared():
    one, other = new(Event, event_name="paid"), new(Event, event_name="paid")
    one.fired.append("created")
    assert other.fired == []
    assert new(WorkflowRun, name="a").call_key != new(WorkflowRun, name="a").call_key


def test_a_column_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match=r"WorkflowRun has no columns event, nonsense\."):
        new(WorkflowRun, name="a", nonsense=1, event=None)
