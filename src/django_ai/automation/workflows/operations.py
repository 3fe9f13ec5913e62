"""Migration operations: other names of workflows and steps, and other data in stored Contexts."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, ClassVar

from ..events.operations import RenameEvent as RenameEvent
from ..exceptions import DefinitionError
from ..queues import renaming
from ..queues.data_operation import DataOperation, check_names, renamed_later, suggestion
from ..queues.models import Maintenance
from ..state.versions import check_version
from ..values.callables import check_parameters, check_synchronous
from .context_migration import ContextMigration
from .current_run import KIND
from .definitions import WorkflowDefinition, all_workflows, find_workflow
from .models import WorkflowRun
from .renaming import rename_step, rename_workflow

__all__ = ["MigrateContext", "RenameEvent", "RenameStep", "RenameWorkflow"]

MAX_NAME = 200


class RenameWorkflow(DataOperation):
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

    needs = (WorkflowRun, Maintenance)
    _kind: ClassVar[str] = KIND

    def __init__(self, old: str, new: str, *, merge: bool = False) -> None:
        check_names(f"RenameWorkflow({old!r}, {new!r})", old, new, MAX_NAME)
        self.old, self.new, self.merge = old, new, merge

    def describe(self) -> str:
        return f"Rename the workflow {self.old!r} to {self.new!r}"

    @property
    def migration_name_fragment(self) -> str:
        return "rename_workflow"

    def apply(self, *, is_backwards: bool) -> int:
        if is_backwards:
            changed = rename_workflow(repr(self), self.new, self.old)
            renaming.forget(self._kind, self.old, self.new)
            return changed
        self._check()
        renaming.check_no_bulk_action(repr(self), self.old)
        renaming.record(self._kind, self.old, self.new)
        changed = rename_workflow(repr(self), self.old, self.new)
        renaming.complete(self._kind, self.old, self.new, changed)
        return changed

    def _check(self) -> None:
        if not _has_runs(self.old):
            if (near := _misspelt(self.old)) and not _has_runs(self.new):
                raise DefinitionError(f"{self!r}: there is no run of {self.old!r}. Did you mean {near!r}?")
            return
        declared = sorted({each.name for each in all_workflows()})
        if self.old in declared:
            raise DefinitionError(
                f"{self!r}: the code still declares the workflow {self.old!r}. Give its class the name {self.new!r} in "
                "the release that has this migration."
            )
        wanted = renamed_later(RenameWorkflow, self.new)
        if wanted not in declared:
            raise DefinitionError(f"{self!r}: no workflow is called {wanted!r}. {suggestion(wanted, declared)}")
        if not self.merge and not renaming.is_recorded(self._kind, self.old, self.new) and _has_runs(self.new):
            raise DefinitionError(
                f"{self!r}: there are runs of {self.new!r} already. If they are of the same workflow, because the new "
                "code has run before this migration, add merge=True. Otherwise choose another name."
            )


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
        if not is_backwards and _has_runs(self.workflow):
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


class MigrateContext(DataOperation):
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

    needs = (WorkflowRun, Maintenance)

    def __init__(
        self,
        workflow: str,
        forwards: Callable[[dict[str, Any]], dict[str, Any]],
        backwards: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        *,
        version: int | str | None = None,
    ) -> None:
        what = f"MigrateContext({workflow!r})"
        for function in (forwards, backwards):
            if function is not None:
                if not callable(function):
                    raise DefinitionError(f"{what}: {function!r} must be a function that takes the stored dict.")
                check_synchronous(function, what)
                check_parameters(function, what, "data")
        self.workflow, self.forwards, self.backwards = workflow, forwards, backwards
        self.version = None if version is None else check_version(version, what)

    @property
    def reversible(self) -> bool:  # type: ignore[override]
        return self.backwards is not None

    def describe(self) -> str:
        of = "" if self.version is None else f" of version {self.version}"
        return f"Transform the Contexts of the workflow {self.workflow!r}{of}"

    @property
    def migration_name_fragment(self) -> str:
        return "migrate_context"

    def apply(self, *, is_backwards: bool) -> int:
        if not _has_runs(self.workflow):
            return 0
        definitions = _definitions(repr(self), self.workflow)
        newest = find_workflow(definitions[0].name)
        if not is_backwards:
            migration = ContextMigration(
                what=repr(self),
                workflow=self.workflow,
                version=self.version,
                target=newest,
                stored_version=newest.version,
                transform=self.forwards,
            )
            return migration.run()
        assert self.backwards is not None
        migration = ContextMigration(
            what=repr(self),
            workflow=self.workflow,
            version=newest.version if self.version is not None else None,
            target=None,
            stored_version=self.version,
            transform=self.backwards,
        )
        return migration.run()


def _has_runs(name: str) -> bool:
    return any(found == name for found in WorkflowRun.objects.filter(name=name).values_list("name", flat=True)[:1])


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


def _misspelt(name: str) -> str:
    """Return the stored name, which no code declares, that ``name`` may stand for; empty: none. One look into an index
    for each name that is stored."""
    declared, orphans, last = {each.name for each in all_workflows()}, [], ""
    while (found := _next_name(last)) is not None:
        last = found
        if found not in declared:
            orphans.append(found)
    return next(iter(get_close_matches(name, orphans, n=1, cutoff=0.85)), "")


def _next_name(after: str) -> str | None:
    names = WorkflowRun.objects.filter(name__gt=after).order_by("name").values_list("name", flat=True)
    return names.first()
