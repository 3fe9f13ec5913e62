"""Problems: rows that are parked or have failed, grouped by kind, name and the last line of their error.

Hundreds of runs that failed for one reason are one problem. The newest rows of each kind are read, up to a limit, with
the ends of their errors only; so the number of queries depends on the kinds, not on the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any

from django.db import models
from django.db.models.functions import Coalesce, Right

from ..db.writer import alias_of
from ..queues.operations.resume import ResumableKind, resumable_kinds
from ..values.text import last_line

MAX_ROWS = 2_000
"""How many of the newest rows of each kind and state are read."""
MAX_END_OF_ERROR = 500


@dataclass(slots=True)
class Problem:
    """Rows of one kind and name with the same last line of their error.

    ``state``: ``"failed"`` or ``"parked"``. ``newest_pk``: the row whose page shows the whole error. ``is_capped``:
    there are older rows of this kind that were not read.
    """

    kind: str
    model: type[Any]
    name: str
    state: str
    error: str
    count: int
    first_at: datetime | None
    last_at: datetime | None
    newest_pk: int
    is_capped: bool

    @property
    def command(self) -> str:
        """The command that resumes these rows."""
        failed = " --failed" if self.state == "failed" else ""
        found = f"--name {_quoted(self.name)} --reason {_quoted(self.error)}"
        return f"manage.py automation_resume {self.kind}{failed} {found}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def problems() -> list[Problem]:
    """Return the problems, those with the most rows first."""
    found = [problem for kind in resumable_kinds().values() for problem in _problems_of(kind)]
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
        groups: dict[tuple[str, str], Problem] = {}
        read = list(newest.values_list("pk", kind.name_field, "end", "seen")[: MAX_ROWS + 1])
        for pk, name, end, seen in read[:MAX_ROWS]:
            error = last_line(end or "")
            group = groups.get((name, error))
            if group is None:
                is_capped = len(read) > MAX_ROWS
                groups[name, error] = Problem(kind.name, kind.model, name, state, error, 1, seen, seen, pk, is_capped)
                continue
            group.count += 1
            group.first_at = min((each for each in (group.first_at, seen) if each is not None), default=None)
            group.last_at = max((each for each in (group.last_at, seen) if each is not None), default=None)
        yield from groups.values()


def _has_field(model: type[models.Model], name: str) -> bool:
    return any(field.name == name for field in model._meta.get_fields())
