"""``Operations``: what ``engine`` offers to an operator for many rows: bulk actions, and mutes of problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from django.db.models import Model

from ..events.declarations import concrete_ancestors
from ..events.entities import rows_about
from ..events.entity_ids import entity_id_of
from ..exceptions import DefinitionError
from ..queues.bulk.creation import cancel_bulk, create_bulk
from ..queues.bulk.filters import BulkFilter
from ..queues.bulk.verbs import BulkKind, find_kind
from ..queues.models import BulkAction, MutedProblem
from ..queues.problems import key_of_row, kind_of, mute, name_of, problem_line, read_again, state_of, unmute

ENTITY_PATHS = {"": "entity_type", "event__": "event", "run__": "run"}
"""Where rows name the entity that they are about: by the field that the model then has."""


class Operations:
    """The part of ``Engine`` that works with many rows."""

    def bulk(
        self,
        verb: str,
        kind: str = "workflow",
        *,
        name: str | None = None,
        status: str | Iterable[str] | None = None,
        entity: Model | None = None,
        same_problem_as: Model | None = None,
        pks: Iterable[int] | None = None,
        where: Mapping[str, Any] | None = None,
        everything: bool = False,
        reason: str = "",
    ) -> BulkAction:
        """Let workers do something to many rows, in the background.

        The bulk action is a row in the caller's transaction; workers carry it out after the commit, a part of the rows
        in each transaction, beside other work. A row is changed if it matches all conditions when its turn comes; rows
        that are created later are left alone. A row that is refused, or raises an error, does not stop the others. Each
        changed row names who acts now (``acting_as``), and why, as if it had been changed alone.

        Args:
            verb: What to do: ``"resume"``, ``"cancel"``, ``"pause"``, ``"unpause"``; for workflows also
                ``"cancel_at_once"``, ``"try_now"`` and ``"skip_wait"``; for agents ``"complete"``. Agents, callbacks,
                events and so on have those verbs that their pages in the admin have.
            kind: The kind of row: ``"workflow"`` (the default), ``"agent"``, ``"handler"``, ``"event"``,
                ``"callback"``, ``"signal"``, ``"write"`` or ``"schedule"``.
            name: Only rows of this workflow, agent, handler, event, callback or signal.
            status: Only rows with this status, or one of several. Default: all that the verb has an effect on.
            entity: Only rows about this model instance; not for kinds without one.
            same_problem_as: Only rows that have failed, or are parked, for the same reason as this row: of its name,
                with an error that differs in ids only.
            pks: Only rows with these primary keys, at most 10,000.
            where: More conditions, as lookups of Django with plain values: ``{"created_at__lt": monday}``.
            everything: Allow a call without any condition: all rows of the kind. Default False.
            reason: Why, as a string for the history of each row. Default: the reason of ``acting_as``.

        Returns:
            The ``BulkAction``. Its ``total`` says how many rows matched; ``done``, ``refused`` and ``failed`` say how
            far it is.

        Raises:
            DefinitionError: If there is no such kind or verb, if a condition cannot be stored or is no lookup, or if
                none is given without ``everything``.
            StateError: If ``same_problem_as`` is neither failed nor parked.

        Example:
            Cancel the reminders of a season that is over::

                engine.bulk("cancel", name="remind", status="suspended", reason="The season is over.")
        """
        found = find_kind(kind)
        conditions: dict[str, Any] = dict(where or {})
        if name is not None:
            conditions[found.name_field] = name
        if status is not None:
            conditions["status__in"] = [status] if isinstance(status, str) else list(status)
        if entity is not None:
            conditions |= _entity_conditions(found, entity)
        problem = None
        if same_problem_as is not None:
            if type(same_problem_as) is not found.model:
                raise DefinitionError(
                    f"engine.bulk(same_problem_as={same_problem_as!r:.80}): give a row of the kind {kind!r}."
                )
            problem = problem_of(same_problem_as)
            conditions[found.name_field] = problem["name"]
            if hasattr(same_problem_as, "status"):
                conditions["status"] = problem["state"]
        if not (conditions or pks is not None or everything):
            raise DefinitionError(
                f"engine.bulk({verb!r}, {kind!r}) has no condition. Say which rows, as in name=..., or everything=True."
            )
        return create_bulk(verb, kind, BulkFilter(conditions, pks=pks, problem=problem), reason)

    def cancel_bulk(self, bulk: BulkAction | int, reason: str = "Cancelled.") -> bool:
        """Stop a bulk action. What it has done stays done.

        It is cancelled in the caller's transaction. The rows with which a worker is busy at this moment are not
        changed.

        Args:
            bulk: The ``BulkAction``, or its primary key.
            reason: Why, as a string for the operator. Default ``"Cancelled."``.

        Returns:
            True if it was unfinished.

        Raises:
            DefinitionError: If ``bulk`` is something else.

        Example:
            Stop what should not have begun::

                engine.cancel_bulk(bulk, "The wrong workflow.")
        """
        return cancel_bulk(bulk, reason)

    def mute(self, row: Any, *, until: datetime | None = None, reason: str = "") -> MutedProblem:
        """Mute the problem that a row has: no alerts, and folded on the page of problems.

        That concerns all rows of its kind, name and state, now and later, whose error is the same but for ids. Other
        errors still alert. The mute is a row in the caller's transaction; muting once more replaces it.

        Args:
            row: A run, agent, execution, event or signal that has failed or is parked.
            until: When the mute ends, an aware datetime. Default: when it is unmuted.
            reason: Why, as a string for the operator. Default: the reason of ``acting_as``.

        Returns:
            The ``MutedProblem``.

        Raises:
            StateError: If the row has neither failed nor is parked.
            DefinitionError: If ``until`` is in the past.

        Example:
            The supplier is down until the evening::

                engine.mute(run, until=tonight, reason="The supplier is down.")
        """
        return mute(row, until=until, reason=reason)

    def unmute(self, problem: MutedProblem | Model | str) -> bool:
        """End the mute of a problem.

        Args:
            problem: The ``MutedProblem``, its key, or a row that has the problem.

        Returns:
            True if it was muted.

        Raises:
            StateError: If a row is given that has neither failed nor is parked.

        Example:
            Hear of it again::

                engine.unmute(run)
        """
        return unmute(problem)


def problem_of(row: Any) -> dict[str, str]:
    """Return the problem that ``row`` has now, as the filter of a bulk action has it. Raises ``StateError``."""
    row = read_again(row)
    return {
        "key": key_of_row(row),
        "kind": kind_of(type(row)),
        "name": name_of(row),
        "state": state_of(row),
        "error": problem_line(row.error),
    }


def _entity_conditions(kind: BulkKind, entity: Model) -> dict[str, Any]:
    rows_about(entity)  # refuses what is no saved instance
    names = {each.name for each in kind.model._meta.get_fields()}
    path = next((path for path, name in ENTITY_PATHS.items() if name in names), None)
    if path is None:
        raise DefinitionError(f"engine.bulk(entity=...): rows of the kind {kind.name!r} are about no entity.")
    models = list(concrete_ancestors(type(entity)))
    ids = {entity_id_of(model, getattr(entity, str(getattr(model._meta.pk, "attname", "pk")))) for model in models}
    if len(ids) > 1:
        raise DefinitionError(
            f"engine.bulk(entity={entity!r:.80}): it has another primary key in each class of its inheritance chain. "
            "Name it by where={'entity_type': ..., 'entity_id': ...}."
        )
    return {f"{path}entity_type__in": [model._meta.label_lower for model in models], f"{path}entity_id": ids.pop()}
