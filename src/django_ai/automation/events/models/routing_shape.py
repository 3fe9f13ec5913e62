"""``RoutingShape``: the sets of fields that the routing keys of an event are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from django.db import models

from ...db.indexes import unique
from ...db.inserts import insert_ignoring
from ...db.selects import compiled_select
from ...db.writer import AutomationModel
from ...values.digests import KEY_LENGTH, digest
from .event import Event


class RoutingShape(AutomationModel):
    """A set of fields that subscribers match an event by: occurrences compute one routing key for each shape.

    A small table: one row for each distinct set of lookups in the code, not for each waiting run.
    """

    used_by = models.CharField(max_length=10, editable=False)
    event_name = models.CharField(max_length=200, editable=False)
    shape = models.CharField(max_length=500, editable=False)
    unique_key = models.CharField(max_length=KEY_LENGTH, editable=False)

    class Meta:
        constraints = [unique("automation_shape_key", "unique_key")]
        indexes = [models.Index(fields=["event_name"], name="automation_shape_event")]

    def __str__(self) -> str:
        return f"{self.event_name}: {self.shape or 'any'}"

    @classmethod
    def ensure(cls, used_by: str, event_name: str, shape: str) -> None:
        """Make occurrences of ``event_name`` compute the key of ``shape``. Commits with the caller."""
        key = digest("shape", used_by, event_name, shape)
        if not cls.objects.filter(unique_key=key).exists():
            insert_ignoring(cls, [cls(used_by=used_by, event_name=event_name, shape=shape, unique_key=key)])

    @classmethod
    def of(cls, events: Iterable[Event]) -> Shapes:
        """Return the shapes of ``events``, read with one query."""
        names = {name for event in events for name in event.names}
        found: dict[tuple[str, str], list[str]] = {}
        for used_by, name, shape in _shapes_of(sorted(names)):
            found.setdefault((used_by, name), []).append(shape)
        return Shapes(found)


@compiled_select
def _shapes_of(event_names: Sequence[str]) -> models.QuerySet[RoutingShape, tuple[str, str, str]]:
    return RoutingShape.objects.filter(event_name__in=event_names).values_list("used_by", "event_name", "shape")


class Shapes:
    """The shapes of several events."""

    def __init__(self, found: Mapping[tuple[str, str], list[str]]) -> None:
        self._found = found

    def of(self, used_by: str, event: Event) -> list[str]:
        return [shape for name in event.names for shape in self._found.get((used_by, name), ())]
