"""What workflows store of an event that is renamed: what runs wait for, what they have received, and their history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import models

from ..db.locks import locked
from ..events.matching.match import namespaced_key
from ..events.name_map import NameMap
from ..events.renaming import renamed_key
from ..exceptions import DecryptionError
from ..queues.bites import in_bites
from ..state.encryption import check_readable
from .models import Signal, StepExecution, Wait, WorkflowRun
from .registration import own_declaration
from .wait_keys import EVENT_CHANNEL, channel_key, own_key

SMALL_BITE = 500
"""Keys in one range of a table whose rows have large columns."""


def rename_in_workflows(what: str, names: NameMap) -> int:
    """Rename an event in the tables of workflows. Raises ``DefinitionError`` and ``DecryptionError``."""
    changed = _rename_waits(what, names) + _rename_signals(what, names)
    changed += in_bites(what, WorkflowRun, lambda rows: _rename_in_runs(what, names, rows), SMALL_BITE)
    return changed + in_bites(what, StepExecution, lambda rows: _rename_in_history(what, names, rows), SMALL_BITE)


def renamed_channel(names: NameMap, channel: str) -> str | None:
    """Return the channel of an event under its new name, or None if it is that of something else."""
    if not channel.startswith(EVENT_CHANNEL):
        return None
    name = names.get(channel.removeprefix(EVENT_CHANNEL))
    return None if name is None else f"{EVENT_CHANNEL}{name}"


def _rename_waits(what: str, names: NameMap) -> int:
    def change(rows: models.QuerySet[models.Model]) -> int:
        changed = 0
        waits = rows.filter(channel__startswith=f"{EVENT_CHANNEL}{names.beginning}").select_related("run")
        for wait in waits.only("channel", "key", "match", "namespace", "run__entity_type", "run__entity_id"):
            assert isinstance(wait, Wait)
            kept = {"channel": wait.channel, "key": wait.key, "match": wait.match, "namespace": wait.namespace}
            renamed = _renamed_wait(f"{what}: wait #{wait.pk} of run #{wait.run_id}", names, kept, wait.run)
            if renamed is not None:
                values = {"channel": renamed["channel"], "key": renamed["key"]}
                changed += rows.filter(pk=wait.pk).update(**values)
        return changed

    return in_bites(what, Wait, change, SMALL_BITE)


def _renamed_wait(what: str, names: NameMap, wait: Mapping[str, Any], run: WorkflowRun) -> dict[str, Any] | None:
    """Return the columns of a wait under the new name of its event, or None if it waits for something else."""
    channel = renamed_channel(names, wait["channel"])
    if channel is None:
        return None
    old, new = (each.removeprefix(EVENT_CHANNEL) for each in (wait["channel"], channel))
    pairs = [(channel_key(wait["channel"]), channel_key(channel))]
    own = own_declaration(run, new)
    if own is not None:
        pairs.append((own_key(old, own.label, run.entity_id), own_key(new, own.label, run.entity_id)))
    namespace = wait["namespace"]
    for before, after in pairs:
        if namespace:
            before, after = namespaced_key(namespace, before), namespaced_key(namespace, after)
        if wait["key"] == before:
            return {**wait, "channel": channel, "key": after}
    return {**wait, "channel": channel, "key": renamed_key(what, old, new, wait["match"], namespace, wait["key"])}


def _rename_signals(what: str, names: NameMap) -> int:
    def change(rows: models.QuerySet[models.Model]) -> int:
        changed = 0
        for pk, name in rows.filter(name__startswith=f"{EVENT_CHANNEL}{names.beginning}").values_list("pk", "name"):
            channel = renamed_channel(names, name)
            if channel is not None:
                changed += rows.filter(pk=pk).update(name=channel)
        return changed

    return in_bites(what, Signal, change)


def _rename_in_runs(what: str, names: NameMap, rows: models.QuerySet[models.Model]) -> int:
    changed = 0
    concerned = rows.filter(models.Q(branches__isnull=False) | models.Q(ending__isnull=False))
    for run in locked(concerned).only("branches", "ending", "entity_type", "entity_id"):
        assert isinstance(run, WorkflowRun)
        where = f"{what}: run #{run.pk}"
        _readable({"branches": run.branches, "ending": run.ending}, where)
        values = {"branches": _renamed_entries(names, run.branches), "ending": _renamed_ending(where, names, run)}
        new = {name: value for name, value in values.items() if value != getattr(run, name)}
        if new:
            changed += rows.filter(pk=run.pk).update(**new)
    return changed


def _readable(columns: Mapping[str, Any], where: str) -> None:
    """Raise ``DecryptionError`` with the name of the first column that no key decrypts."""
    for name, value in columns.items():
        try:
            check_readable(value, f"{where}, {name}")
        except DecryptionError as error:
            raise DecryptionError(f"{error} Then migrate again.") from error


def _renamed_entries(names: NameMap, entries: Any) -> Any:
    """Return what branches have received, with the new name of the event."""
    if not isinstance(entries, list):
        return entries
    found = []
    for entry in entries:
        channel = renamed_channel(names, entry.get("channel", ""))
        if channel is not None:
            entry = {**entry, "channel": channel}
            payload = entry.get("payload")
            if isinstance(payload, dict) and isinstance(name := payload.get("event_name"), str):
                entry["payload"] = {**payload, "event_name": names.get(name) or name}
        found.append(entry)
    return found


def _renamed_ending(where: str, names: NameMap, run: WorkflowRun) -> Any:
    ending = run.ending
    if not isinstance(ending, dict):
        return ending
    waits: Iterable[dict[str, Any]] = ending.get("waits", ())
    changed = {"branches": _renamed_entries(names, ending.get("branches"))}
    if waits:
        changed["waits"] = [_renamed_wait(where, names, each, run) or each for each in waits]
    return {**ending, **{name: value for name, value in changed.items() if name in ending}}


def _rename_in_history(what: str, names: NameMap, rows: models.QuerySet[models.Model]) -> int:
    changed = 0
    for pk, run, before in rows.filter(before__isnull=False).values_list("pk", "run", "before"):
        _readable({"before": before}, f"{what}: step execution #{pk} of run #{run}")
        if not isinstance(before, dict) or "branches" not in before:
            continue
        entries = _renamed_entries(names, before["branches"])
        if entries != before["branches"]:
            changed += rows.filter(pk=pk).update(before={**before, "branches": entries})
    return changed
