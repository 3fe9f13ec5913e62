"""Each column that may hold a name is known to the operations that rename: a new one needs a decision."""

from __future__ import annotations

from tests.support.stored_names import DIGESTS, FREE_TEXT, HOLDS, label, text_columns

WITHOUT_NAMES = {
    # Names of other things: of callbacks, queues, kinds, models and processes.
    "automation_agents.AgentRun.queue",
    "automation_agents.AgentRun.version",
    "automation_events.CallbackExecution.callback",
    "automation_events.CallbackExecution.queue",
    "automation_events.CapturedWrite.model",
    "automation_events.CollectedEvent.kind",
    "automation_events.EventClaim.owner_kind",
    "automation_events.RoutingShape.used_by",
    "automation_queues.Action.actor",
    "automation_queues.Action.actor_name",
    "automation_queues.Action.done",
    "automation_queues.Action.model",
    "automation_queues.BulkAction.actor",
    "automation_queues.BulkAction.actor_name",
    "automation_queues.BulkAction.row_kind",
    "automation_queues.BulkAction.verb",
    "automation_queues.HeldRow.kind",
    "automation_queues.Limiter.limit",
    "automation_queues.Limiter.row_kind",
    "automation_queues.Maintenance.name",
    "automation_queues.MutedProblem.actor",
    "automation_queues.MutedProblem.actor_name",
    "automation_queues.MutedProblem.kind",
    "automation_queues.Pause.row_kind",
    "automation_queues.Slot.row_kind",
    "automation_queues.Worker.host",
    "automation_queues.Worker.kinds",
    "automation_queues.Worker.name",
    "automation_queues.Worker.queues",
    "automation_queues.Worker.runtime",
    "automation_queues.Worker.worked",
    "automation_workflows.Wait.branch",
    "automation_workflows.WorkflowRun.parent_channel",
    "automation_workflows.WorkflowRun.queue",
    "automation_workflows.WorkflowRun.version",
    # Entities, namespaces, milestones and causes ("workflow:12").
    "automation_agents.AgentRun.caused_by",
    "automation_agents.AgentRun.entity_id",
    "automation_agents.AgentRun.entity_type",
    "automation_agents.HandlerExecution.milestone",
    "automation_events.CallbackExecution.milestone",
    "automation_events.CapturedWrite.caused_by",
    "automation_events.CapturedWrite.entity_id",
    "automation_events.CapturedWrite.entity_type",
    "automation_events.Event.caused_by",
    "automation_events.Event.entity_type",
    "automation_events.Event.fired",
    "automation_events.Event.milestone_positions",
    "automation_events.Event.namespace",
    "automation_events.Event.pending_notifications",
    "automation_events.EventClaim.namespace",
    "automation_workflows.Signal.caused_by",
    "automation_workflows.Wait.namespace",
    "automation_workflows.WorkflowRun.caused_by",
    "automation_workflows.WorkflowRun.entity_id",
    "automation_workflows.WorkflowRun.entity_type",
    # Values of the project.
    "automation_agents.AgentRun.data",
    "automation_events.CapturedWrite.old",
    "automation_events.Event.changed_values",
    "automation_events.EventClaim.match",
    "automation_events.EventClaim.residual",
    "automation_events.RoutingShape.shape",
    "automation_events.Schedule.arguments",
    "automation_events.Snapshot.data",
    "automation_queues.Limiter.value",
    "automation_workflows.Signal.payload",
    "automation_workflows.Wait.match",
    "automation_workflows.WorkflowRun.data",
}
CHOICES = {"status", "trigger", "operation", "overlap", "state", "term", "outcome", "wake_reason"}
PLAIN = {"lease", "call_key", "trace_context", "timezone", "cron", "counted"}


def test_each_text_column_is_known_to_the_operations_that_rename():
    known = set().union(*HOLDS.values(), DIGESTS, FREE_TEXT, WITHOUT_NAMES)
    columns = {label(*each) for each in text_columns() if each[1] not in CHOICES | PLAIN}
    assert columns - known == set(), (
        "New columns: if one holds the name of a workflow, step, agent, handler or event, rename it in the renaming.py "
        "of workflows, agents or events or in workflows/event_renaming.py, and add it to HOLDS in "
        "tests/support/stored_names.py"
    )
    assert known - columns == set(), "columns that no longer exist"
