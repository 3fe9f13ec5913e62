"""``manage.py automation_pause``: pause rows, workflows, agents, callbacks, queues or everything."""

from __future__ import annotations

from ...operations.pause_targets import PauseCommand, Target
from ...pausing import pause, pause_row


class Command(PauseCommand):
    help = (
        "Pause everything, a queue, a workflow, an agent, a callback or single rows, or list what is paused. Running "
        "steps are finished; what falls due meanwhile is performed after automation_unpause."
    )
    verb, done, refused = "pause", "Paused", "Not paused, because it has ended or was paused already"

    def apply(self, target: Target) -> bool:
        return pause(target.target) if target.row is None else pause_row(target.row)
