"""Migration operations: other names of workflows and steps, and other data in stored Contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..events.operations import RenameEvent as RenameEvent
from ..exceptions import DefinitionError
from ..queues.context_migration import Transform
from ..queues.data_operation import DataOperation, check_names, renamed_later, suggestion
from ..queues.models import Maintenance
from ..queues.run_operations import MAX_NAME, MigrateContexts, RenameRuns, RunOperation
from ..state.versions import check_version
from .context_migration import RunContextMigration
from .current_run import KIND
from .definitions import WorkflowDefinition, all_workflows, find_workflow
from .models import WorkflowRun
from .renaming import rename_step, rename_workflow

__all__ = ["MigrateContext", "RenameEvent", "RenameStep", "RenameWorkflow"]


class _OfWorkflow(RunOperation):
    model = WorkflowRun
    needs = (WorkflowRun, Maintenance)
    _kind: ClassVar[str] = KIND

    @classmethod
    def definitions(cls) -> Sequence[WorkflowDefinition]:
        return all_workflows()


class RenameWorkflow(_OfWorkflow, RenameRuns):
    """Rename a workflow everywhere its name is stored.

    Its runs, whatever their state, what is planned, windows, limits, pauses, schedules and the history get the new
    name. No event starts a second run, and a key of ``engine.start(key=...)`` stays taken. It works in short
    transactions, and a repeated run continues where it was interrupted. Reversed, it renames back.

    Args:
        old: The name under which the runs are stored, as a string. Of an ``@event_workflow`` without ``name=`` that is
            the module and the qualified name of its class.
        new: The name that the code gives it now.
        merge: Also if there are runs under the new name already, as after a release that came without this migration.
            Default False: such a rename is refused.

    Raises:
        DefinitionError: At import, if a name is invalid. At migration, if the code does not declare the new name, if it
            is in use, or for a row that cannot be renamed; the message names the fix.

    Example:
        The migration of an app::

            class Migration(migrations.Migration):
                atomic = False  # each bite commits
                dependencies = [("hotel", "0007_stay"), ("automation_workflows", "0001_initial")]
                operations = [RenameWorkflow("journey", "guest_journey")]
    """

    def rename(self, old: str, new: str) -> int:
        return rename_workflow(repr(self), old, new)


class RenameStep(DataOperation):
    """Rename a step of a workflow everywhere its name is stored.

    Runs that are at the step, that wait to continue with it, or that were there continue under the new name. A worker
    that performs the step at this moment loses its lease, and the step is attempted again. Reversed, it renames back.

    Args:
        workflow: The name of the workflow, as a string.
        old: The old name of the step, that is of its method.
        new: The new name.
        version: Only runs of this version, as an int or a string. Default: runs of any version.

    Raises:
        DefinitionError: At import, if a name is invalid. At migration, if the workflow has no such step, or still has
            the old one; the message names the fix.
        DecryptionError: At migration, if a column cannot be decrypted.

    Example:
        The migration of an app::

            operations = [RenameStep("guest_journey", "send_mail", "notify")]
    """

    needs = (WorkflowRun,)

    def __init__(self, workflow: str, old: str, new: str, *, version: int | str | None = None) -> None:
        what = f"RenameStep({workflow!r}, {old!r}, {new!r})"
        check_names(what, old, new, MAX_NAME)
        self.workflow, self.old, self.new = workflow, old, new
        self.version = None if version is None else check_version(version, what)

    def describe(self) -> str:
        return f"Rename the step {self.old!r} of the workflow {self.workflow!r} to {self.new!r}"

    @property
    def migration_name_fragment(self) -> str:
        return "rename_step"

    def apply(self, *, is_backwards: bool) -> int:
        old, new = (self.new, self.old) if is_backwards else (self.old, self.new)
        if not is_backwards and RenameWorkflow.has_rows(self.workflow):
            self._check()
        return rename_step(repr(self), self.workflow, self.version, old, new)

    def _check(self) -> None:
        definitions = _definitions(repr(self), self.workflow)
        mine = [each for each in definitions if self.version in (None, each.version)] or definitions
        names = sorted({name for each in mine for name in _steps_of(each)})
        wanted = renamed_later(RenameStep, self.new, workflow=self.workflow)
        if self.old in names:
            raise DefinitionError(
                f"{self!r}: the workflow still has the step {self.old!r}, where its runs continue. Leave out this "
                "operation, or remove that step."
            )
        if wanted not in names:
            raise DefinitionError(f"{self!r}: the workflow has no step {wanted!r}. {suggestion(wanted, names)}")


class MigrateContext(_OfWorkflow, MigrateContexts):
    """Transform the stored Contexts of all runs of a workflow that may continue.

    The Contexts of unfinished and of failed runs, and what their history keeps for ``engine.rewind``, are replaced by
    what ``forwards`` makes of them, encrypted as the settings say, under the version of the current code. Everything is
    transformed and validated by the Context of the current code before the first row is written. Then it is written in
    short transactions, and a repeated run continues where it was interrupted. A run that is performed at this moment
    loses its lease, and its attempt begins again with the new Context.

    Args:
        workflow: The name of the workflow, as a string.
        forwards: A function that takes the stored dict and returns the new one. It is called twice for each run.
        backwards: The same for the way back. Default: the operation cannot be reversed.
        version: Only runs of this version, as an int or a string. Default: runs of any version.

    Raises:
        DefinitionError: At import, if an argument is invalid. At migration, if there is no such workflow.
        ContextError: At migration, for a row whose new Context does not fit, with its fields. Nothing is changed then.

    Example:
        Prices become numbers::

            def to_cents(data):
                return {**data, "cents": round(float(data.pop("price")) * 100)}

            operations = [MigrateContext("checkout", to_cents, version=1)]
    """

    rename_operation = RenameWorkflow
    migration = RunContextMigration

    def __init__(
        self,
        workflow: str,
        forwards: Transform,
        backwards: Transform | None = None,
        *,
        version: int | str | None = None,
    ) -> None:
        super().__init__(workflow, forwards, backwards, version=version)

    @classmethod
    def find_newest(cls, name: str) -> WorkflowDefinition | None:
        return find_workflow(name) if name in cls.declared() else None


def _definitions(what: str, name: str) -> list[WorkflowDefinition]:
    """Return the versions of a workflow, which may have another name in the current code."""
    wanted = renamed_later(RenameWorkflow, name)
    found = [each for each in all_workflows() if each.name == wanted]
    if not found:
        declared = sorted({each.name for each in all_workflows()})
        raise DefinitionError(f"{what}: no workflow is called {wanted!r}. {suggestion(wanted, declared)}")
    return found


def _steps_of(definition: WorkflowDefinition) -> list[str]:
    return [*definition.steps, *(hook.name for hook in definition.hooks)]
