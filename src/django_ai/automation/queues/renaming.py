"""Renaming: the tables of the engine in which the name of a workflow or an event is stored, and what was renamed.

Names are stored as they are, within labels (``workflow:NAME`` of a pause), and within digests. A digest is computed
again from what its row still has. Each rename leaves a row of ``Maintenance`` that no worker performs: a rename
that was interrupted continues, and a key that was made with a former name is still found (``former_names``).
"""

from __future__ import annotations

import json
from collections.abc import Callable

from django.db import connections, models, transaction
from django.db.models import F
from django.utils import timezone

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..exceptions import DefinitionError
from ..values.digests import digest
from .bites import in_bites
from .lease import revoke
from .models import Action, BulkAction, BulkStatus, HeldRow, Limiter, Maintenance, MutedProblem, Pause, Slot
from .pauses import target_of_name
from .problems import problem_key

RENAMED = "renamed"
"""How the names of the rows of ``Maintenance`` begin that record a rename."""
TYPES = ("text", "number", "bool", "date", "datetime", "json")
"""The types that the key of a limit begins with, and that its value for display lacks."""


def _record_name(kind: str, old: str, new: str) -> str:
    return f"{RENAMED} {kind} {digest(old, new)}"


def is_recorded(kind: str, old: str, new: str) -> bool:
    """Return whether this rename has begun or was done before."""
    return Maintenance.objects.filter(name=_record_name(kind, old, new)).values_list("pk").exists()


def record(kind: str, old: str, new: str) -> None:
    """Record that a rename begins."""
    position = {"kind": kind, "old": old, "new": new}
    insert_ignoring(Maintenance, [Maintenance(name=_record_name(kind, old, new), position=position)])


def complete(kind: str, old: str, new: str, changed: int) -> None:
    """Record that a rename is complete."""
    rows = Maintenance.objects.filter(name=_record_name(kind, old, new))
    revoke(rows, completed_at=timezone.now(), done=F("done") + changed)


def forget(kind: str, old: str, new: str) -> None:
    """Forget a rename, because it was reversed."""
    Maintenance.objects.filter(name=_record_name(kind, old, new)).delete()


def former_names(kind: str, name: str) -> list[str]:
    """Return the names that what is called ``name`` has had before, the latest first: one query of few rows."""
    rows = Maintenance.objects.filter(name__startswith=f"{RENAMED} {kind} ").order_by("-pk")
    renames = [position for position in rows.values_list("position", flat=True) if position]
    found = [name]
    while True:
        before = [each["old"] for each in renames if each["new"] == found[-1] and each["old"] not in found]
        if not before:
            return found[1:]
        found.append(str(before[0]))


def former_names_query(kind: str, name: str) -> tuple[str, list[str]]:
    """Return SQL for PostgreSQL that has a row if what is called ``name`` had another name before, and its
    parameters."""
    table = Maintenance._meta.db_table
    return f"SELECT FROM \"{table}\" WHERE name LIKE %s AND position->>'new' = %s", [f"{RENAMED} {kind} %", name]


def rename_column(
    what: str, table: type[models.Model], column: str, old: str, new: str, only: models.Q | None = None
) -> int:
    """Rename in a column that holds the whole name. ``only``: which rows are concerned."""

    def change(rows: models.QuerySet[models.Model]) -> int:
        mine = rows.filter(models.Q() if only is None else only, **{column: old})
        if connections[mine.db].vendor == "mysql":  # its comparison ignores case
            keys = [pk for pk, found in mine.values_list("pk", column) if found == old]
            mine = rows.filter(pk__in=keys) if keys else rows.none()
        return mine.update(**{column: new})

    return in_bites(what, table, change)


def rename_in_words(what: str, label: str, old_start: str, new_start: str) -> int:
    """Rename in what the history calls the rows of the model ``label``: the beginning ``old_start`` of it."""

    def change(rows: models.QuerySet[models.Model]) -> int:
        found = rows.filter(model=label, what__startswith=old_start).values_list("pk", "what")
        changed = 0
        for pk, words in found:
            if words.startswith(old_start):
                renamed = f"{new_start}{words.removeprefix(old_start)}"[:200]
                changed += rows.filter(pk=pk).update(what=renamed)
        return changed

    return in_bites(what, Action, change)


def check_no_bulk_action(what: str, old: str) -> None:
    """Raise ``DefinitionError`` if a bulk action that has not ended selects rows by the name ``old``."""
    running = BulkAction.objects.filter(status__in=[BulkStatus.PENDING, BulkStatus.RUNNING, BulkStatus.PARKED])
    for pk, selected in running.values_list("pk", "filter"):
        if json.dumps(old) in json.dumps(selected):
            raise DefinitionError(
                f"{what}: bulk action #{pk} selects rows by the name {old!r} and has not ended. Let it end, or stop it "
                "in the admin, and migrate again."
            )


def rename_muted(what: str, kind: str, rename: Callable[[str], str | None]) -> int:
    """Rename in problems that are muted. ``rename``: returns the new name, or None for a name that stays."""

    def change(rows: models.QuerySet[models.Model]) -> int:
        changed = 0
        columns = ("pk", "name", "state", "error", "key")
        for pk, name, state, error, key in rows.filter(kind=kind).values_list(*columns):
            new = rename(name)
            if new is None:
                continue
            renamed = problem_key(kind, new, state, error) if problem_key(kind, name, state, error) == key else key
            if MutedProblem.objects.filter(key=renamed).exclude(pk=pk).values_list("pk").exists():
                changed += rows.filter(pk=pk).delete()[0]  # muted under both names
            else:
                changed += rows.filter(pk=pk).update(name=new, key=renamed)
        return changed

    return in_bites(what, MutedProblem, change)


def rename_muted_name(what: str, kind: str, old: str, new: str) -> int:
    """Rename in problems that are muted, and in what the history calls them, where the whole name is renamed."""
    label = MutedProblem._meta.label_lower
    changed = rename_muted(what, kind, {old: new}.get)
    return changed + rename_in_words(what, label, f"{kind} {old} ", f"{kind} {new} ")


def rename_pauses(what: str, scope: str, old: str, new: str) -> int:
    """Rename the target of a pause of all rows of one name, what it holds, and its history."""
    before, after = target_of_name(scope, old), target_of_name(scope, new)
    label, changed = Pause._meta.label_lower, 0
    with transaction.atomic(using=alias_of(Pause)):
        if Pause.objects.filter(target=after).values_list("pk").exists():
            changed += Pause.objects.filter(target=before).delete()[0]  # both are paused: one pause is enough
        else:
            changed += Pause.objects.filter(target=before).update(target=after)
    changed += rename_column(what, HeldRow, "target", before, after)
    changed += rename_column(what, Action, "key", before, after, models.Q(model=label))
    return changed + rename_action_words(what, label, before, after, old, new)


def rename_action_words(what: str, label: str, before: str, after: str, old: str, new: str) -> int:
    """Rename in the words of the actions whose key is ``after``, which was ``before``."""

    def change(rows: models.QuerySet[models.Model]) -> int:
        changed = 0
        for pk, words in rows.filter(model=label, key=after).values_list("pk", "what"):
            renamed = words.replace(before, after).replace(repr(old), repr(new))[:200]
            if renamed != words:
                changed += rows.filter(pk=pk).update(what=renamed)
        return changed

    return in_bites(what, Action, change)


def rename_limiters(what: str, kind: str, concerned: models.Q, rename: Callable[[str], str | None]) -> int:
    """Rename limits. Where the new name has such a limit already, that gets the slots.

    ``concerned``: the rows whose names may be meant. ``rename``: returns the new name, or None for a name that stays.
    """

    def change(rows: models.QuerySet[models.Model]) -> int:
        found = rows.filter(concerned, row_kind=kind)
        changed = 0
        for pk, name, limit, value, key in found.values_list("pk", "name", "limit", "value", "key"):
            new = rename(name)
            if new is None:
                continue
            renamed = _limiter_key(kind, name, new, limit, value, key)
            other = Limiter.objects.filter(key=renamed).exclude(pk=pk).values_list("pk", flat=True).first()
            if other is None:
                changed += rows.filter(pk=pk).update(name=new, key=renamed)
            else:
                Slot.objects.filter(limiter=pk).update(limiter=other)
                changed += rows.filter(pk=pk).delete()[0]
        return changed

    return in_bites(what, Limiter, change)


def _limiter_key(kind: str, old: str, new: str, limit: str, value: str, key: str) -> str:
    """Return the key of a limiter under its new name. The value that it was made of is found by trying its types.

    A value that is too long to be stored whole keeps its key: rows that ask for it later use another limiter.
    """
    for text in (value, *(f"{each}:{value}" for each in TYPES)):
        if digest("limiter", kind, old, limit, text) == key:
            return digest("limiter", kind, new, limit, text)
    return key
