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
from typing import Any, cast

from django.db import connections, models
from django.db.models.functions import Right
from django.utils import timezone

from ..db.writer import alias_of
from ..queues.models import MutedProblem
from ..queues.operations.resume import ResumableKind, resumable_kinds
from ..queues.problems import MAX_END_OF_ERROR, kind_of, muted_among, problem_key, problem_line
from ..queues.wakeable import newest_parked

MAX_ROWS = 1_000
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
    ended = "finished_at" if _has_field(kind.model, "finished_at") else "parked_at"
    failed = None if kind.failed is None else rows.filter(kind.failed).order_by(f"-{ended}")
    for state, newest, at in (("failed", failed, ended), ("parked", newest_parked(rows, kind.parked), "parked_at")):
        if newest is None:
            continue
        groups: dict[str, Problem] = {}
        found = list(_same_errors(kind, newest, at))
        is_capped = sum(each.count for each in found) >= MAX_ROWS
        for each in found:
            line = problem_line(each.end)
            key = problem_key(kind_of(kind.model), each.name, state, each.end)
            group = groups.get(key)
            if group is None:
                groups[key] = Problem(
                    kind.name,
                    kind.model,
                    kind.name_field,
                    key,
                    each.name,
                    state,
                    line,
                    each.count,
                    each.first_at,
                    each.last_at,
                    each.newest_pk,
                    is_capped,
                )
                continue
            group.count += each.count
            group.is_exact = group.is_exact and line == group.error
            group.first_at = min((at for at in (group.first_at, each.first_at) if at is not None), default=None)
            group.last_at = max((at for at in (group.last_at, each.last_at) if at is not None), default=None)
            if each.newest_pk > group.newest_pk:
                group.newest_pk, group.error = each.newest_pk, line
        yield from groups.values()


@dataclass(frozen=True, slots=True)
class _SameErrors:
    """Rows of one name whose errors have the same end."""

    name: str
    end: str
    count: int
    first_at: datetime | None
    last_at: datetime | None
    newest_pk: int


def _same_errors(kind: ResumableKind, newest: models.QuerySet[Any], at: str) -> Iterator[_SameErrors]:
    """Yield what the newest rows have in common, grouped by the database. They are read in the order of an index."""
    columns = {
        "newest_pk": models.F("pk"),
        "name_of_row": models.F(kind.name_field),
        "tail": Right("error", MAX_END_OF_ERROR),
        "seen": models.F(at),
    }
    alias, newest = newest.db, newest.annotate(**columns).values_list(*columns)[:MAX_ROWS]
    sql, params = newest.query.get_compiler(using=alias).as_sql()
    connection = connections[alias]
    # A comparison of MariaDB may ignore case and accents.
    groups = ", ".join(f"BINARY {name}" if connection.vendor == "mysql" else name for name in ("name_of_row", "tail"))
    seen = cast("models.Field[Any, Any]", kind.model._meta.get_field(at))
    convert = [*connection.ops.get_db_converters(seen.get_col("")), *seen.get_db_converters(connection)]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT min(name_of_row), min(tail), count(*), min(seen), max(seen), max(newest_pk) "
            f"FROM ({sql}) AS newest GROUP BY {groups}",
            params,
        )
        for name, tail, count, first, last, pk in cursor.fetchall():
            for converter in convert:
                first, last = (converter(each, None, connection) for each in (first, last))
            yield _SameErrors(str(name), tail or "", count, first, last, pk)


def _has_field(model: type[models.Model], name: str) -> bool:
    return any(field.name == name for field in model._meta.get_fields())
