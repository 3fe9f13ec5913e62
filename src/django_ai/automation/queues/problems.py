"""Problems: what rows that failed, or are parked, for the same reason have in common; and which of them are muted.

``problem_key`` is the one function that decides which rows belong together: for alerts, for the page of problems, for
mutes, and for actions on all of them. Two rows have the same problem if they are of the same kind, name and state, and
the last lines of their errors are the same but for ids. Numbers that say what has happened, such as the status of an
HTTP response, are no ids: a mute of one error never hides another one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.db import models, transaction
from django.utils import timezone

from ..db.inserts import insert_ignoring
from ..db.writer import alias_of
from ..exceptions import DefinitionError, StateError
from ..values.clock import aware
from ..values.digests import digest
from ..values.json_text import storable
from ..values.text import last_line
from .acting import current_actor
from .history import note
from .models import MutedProblem

MAX_END_OF_ERROR = 500
"""How many characters of the end of an error decide. All readers of errors take as many."""

FAILED, PARKED = "failed", "parked"

KINDS = {
    "workflowrun": "workflow",
    "callbackexecution": "callback",
    "agentrun": "agent",
    "handlerexecution": "handler",
}
"""The kinds of rows whose names differ from those of their models; as in the column ``caused_by``."""

NAME_FIELDS = {
    "callbackexecution": "callback",
    "handlerexecution": "handler",
    "event": "event_name",
    "capturedwrite": "model",
    "bulkaction": "verb",
}
"""The fields with the names of rows, by the names of their models, where that is not "name"."""

_CLASS = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
_WITH_DIGITS = re.compile(r"[\w-]*\d[\w-]*")
_MEANING = re.compile(
    r"(?:\b(?:HTTP(?:/\d(?:\.\d)?)?|status|code|errno|error|exit)\b\W{0,3}(?:(?:code|status|error)\W{1,3})?-?\d{1,5}\b)"
    r"|(?:\b[1-5]\d\d(?= [A-Z][a-z]+))",
    re.IGNORECASE,
)
"""Numbers that say what has happened: after "HTTP", "status", "code", "errno", "error" or "exit", and before a word, as
in "503 Service Unavailable"."""


def kind_of(model: type[Any]) -> str:
    """Return the kind of rows of ``model`` in the names of problems, alerts and metrics, such as "workflow"."""
    name = str(model._meta.model_name)
    return KINDS.get(name, name)


def problem_line(error: str) -> str:
    """Return the line of ``error`` that names its cause, of which the end decides, with every database alike."""
    return last_line(storable(error)[-MAX_END_OF_ERROR:])


def pattern_of(line: str) -> str:
    """Return ``line`` with ``#`` in place of the ids in it. The class of the exception and numbers that have a meaning
    stay."""
    found = _CLASS.match(line)
    start = found.end() if found else 0
    kept, pieces = start, [line[:start]]
    for meaning in _MEANING.finditer(line, start):
        pieces += [_WITH_DIGITS.sub("#", line[kept : meaning.start()]), meaning.group()]
        kept = meaning.end()
    return "".join([*pieces, _WITH_DIGITS.sub("#", line[kept:])])


def problem_key(kind: str, name: str, state: str, error: str) -> str:
    """Return the key that rows with the same problem share.

    Args:
        kind: The kind of row, as ``kind_of`` returns it.
        name: The name of the workflow, agent, handler, callback, event or signal.
        state: ``"failed"`` or ``"parked"``.
        error: The error, or its end of at least ``MAX_END_OF_ERROR`` characters.
    """
    return digest("problem", kind, name, state, pattern_of(problem_line(error)))


def state_of(row: Any) -> str:
    """Return ``"failed"`` or ``"parked"``, or an empty string for a row in another state."""
    status = getattr(row, "status", None)
    if status is not None:
        return str(status) if status in (FAILED, PARKED) else ""
    return PARKED if row.error and (row.parked_at is not None or row.wake_at is None) else ""


def name_of(row: Any) -> str:
    """Return the name of the workflow, agent, handler, callback, event, signal or table that a row belongs to."""
    return str(getattr(row, NAME_FIELDS.get(str(type(row)._meta.model_name), "name"), ""))


def read_again(row: Any) -> Any:
    """Return ``row`` as it is now. Raises ``StateError`` if it was removed, or has no problem."""
    model = type(row)
    found = model._base_manager.using(alias_of(model)).filter(pk=row.pk).first()
    if found is None:
        raise StateError(f"{row} was removed.")
    key_of_row(found)
    return found


def key_of_row(row: Any) -> str:
    """Return the key of the problem that ``row`` has. Raises ``StateError`` unless it failed or is parked."""
    state = state_of(row)
    if not state:
        raise StateError(
            f"{row} is {getattr(row, 'status', 'not parked')}; only a row that failed or is parked has a problem."
        )
    return problem_key(kind_of(type(row)), name_of(row), state, row.error)


# -- mutes -------------------------------------------------------------------------------------------------------------


def mute(row: Any, *, until: datetime | None = None, reason: str = "", now: datetime | None = None) -> MutedProblem:
    """Mute the problem that ``row`` has, in the caller's transaction. See ``engine.mute``."""
    row, moment = read_again(row), now or timezone.now()
    key = key_of_row(row)
    if until is not None and aware(until, "until") <= moment:
        raise DefinitionError(f"engine.mute(until={until!r}): give a time in the future, or None: until it is unmuted.")
    actor = current_actor()
    values: dict[str, Any] = {
        "reason": storable(reason or (actor.reason if actor else "")),
        "actor": storable(actor.label) if actor else "",
        "actor_name": storable(actor.name)[:200] if actor else "",
        "muted_at": moment,
        "until": until,
    }
    muted = MutedProblem(
        key=key,
        kind=kind_of(type(row)),
        name=name_of(row)[:800],
        state=state_of(row),
        error=problem_line(row.error),
        **values,
    )
    alias = alias_of(MutedProblem)
    with transaction.atomic(using=alias):
        insert_ignoring(MutedProblem, [muted])
        known = MutedProblem.objects.filter(key=key)
        known.update(**values)
        found = known.get()
        note(found, "Muted", reason)
    return found


def unmute(problem: Any) -> bool:
    """End a mute, in the caller's transaction; return whether there was one. See ``engine.unmute``."""
    if isinstance(problem, MutedProblem):
        problem = problem.key
    key = problem if isinstance(problem, str) else key_of_row(read_again(problem))
    with transaction.atomic(using=alias_of(MutedProblem)):
        found = MutedProblem.objects.filter(key=key).first()
        if found is None:
            return False
        note(found, "Unmuted")
        return bool(MutedProblem.objects.filter(key=key).delete()[0])


def muted_among(keys: Collection[str], now: datetime) -> dict[str, MutedProblem]:
    """Return those of the problems ``keys`` that are muted at this moment, by key. One query, by an index."""
    if not keys:
        return {}
    lasting = models.Q(until=None) | models.Q(until__gt=now)
    return {each.key: each for each in MutedProblem.objects.filter(lasting, key__in=keys)}


def is_muted(key: str, now: datetime) -> bool:
    """Return whether a problem is muted at this moment."""
    return bool(muted_among([key], now))
