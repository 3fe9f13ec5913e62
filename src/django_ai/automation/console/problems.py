"""Problems: rows that are parked or have failed, in groups with the same problem.

Hundreds of runs that failed for one reason are one problem (``queues.problems`` decides which belong together). The
newest rows of each kind are read, up to a limit, with the ends of their errors only; so the number of queries depends
on the kinds, not on the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

from django.db import models
from django.db.models.functions import Coalesce, Right
from django.utils import timezone

from ..db.writer import alias_of
from ..queues.models import MutedProblem
from ..queues.operations.resume import ResumableKind, resumable_kinds
from ..queues.problems import MAX_END_OF_ERROR, kind_of, muted_among, problem_key, problem_line

MAX_ROWS = 2_000
"""How many of the newest rows of each kind and state are read."""


@dataclass(slots=True)
class Problem:
    """Rows of one kind, name and state, with errors that differ in ids only.

    ``state``: ``"failed"`` or ``"parked"``. ``error``: the last line of the newest one. ``newest_pk``: the row whose
    page shows the whole error. ``is_capped``: there are older rows of this kind that were not read. ``is_exact``: all
    have the same last line. ``muted``: the mute, if somebody has muted the problem.
    """

    kind: str
    model: type[Any]
    name_field: str
    key: str
    name: str
    state: str
    error: str
    count: int
    first_at: datetime | None
    last_at: datetime | None
    newest_pk: int
    is_capped: bool
    is_exact: bool = True
    muted: MutedProblem | None = None

    @property
    def command(self) -> str:
        """The command that resumes these rows; empty if no command selects them and no others."""
        if not self.is_exact:
            return ""
        failed = " --failed" if self.state == "failed" else ""
        found = f"--name {_quoted(self.name)} --reason {_quoted(self.error)}"
        return f"manage.py automation_resume {self.kind}{failed} {found}"

    @property
    def filter(self) -> dict[str, Any]:
        """The rows as the filter of a bulk action."""
        where = {self.name_field: self.name}
        if _has_field(self.model, "status"):
            where["status"] = self.state
        problem = {"kind": kind_of(self.model), "name": self.name, "state": self.state}
        return {"where": where, "problem": {**problem, "key": self.key, "error": self.error}}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def problems() -> list[Problem]:
    """Return the problems that are not muted, those with the most rows first."""
    return [problem for problem in all_problems(timezone.now()) if problem.muted is None]


def all_problems(now: datetime) -> list[Problem]:
    """Return the problems, those with the most rows first, also those that are muted at ``now``."""
    found = [problem for kind in resumable_kinds().values() for problem in _problems_of(kind)]
    muted = muted_among([problem.key for problem in found], now)
    for problem in found:
        problem.muted = muted.get(problem.key)
    return sorted(found, key=attrgetter("count"), reverse=True)


def _problems_of(kind: ResumableKind) -> Iterator[Problem]:
    rows = kind.model._default_manager.using(alias_of(kind.model))
    times = [name for name in ("finished_at", "parked_at") if _has_field(kind.model, name)]
    # Each parked row has a ``parked_at``; the condition lets MariaDB use its index.
    parked = kind.parked & models.Q(parked_at__isnull=False)
    for state, condition in (("failed", kind.failed), ("parked", parked)):
        if condition is None:
            continue
        at: Any = Coalesce(*times) if len(times) > 1 else models.F(times[0])
        newest = rows.filter(condition).annotate(end=Right("error", MAX_END_OF_ERROR), seen=at).order_by("-pk")
        groups: dict[str, Problem] = {}
        keys: dict[tuple[str, str], tuple[str, str]] = {}  # many rows have the same error
        read = list(newest.values_list("pk", kind.name_field, "end", "seen")[: MAX_ROWS + 1])
        for pk, name, end, seen in read[:MAX_ROWS]:
            if (name, end) not in keys:
                keys[name, end] = problem_key(kind_of(kind.model), name, state, end or ""), problem_line(end or "")
            key, error = keys[name, end]
            group = groups.get(key)
            if group is None:
                is_capped = len(read) > MAX_ROWS
                groups[key] = Problem(
                    kind.name, kind.model, kind.name_field, key, name, state, error, 1, seen, seen, pk, is_capped
                )
                continue
            group.count += 1
            group.is_exact = group.is_exact and error == group.error
            group.first_at = min((each for each in (group.first_at, seen) if each is not None), default=None)
            group.last_at = max((each for each in (group.last_at, seen) if each is not None), default=None)
        yield from groups.values()


def _has_field(model: type[models.Model], name: str) -> bool:
    return any(field.name == name for field in model._meta.get_fields())
