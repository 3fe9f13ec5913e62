"""What a row is, in names and ids that logs, alerts, metrics and traces share. Reads memory only: no query is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...queues.causation import CurrentRun
from ...queues.problems import kind_of


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a row.

    Attributes:
        kind: ``"workflow"``, ``"agent"``, ``"handler"``, ``"callback"``, ``"event"``, ``"signal"`` and so on.
        id: Its primary key, a string: stable, and unique for its kind.
        name: The name that the project gave it: of a workflow, agent, callback or event.
        part: The step or handler whose code runs, or empty.
        attempt: The number of the attempt, or 0 outside one.
        run: For a handler: its agent, such as ``"agent:3"``.
        causes: What has caused it, nearest first, as far as it is in memory: ``("event:7", "workflow:12:notify")``.
        depth: The length of its chain of causes.
        entity: The entity that it is about, such as ``"shop.order:7"``, or empty.
        queue: Its queue.
    """

    kind: str
    id: str
    name: str
    part: str = ""
    attempt: int = 0
    run: str = ""
    causes: Sequence[str] = ()
    depth: int = 0
    entity: str = ""
    queue: str = ""

    @property
    def label(self) -> str:
        """The row and its code, such as ``"workflow:12:charge"``."""
        return ":".join(filter(None, (self.kind, self.id, self.part)))


def facts_of(row: Any, current: CurrentRun | None = None) -> Facts:
    """Return what is known of ``row``. ``current``: the attempt of it that runs."""
    kind = kind_of(type(row))
    event, agent = _loaded(row, "event"), _loaded(row, "run") if kind == "handler" else None
    about = next((each for each in (row, agent, event) if getattr(each, "entity_id", "")), None)
    return Facts(
        kind=kind,
        id=str(row.pk),
        name=str(_name(row, agent)),
        part=_part(row, current),
        attempt=current.attempt if current is not None else 0,
        run=f"agent:{row.run_id}" if kind == "handler" else "",
        causes=tuple(_causes(row, event)),
        depth=current.chain_length if current is not None else getattr(row, "depth", 0),
        entity=f"{about.entity_type}:{about.entity_id}" if about is not None else "",
        queue=str(getattr(row if agent is None else agent, "queue", "")),
    )


def _loaded(row: Any, name: str) -> Any:
    """Return the row that a foreign key leads to if it is in memory."""
    state = getattr(row, "_state", None)
    return state.fields_cache.get(name) if state is not None else None


def _name(row: Any, agent: Any) -> Any:
    if agent is not None:
        return agent.name
    for attribute in ("name", "callback", "event_name", "handler", "task"):
        if found := getattr(row, attribute, ""):
            return found
    return row


def _part(row: Any, current: CurrentRun | None) -> str:
    if hasattr(row, "handler"):
        return str(row.handler)
    if current is not None:
        return current.label.split(":", 2)[2] if current.label.count(":") > 1 else ""
    return str(getattr(row, "current_step", ""))


def _causes(row: Any, event: Any) -> list[str]:
    found = [row.caused_by] if getattr(row, "caused_by", "") else []
    event_pk = getattr(row, "event_id", None)
    if event_pk is not None and f"event:{event_pk}" not in found:
        found.append(f"event:{event_pk}")
    if event is not None and event.caused_by:
        found.append(event.caused_by)
    return found
