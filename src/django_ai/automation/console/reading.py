"""What all stories share: links to pages, the state of a row in words, and the deeds of people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.contrib.admin.utils import quote
from django.db import models
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext

from ..events.why.seen import SeenEvent
from ..queues.admin_links import model_and_key
from ..queues.admin_stories import Reader
from ..queues.history import actions_of, told
from ..queues.wakeable import Wakeable
from ..values.text import last_line
from .effects import effect_of
from .story import Deed, Fact, Moment, Tone, duration_text, moment_text

MAX_ENTRIES = 50
"""How many visits, executions, children, signals and deeds a page shows: a row may have tens of thousands."""

TONES = {
    "completed": Tone.GOOD,
    "processed": Tone.GOOD,
    "succeeded": Tone.GOOD,
    "failed": Tone.BAD,
    "parked": Tone.BAD,
    "cancelled": Tone.STOPPED,
    "withdrawn": Tone.STOPPED,
    "expired": Tone.STOPPED,
    "skipped": Tone.STOPPED,
    "waiting": Tone.WAITING,
    "suspended": Tone.WAITING,
    "pending": Tone.WAITING,
    "active": Tone.WAITING,
    "running": Tone.WORKING,
}


def page_of(row: models.Model | None, reader: Reader) -> str:
    """Return the address of the page of a row, or an empty string if the admin site of the reader has none."""
    return "" if row is None else page(f"{row._meta.app_label}_{row._meta.model_name}", row.pk, reader)


def page(name: str, key: object, reader: Reader) -> str:
    try:
        return reverse(f"{reader.site}:{name}_change", args=[quote(str(key))])
    except NoReverseMatch:
        return ""


def row_page(row: models.Model, name: str, reader: Reader) -> str:
    """Return the address of another page of a row."""
    return reverse(f"{reader.site}:{row._meta.app_label}_{row._meta.model_name}_{name}", args=[quote(str(row.pk))])


def page_of_entity(entity_type: str, entity_id: str, reader: Reader) -> str:
    app, _, model = entity_type.partition(".")
    return page(f"{app}_{model}", entity_id, reader) if model and entity_id else ""


def page_of_cause(cause: str, reader: Reader) -> str:
    """Return the address of the page of a cause, such as "event:3" or "user:5"; empty: it has none."""
    model, key = model_and_key(cause)
    return "" if model is None else page(f"{model._meta.app_label}_{model._meta.model_name}", key, reader)


def tone_of(row: Wakeable, status: str) -> Tone:
    """Return the tone of the state: a leased row is being worked on, whatever its status is."""
    return Tone.WORKING if row.lease and status not in ("parked",) else TONES.get(status, Tone.NEUTRAL)


def deeds_of_people(row: models.Model, reader: Reader) -> list[Moment]:
    """Return what people have done to the row, the newest first."""
    return [
        Moment(
            f"{each.actor_name}: {told(each)}",
            each.done_at,
            Tone.NEUTRAL,
            url=page_of_cause(each.actor, reader),
        )
        for each in actions_of(type(row), str(row.pk)).order_by("-pk")[:MAX_ENTRIES]
    ]


def now_of(row: Wakeable, now: datetime, *, is_over: bool = False) -> str:
    """Return the one sentence about a row that has not succeeded: what it waits for, or why it has ended."""
    if is_over or getattr(row, "is_finished", False):
        return last_line(getattr(row, "error", "")) or gettext("It has ended.")
    reason = row.waiting_text(now)
    return gettext("It waits for %s.") % reason if reason else gettext("It waits for nothing. Please report this bug.")


def facts_of_run(run: Any, reader: Reader, now: datetime) -> Iterator[Fact]:
    """Yield the entity, the cause and the age of a run of a workflow or an agent."""
    if run.entity_type:
        page = page_of_entity(run.entity_type, run.entity_id, reader)
        yield Fact(gettext("Entity"), f"{run.entity_type} {run.entity_id}", page)
    parent = getattr(run, "parent", None)
    if run.event is not None:
        yield Fact(gettext("Started by"), str(run.event), page_of(run.event, reader))
    elif parent is not None:
        yield Fact(gettext("Started by"), str(parent), page_of(parent, reader))
    elif run.caused_by:
        yield Fact(gettext("Caused by"), run.caused_by, page_of_cause(run.caused_by, reader))
    yield Fact(gettext("Created"), moment_text(run.created_at))
    yield Fact(
        gettext("Took") if run.finished_at else gettext("Age"), duration_text((run.finished_at or now) - run.created_at)
    )


def seen_text(seen: SeenEvent, reader: Reader) -> str:
    """Return an event that did not match, with the fields that differ; without their values for those who may not see
    the data of the row."""
    parts = [
        each.name if each.is_data and not reader.may_see_data else f"{each.name} {each.expected} ≠ {each.found}"
        for each in seen.failing
    ]
    values = {"event": f"{seen.event.event_name} #{seen.event.pk}", "fields": ", ".join(parts), "wait": seen.waits}
    return gettext("Seen, and did not match: %(event)s (%(fields)s)") % values


def data_of(value: Any, reader: Reader) -> str | None:
    """Return the Context or payload of a row as JSON; None if the user may not see it."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) if reader.may_see_data else None


def deeds_of(row: models.Model, reader: Reader) -> list[Deed]:
    """Return the buttons of the page of ``row``, each with what it will do."""
    return [Deed(name, str(label), effect_of(row, name)) for name, label in reader.deeds]


def links_of(reader: Reader) -> list[Fact]:
    """Return the links to the forms that the user may open for the row."""
    return [Fact("", str(text), url) for url, text in reader.links]


MAX_SHOWN_VALUE = 80


def changes_between(before: Any, after: Any) -> list[str]:
    """Return which fields of the Context differ between what the history keeps of two visits, with both values.

    Empty if one of them was not kept, or cannot be decrypted.
    """
    old, new = (each.get("data") if isinstance(each, dict) else None for each in (before, after))
    if not isinstance(old, dict) or not isinstance(new, dict):
        return []
    absent = object()
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name, absent) != new.get(name, absent)]
    return [f"{name}: {_shown(old, name)} → {_shown(new, name)}" for name in names]


def _shown(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "-"
    text = json.dumps(values[name], ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN_VALUE else f"{text[: MAX_SHOWN_VALUE - 1]}…"
