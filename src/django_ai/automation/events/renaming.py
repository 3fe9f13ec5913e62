"""Renaming an event, or the target of schedules and windows: the tables of this layer.

A layer above registers what it stores of events (``register_event_renamer``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.db import models
from django.db.models import Q

from ..exceptions import DefinitionError
from ..queues.bites import in_bites
from ..queues.problems import kind_of
from ..queues.renaming import rename_in_words, rename_limiters, rename_muted
from ..values.digests import digest
from .callbacks import CALLBACK, all_callbacks
from .claim_lookup import CLAIMS
from .event_keys import value_of
from .matching.match import address, namespaced_key
from .models import CollectedEvent, Event, EventClaim, RoutingShape, Schedule
from .models.event import active_key, free_key
from .name_map import NameMap
from .schedules.definitions import event_name_of
from .sources import event_sources, stored_names
from .subscriptions import subscriptions
from .windows import window_key

EventRenamer = Callable[[str, NameMap], int]
"""Renames an event in the tables of a layer: takes who renames, and the names; returns the number of rows."""

_renamers: list[EventRenamer] = []


def register_event_renamer(renamer: EventRenamer) -> None:
    _renamers.append(renamer)


def rename_event(what: str, names: NameMap) -> int:
    """Rename an event in all tables. Return how many rows were changed.

    Raises ``DefinitionError`` for a row that cannot be renamed.
    """
    changed = rename_rows(what, names) + _rename_shapes(names) + _rename_claims(what, names)
    changed += rename_in_words(what, Event._meta.label_lower, f"event {names.old!r} ", f"event {names.new!r} ")
    changed += rename_muted(what, kind_of(Event), names.get)
    functions = {each.name for each in all_callbacks()}
    changed += rename_limits_on(what, CALLBACK, names, functions.__contains__)
    return changed + sum(renamer(what, names) for renamer in _renamers)


def names_in(names: NameMap, column: str) -> Q:
    """Return the condition for rows whose ``column`` may have an old name; ``names.get`` tells exactly."""
    return Q(**{column: names.old}) if names.is_plain else Q(**{f"{column}__startswith": names.beginning})


# -- events ------------------------------------------------------------------------------------------------------------


def rename_rows(what: str, names: NameMap) -> int:
    """Rename the rows of events, with the keys that make them unique, and the name in their payloads."""
    columns = ("pk", "event_name", "declared_as", "entity_type", "entity_id", "namespace", "active_key", "payload")

    def change(rows: models.QuerySet[models.Model]) -> int:
        concerned = rows.filter(names_in(names, "event_name") | Q(declared_as=names.old))
        found = [each for each in concerned.values_list(*columns) if _is_renamed(names, each[1], each[2])]
        changes = {each[0]: _changes_of(names, *each[1:]) for each in found}
        keys = {values["active_key"]: pk for pk, values in changes.items() if values.get("active_key")}
        taken = Event.objects.filter(active_key__in=list(keys)).values_list("pk", "active_key").first()
        if taken is not None and taken[0] not in changes:
            raise DefinitionError(
                f"{what}: event #{keys[taken[1]]} and event #{taken[0]} are about the same entity or key, one under "
                "each name. The new code has recorded it before this migration. Delete one of the two rows, and "
                "migrate again."
            )
        alike: dict[tuple[str, ...], list[int]] = {}
        changed = 0
        for pk, values in changes.items():
            if values.keys() == {"event_name", "declared_as"}:
                alike.setdefault(tuple(values.values()), []).append(pk)
            else:
                changed += rows.filter(pk=pk).update(**values)
        for (name, declared), pks in alike.items():
            changed += rows.filter(pk__in=pks).update(event_name=name, declared_as=declared)
        return changed

    return in_bites(what, Event, change)


def _is_renamed(names: NameMap, event_name: str, declared_as: str) -> bool:
    return declared_as == names.old or names.get(event_name) is not None


def _changes_of(
    names: NameMap,
    event_name: str,
    declared_as: str,
    entity_type: str,
    entity_id: str,
    namespace: str,
    key: str | None,
    payload: Any,
) -> dict[str, Any]:
    """Return the new columns of one event."""
    name = names.get(event_name) or event_name
    declared = names.get(declared_as) or declared_as
    changes: dict[str, Any] = {"event_name": name, "declared_as": declared}
    if key is not None:
        for before, after in (
            (active_key(entity_type, entity_id, declared_as), active_key(entity_type, entity_id, declared)),
            (free_key(event_name, namespace, entity_id), free_key(name, namespace, entity_id)),
        ):
            if key == before != after:
                changes["active_key"] = after
    if isinstance(payload, dict) and payload.get("event_name") == event_name != name:
        changes["payload"] = {**payload, "event_name": name}
    return changes


def _rename_shapes(names: NameMap) -> int:
    """Let occurrences under the new name compute the same routing keys."""
    changed = 0
    for pk, used_by, name, shape in RoutingShape.objects.values_list("pk", "used_by", "event_name", "shape"):
        renamed = names.get(name)
        if renamed is not None:
            RoutingShape.ensure(used_by, renamed, shape)
            changed += RoutingShape.objects.filter(pk=pk).delete()[0]
    return changed


def _rename_claims(what: str, names: NameMap) -> int:
    columns = ("pk", "event_name", "namespace", "match", "residual", "key", "unique_key")

    def change(rows: models.QuerySet[models.Model]) -> int:
        changed = 0
        for pk, name, namespace, match, residual, key, _ in rows.values_list(*columns):
            renamed = names.get(name)
            if renamed is None:
                continue
            routing = renamed_key(f"{what}: claim #{pk}", name, renamed, match, namespace, key)
            found = digest("claim", renamed, routing, json.dumps(residual, sort_keys=True))
            other = EventClaim.objects.filter(unique_key=found).values_list("pk", flat=True).first()
            if other not in (None, pk):
                raise DefinitionError(
                    f"{what}: claim #{pk} and claim #{other} are for the same events, one under each name. Release one "
                    "of them (claims.release), and migrate again."
                )
            for used_by in stored_names(renamed):
                RoutingShape.ensure(CLAIMS, used_by, _shape(renamed, match))
            changed += rows.filter(pk=pk).update(event_name=renamed, key=routing, unique_key=found)
        return changed

    return in_bites(what, EventClaim, change)


def _shape(name: str, match: dict[str, Any]) -> str:
    return address(name, match, event_sources(name)).shape


def renamed_key(what: str, old: str, new: str, match: dict[str, Any] | None, namespace: str, key: str) -> str:
    """Return the routing key of a claim or wait under the new name of its event.

    It is made of the stored values as its own code made it, which is verified under the old name first. Raises
    ``DefinitionError`` if it differs: then a field that the match compares has another type now.
    """
    sources = event_sources(new)
    before, after = (address(name, match or {}, sources).keys for name in (old, new))
    if namespace:
        before, after = (tuple(namespaced_key(namespace, each) for each in keys) for keys in (before, after))
    if key not in before:
        raise DefinitionError(
            f"{what} compares match={match!r}, and {new!r} does not declare these fields as {old!r} did. Rename the "
            "event in one release, and change the fields in another."
        )
    return after[before.index(key)]


# -- limits ------------------------------------------------------------------------------------------------------------


def rename_limits_on(what: str, kind: str, names: NameMap, is_function: Callable[[str], bool]) -> int:
    """Rename an event in the limits of the functions that receive it, ``FUNCTION on EVENT[ at MILESTONE]``.

    ``is_function``: returns whether a string is the name of a function. All three parts may contain " on ".
    """

    def rename(name: str) -> str | None:
        parts = name.split(" on ")
        for count in range(1, len(parts)):
            function, event = " on ".join(parts[:count]), " on ".join(parts[count:])
            renamed = _renamed_at_milestone(names, event) if is_function(function) else None
            if renamed is not None:
                return f"{function} on {renamed}"
        return None

    return rename_limiters(what, kind, Q(name__contains=f" on {names.beginning}"), rename)


def _renamed_at_milestone(names: NameMap, event: str) -> str | None:
    renamed = names.get(event)
    if renamed is not None or " at " not in event:
        return renamed
    event, _, milestone = event.rpartition(" at ")
    renamed = names.get(event)
    return None if renamed is None else f"{renamed} at {milestone}"


# -- what schedules and windows start ----------------------------------------------------------------------------------


def rename_schedules(what: str, old: str, new: str) -> int:
    """Rename the target of schedules, the schedules that are called like it, and their events."""
    changed = 0
    found = Schedule.objects.filter(Q(target=old) | Q(name=old, is_declared=True))
    for pk, name, target in found.values_list("pk", "name", "target"):
        if target != old:
            continue
        values = {"target": new}
        if name == old:
            other = Schedule.objects.filter(name=new).exclude(pk=pk).values_list("pk", flat=True).first()
            if other is not None:
                raise DefinitionError(
                    f"{what}: schedule #{pk} {old!r} and schedule #{other} {new!r} both exist. The new code has "
                    "inserted the second one before this migration. Delete it in the admin, and migrate again."
                )
            values["name"] = new
        changed += Schedule.objects.filter(pk=pk).update(**values)
    changed += rename_in_words(what, Schedule._meta.label_lower, f"schedule {old!r}", f"schedule {new!r}")
    if not changed and not Event.objects.filter(event_name=event_name_of(old)).values_list("pk").exists():
        return 0
    names = NameMap(event_name_of(old), event_name_of(new), what)
    changed += rename_rows(what, names) + _rename_payloads(what, old, new)
    before, after = (f"event {event_name_of(each)!r}" for each in (old, new))
    return changed + rename_in_words(what, Event._meta.label_lower, before, after)


def _rename_payloads(what: str, old: str, new: str) -> int:
    """Rename the schedule in the payloads and the keys of its events."""

    def change(rows: models.QuerySet[models.Model]) -> int:
        changed = 0
        mine = rows.filter(event_name=event_name_of(new), entity_type="")
        columns = ("pk", "event_name", "entity_id", "namespace", "active_key", "payload")
        for pk, name, key, namespace, active, payload in mine.values_list(*columns):
            values: dict[str, Any] = {}
            if isinstance(payload, dict) and payload.get("schedule") == old:
                values["payload"] = {**payload, "schedule": new}
            if key.startswith(f"{old}@"):
                values["entity_id"] = f"{new}{key.removeprefix(old)}"[:255]
                if active == free_key(name, namespace, key):
                    values["active_key"] = free_key(name, namespace, values["entity_id"])
            if values:
                changed += rows.filter(pk=pk).update(**values)
        return changed

    return in_bites(what, Event, change)


def rename_collected(what: str, kind: str, old: str, new: str, move: Callable[[str, str], None]) -> int:
    """Rename the collector of events in windows. ``move(before, after)``: gives the row of an open window its new key,
    in the transaction of a bite.

    A window whose key cannot be computed again, because the entity of its event is gone, keeps it: it closes at its
    end, and the next event opens another.
    """
    declared = next((each.window for each in _windows() if each.window_target == (kind, new)), None)

    def change(rows: models.QuerySet[models.Model]) -> int:
        changed = 0
        for row in rows.filter(kind=kind, name=old).select_related("event"):
            assert isinstance(row, CollectedEvent)
            window = row.window
            if row.target is None and declared is not None:
                window = _renamed_window(declared.key, kind, old, new, row)
            if window != row.window:
                move(row.window, window)
            unique = digest("collected", kind, new, row.event_id)
            changed += rows.filter(pk=row.pk).update(name=new, window=window, unique_key=unique)
        return changed

    return in_bites(what, CollectedEvent, change)


def _windows() -> list[Any]:
    return [each for each in subscriptions.everything() if each.window is not None]


def _renamed_window(template: Any, kind: str, old: str, new: str, row: CollectedEvent) -> str:
    try:
        value = value_of(template, row.event)
    except Exception:
        return row.window
    namespace = row.event.namespace
    if window_key(kind, old, namespace, value) != row.window:
        return row.window
    return window_key(kind, new, namespace, value)
