"""Which rows a bulk action concerns: conditions as a JSON object, so that workers can read it later.

Its keys: ``where``, lookups of Django with plain values, all of which hold; ``any``, lookups of which one holds;
``pks``, primary keys; ``problem``, the kind, name, state and key of a problem (``problems``). An empty object concerns
all rows of the kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import Any
from uuid import UUID

from django.core.exceptions import FieldError, ValidationError
from django.db import models
from django.db.models.functions import Right

from ...db.writer import alias_of
from ...exceptions import DefinitionError
from ...values.json_text import storable
from ..problems import MAX_END_OF_ERROR, problem_key
from .verbs import BulkKind

MAX_PKS = 10_000
"""How many primary keys a filter takes. More rows are named by conditions."""


@dataclass(frozen=True, slots=True)
class BulkFilter:
    """Which rows a bulk action concerns.

    Attributes:
        where: Lookups, all of which hold.
        any_of: Lookups of which one holds.
        pks: Primary keys.
        problem: The kind, name, state and key of a problem that the rows have.
    """

    where: Mapping[str, Any] = field(default_factory=dict)
    any_of: Mapping[str, Any] = field(default_factory=dict)
    pks: Iterable[int] | None = None
    problem: Mapping[str, str] | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BulkFilter:
        """Return the filter that was stored."""
        return cls(stored.get("where", {}), stored.get("any", {}), stored.get("pks"), stored.get("problem"))

    def as_json(self) -> dict[str, Any]:
        """Return it as it is stored."""
        found: dict[str, Any] = {}
        if self.where:
            found["where"] = {name: plain(value, name) for name, value in self.where.items()}
        if self.any_of:
            found["any"] = {name: plain(value, name) for name, value in self.any_of.items()}
        if self.pks is not None:
            found["pks"] = sorted(set(self.pks))
        if self.problem:
            found["problem"] = dict(self.problem)
        return found


def plain(value: Any, name: str) -> Any:
    """Return the value of a lookup in a form that JSON can hold and a query takes. Raises ``DefinitionError``."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return storable(str(value))
    if isinstance(value, models.Model):
        return value.pk
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID, timedelta)):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [plain(each, name) for each in value]
    raise DefinitionError(
        f"where={{{name!r}: {value!r:.80}}}: a bulk action stores its filter, so give strings, numbers, dates, model "
        "instances or lists of them."
    )


def rows_of(kind: BulkKind, stored: Mapping[str, Any]) -> models.QuerySet[Any]:
    """Return the rows of ``kind`` that the conditions of a stored filter select. The problem is compared later."""
    conditions = models.Q(**stored.get("where", {}))
    if "any" in stored:
        conditions &= models.Q(*stored["any"].items(), _connector=models.Q.OR)
    if "pks" in stored:
        conditions &= models.Q(pk__in=stored["pks"])
    rows: models.QuerySet[Any] = kind.model._base_manager.using(alias_of(kind.model)).filter(conditions)
    return rows


def check_filter(kind: BulkKind, stored: Mapping[str, Any]) -> None:
    """Raise ``DefinitionError`` for conditions that no query takes, with the nearest name of a field."""
    if len(stored.get("pks", ())) > MAX_PKS:
        raise DefinitionError(
            f"A bulk action takes at most {MAX_PKS} primary keys, not {len(stored['pks'])}. Name the rows by "
            "conditions."
        )
    try:
        str(rows_of(kind, stored).query)
    except FieldError as error:
        names = [each.name for each in kind.model._meta.get_fields()]
        given = [name.split("__")[0] for name in (*stored.get("where", ()), *stored.get("any", ()))]
        wrong = next((name for name in given if name not in names), "")
        near = get_close_matches(wrong, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DefinitionError(f"The filter of a bulk action on {kind.name!r}: {error}{hint}") from error
    except (ValueError, TypeError, ValidationError) as error:
        raise DefinitionError(f"The filter of a bulk action on {kind.name!r}: {error}") from error


def with_end_of_error(rows: models.QuerySet[Any]) -> models.QuerySet[Any]:
    """Return primary keys and the ends of errors, which decide about problems, in the order of keys."""
    ends: models.QuerySet[Any] = rows.annotate(end_of_error=Right("error", MAX_END_OF_ERROR)).order_by("pk")
    found: models.QuerySet[Any] = ends.values_list("pk", "end_of_error")
    return found


def has_problem(problem: Mapping[str, str], end_of_error: str | None) -> bool:
    """Return whether a row with this end of its error has ``problem``."""
    return problem_key(problem["kind"], problem["name"], problem["state"], end_of_error or "") == problem["key"]


def in_words(stored: Mapping[str, Any]) -> list[str]:
    """Return the conditions of a stored filter, one a line."""
    found = [f"{_field(name)} = {_value(value)}" for name, value in stored.get("where", {}).items()]
    if "any" in stored:
        found.append(" / ".join(f"{_field(name)} = {_value(value)}" for name, value in stored["any"].items()))
    if "pks" in stored:
        found.append(f"id = {_value(stored['pks'])}")
    if "problem" in stored:
        found.append(stored["problem"].get("error", ""))
    return found


def _field(lookup: str) -> str:
    return lookup.removesuffix("__exact").removesuffix("__in").replace("__", " ")


def _value(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:10]))
        return f"{shown} … ({len(value)})" if len(value) > 10 else shown
    return str(value)
