"""``manage.py automation_unpause``: end pauses, or list them."""

from __future__ import annotations

from ...operations.pause_targets import PauseCommand, Target
from ...pausing import unpause


class Command(PauseCommand):
    help = (
        "End the pause of everything, of a queue, a workflow, an agent, a callback or single rows, or list the pauses."
    )
    verb, done, refused = "unpause", "Unpaused", "Not paused"

    def apply(self, target: Target) -> bool:
        return unpause(target.target)
