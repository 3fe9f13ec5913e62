"""Migration operations: other names of agents and handlers, and other data in stored Contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..exceptions import DefinitionError
from ..queues.context_migration import Transform
from ..queues.data_operation import DataOperation, check_names, renamed_later, suggestion
from ..queues.models import Maintenance
from ..queues.run_operations import MAX_NAME, MigrateContexts, RenameRuns, RunOperation
from .context_migration import AgentContextMigration
from .definitions import AgentDefinition, all_agents, registered_agent
from .ending import KIND
from .models import AgentRoute, AgentRun, HandlerExecution
from .renaming import rename_agent, rename_handler

__all__ = ["MigrateAgentContext", "RenameAgent", "RenameHandler"]


class _OfAgent(RunOperation):
    model = AgentRun
    needs = (AgentRun, AgentRoute, HandlerExecution, Maintenance)
    _kind: ClassVar[str] = KIND

    @classmethod
    def definitions(cls) -> Sequence[AgentDefinition]:
        return all_agents()


class RenameAgent(_OfAgent, RenameRuns):
    """Rename an agent everywhere its name is stored.

    Living and ended agents, the keys under which events find them, singletons, limits of handlers, pauses and the
    history get the new name. No event spawns a second agent, and what is in a mailbox stays there. It works in short
    transactions, and a repeated run continues where it was interrupted. An agent that handles an event at this moment
    loses its lease, and the handler is attempted again. Reversed, it renames back. The keys of the old name remain with
    an agent until its Context changes or it ends, so that processes of the release before still find it: do not give
    the old name to another agent meanwhile.

    Args:
        old: The name under which the agents are stored, as a string.
        new: The name that the code gives it now.
        merge: Also if there are agents under the new name already, as after a release that came without this migration.
            Default False: such a rename is refused.

    Raises:
        DefinitionError: At import, if a name is invalid. At migration, if the code does not declare the new name, if it
            is in use, or for a row that cannot be renamed; the message names the fix.
        ContextError: At migration, for a living agent whose Context does not fit its class. Nothing is changed then.
        DecryptionError: At migration, if a Context cannot be decrypted. Nothing is changed then.

    Example:
        The migration of an app::

            class Migration(migrations.Migration):
                atomic = False  # each bite commits
                dependencies = [("hotel", "0007_stay"), ("automation_agents", "0001_initial")]
                operations = [RenameAgent("concierge", "guest_care")]
    """

    def rename(self, old: str, new: str) -> int:
        return rename_agent(repr(self), old, new, registered_agent(renamed_later(RenameAgent, self.new)))


class RenameHandler(DataOperation):
    """Rename a handler of an agent everywhere its name is stored.

    Executions in every state, limits and muted problems get the new name. What waits in a mailbox is handled under it.
    Executions that are parked because the handler was missing resume with the next reconciliation. Reversed, it renames
    back.

    Args:
        agent: The name of the agent, as a string.
        old: The old name of the handler, that is of its method.
        new: The new name.

    Raises:
        DefinitionError: At import, if a name is invalid. At migration, if the agent has no such handler, or still has
            the old one; the message names the fix.

    Example:
        The migration of an app::

            operations = [RenameHandler("guest_care", "greet", "welcome")]
    """

    needs = (AgentRun, HandlerExecution, Maintenance)

    def __init__(self, agent: str, old: str, new: str) -> None:
        check_names(f"RenameHandler({agent!r}, {old!r}, {new!r})", old, new, MAX_NAME)
        self.agent, self.old, self.new = agent, old, new

    def describe(self) -> str:
        return f"Rename the handler {self.old!r} of the agent {self.agent!r} to {self.new!r}"

    @property
    def migration_name_fragment(self) -> str:
        return "rename_handler"

    def apply(self, *, is_backwards: bool) -> int:
        old, new = (self.new, self.old) if is_backwards else (self.old, self.new)
        if not is_backwards and RenameAgent.has_rows(self.agent):
            self._check()
        others = {each.method for agent in all_agents() if agent.name != self._declared_as for each in agent.handlers}
        return rename_handler(repr(self), self.agent, old, new, is_only=old not in others)

    @property
    def _declared_as(self) -> str:
        return renamed_later(RenameAgent, self.agent)

    def _check(self) -> None:
        definition = registered_agent(self._declared_as)
        if definition is None:
            known = suggestion(self._declared_as, RenameAgent.declared())
            raise DefinitionError(f"{self!r}: no agent is called {self._declared_as!r}. {known}")
        names = sorted({each.method for each in definition.handlers})
        wanted = renamed_later(RenameHandler, self.new, agent=self.agent)
        if self.old in names:
            raise DefinitionError(
                f"{self!r}: the agent still has the handler {self.old!r}, which its executions call. Leave out this "
                "operation, or remove that handler."
            )
        if wanted not in names:
            raise DefinitionError(f"{self!r}: the agent has no handler {wanted!r}. {suggestion(wanted, names)}")


class MigrateAgentContext(_OfAgent, MigrateContexts):
    """Transform the stored Contexts of all agents of one name that live, or that failed and may be resumed.

    The Contexts are replaced by what ``forwards`` makes of them, encrypted as the settings say, under the version of
    the current code, with the keys under which events find the agents. Everything is transformed and validated by the
    Context of the current code before the first row is written. Then it is written in short transactions, and a
    repeated run continues where it was interrupted. An agent that handles an event at this moment loses its lease, and
    its handler is attempted again with the new Context. Reversed, the keys are those of the Context as it was when the
    release before has reconciled its agents, which its workers do when they start.

    Args:
        agent: The name of the agent, as a string.
        forwards: A function that takes the stored dict and returns the new one. It is called twice for each agent.
        backwards: The same for the way back. Default: the operation cannot be reversed.
        version: Only agents of this version, as an int or a string. Default: agents of any version.

    Raises:
        DefinitionError: At import, if an argument is invalid. At migration, if there is no such agent.
        ContextError: At migration, for a row whose new Context does not fit, with its fields. Nothing is changed then.
        SingletonTakenError: At migration, for an agent that would become the second one of a singleton.

    Example:
        A guest is known by a number::

            def to_number(data):
                return {**data, "guest": int(data["guest"])}

            operations = [MigrateAgentContext("guest_care", to_number, version=1)]
    """

    rename_operation = RenameAgent
    migration = AgentContextMigration

    def __init__(
        self,
        agent: str,
        forwards: Transform,
        backwards: Transform | None = None,
        *,
        version: int | str | None = None,
    ) -> None:
        super().__init__(agent, forwards, backwards, version=version)

    @classmethod
    def find_newest(cls, name: str) -> AgentDefinition | None:
        return registered_agent(name)
