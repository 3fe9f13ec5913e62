"""The kinds of rows that verbs name: ``workflow 12`` is a run, ``event 5`` an event."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.db.models import Q

from ...agents.definitions import all_agents
from ...agents.models import AgentRun, HandlerExecution
from ...db.writer import alias_of
from ...events.callbacks import all_callbacks
from ...events.models import CallbackExecution, CapturedWrite, Event, EventClaim, Schedule
from ...events.schedules.definitions import all_schedules
from ...events.sources import declared_names
from ...queues.models import Limiter, Worker
from ...queues.wakeable import Wakeable
from ...workflows.definitions import all_workflows
from ...workflows.models import Signal, WorkflowRun
from .names import check_name, hint
from .output import Refused, Usage


def _none() -> Collection[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of row.

    ``name_field``: what ``--name`` compares. ``names``: the names that the code declares. ``entity``: the lookup of the
    row with the columns of the entity; None: rows of this kind have none. ``related``: what is read with a row.
    """

    name: str
    model: type[models.Model]
    name_field: str
    names: Callable[[], Collection[str]] = _none
    entity: str | None = None
    related: tuple[str, ...] = ()

    def rows(self) -> models.QuerySet[Any]:
        """Return all rows, as they are listed, from the writer."""
        rows = self.model._default_manager.using(alias_of(self.model))
        if self.related:
            rows = rows.select_related(*self.related)
        if self.model is WorkflowRun:
            rows = rows.prefetch_related("waits")
        if self.model is AgentRun:
            rows = rows.with_failed_handlers()  # type: ignore[attr-defined]
        return rows.order_by("pk")

    def about(self, entity: Q) -> models.QuerySet[Any]:
        """Return the rows for a condition of ``entities.condition``."""
        return self.rows().filter(entity)

    def what(self, row: Any) -> str:
        """Return a row in words, without the values of a claim's match."""
        if isinstance(row, EventClaim):
            return f"{row.event_name!r} is claimed by {row.owner_kind} #{row.owner_id}"
        return str(row)

    @property
    def has_status(self) -> bool:
        """Whether its rows have the column ``status``."""
        return any(field.name == "status" for field in self.model._meta.concrete_fields)

    def statuses(self) -> list[str]:
        """Return the statuses that a row of this kind can have."""
        return [str(value) for value, _label in self.model._meta.get_field("status").flatchoices]  # type: ignore[union-attr]

    def find(self, pk: int) -> Any:
        """Return the row with this primary key. Raises ``Refused``."""
        row = self.rows().filter(pk=pk).first()
        if row is None:
            raise Refused(f"There is no {self.name} with the primary key {pk}.")
        return row


_KINDS = (
    Kind("workflow", WorkflowRun, "name", lambda: {each.name for each in all_workflows()}, "", ("event", "parent")),
    Kind("agent", AgentRun, "name", lambda: {each.name for each in all_agents()}, "", ("event",)),
    Kind("event", Event, "event_name", declared_names, ""),
    Kind(
        "callback",
        CallbackExecution,
        "callback",
        lambda: {each.name for each in all_callbacks()},
        "event__",
        ("event",),
    ),
    Kind(
        "handler",
        HandlerExecution,
        "handler",
        lambda: {each.method for agent in all_agents() for each in agent.handlers},
        "event__",
        ("run", "event"),
    ),
    Kind("signal", Signal, "name", _none, "run__", ("run",)),
    Kind("schedule", Schedule, "name", lambda: {each.name for each in all_schedules()}),
    Kind("claim", EventClaim, "event_name", declared_names),
    Kind("write", CapturedWrite, "model"),
    Kind("limit", Limiter, "name"),
    Kind("worker", Worker, "name"),
)
KINDS = {kind.name: kind for kind in _KINDS}
ALSO_CALLED = {"run": "workflow", "execution": "callback"}


def find_kind(given: str, among: Collection[str] = KINDS.keys()) -> Kind:
    """Return a kind by its name, which may be in the plural. Raises ``Usage``."""
    name = given.lower()
    for each in (name, name.removesuffix("s"), ALSO_CALLED.get(name.removesuffix("s"), "")):
        if each in among:
            return KINDS[each]
    if name.removesuffix("s") in KINDS:
        raise Usage(f"This verb does not take the kind {given!r}. Kinds: {', '.join(among)}.")
    raise Usage(f"There is no kind {given!r}. {hint(name, among)}")


def named(rows: models.QuerySet[Any], kind: Kind, name: str) -> models.QuerySet[Any]:
    """Return those of ``rows`` that have this name. Raises ``Usage`` if neither the code nor a row has it."""
    found = rows.filter(**{kind.name_field: name})
    if name not in kind.names() and not found.exists():
        check_name(name, {*kind.names(), *_stored_names(kind)}, f"{kind.name} called")
    return found


def _stored_names(kind: Kind) -> Iterable[str]:
    """Return names of rows, for kinds whose names the code does not declare."""
    if kind.names():
        return ()
    newest = kind.model._default_manager.using(alias_of(kind.model)).order_by("-pk")
    return set(newest.values_list(kind.name_field, flat=True)[:1000])


def load_reasons(rows: Sequence[Any]) -> None:
    """Read what ``waits_for`` of several rows of one kind needs, with few queries."""
    load = getattr(type(rows[0]), "load_reasons", None) if rows else None
    if load is not None:
        load(rows)


def is_open(row: Any) -> bool:
    """Return whether a row waits for something."""
    if hasattr(row, "status"):
        return str(row.status) in ("pending", "waiting", "running", "suspended", "active", "parked")
    return isinstance(row, Wakeable)
