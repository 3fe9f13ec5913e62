"""The keys of limits: expressions on the Context of a run, or on the entity and payload of an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from pydantic import BaseModel

from ..db.writer import from_writer
from ..values.limits import DeclaredLimit, LimitKey
from .event_keys import check_event_key, value_of
from .expressions import EXPRESSION
from .matching.context_expressions import check_expression, evaluate
from .matching.typed_values import canonical

if TYPE_CHECKING:
    from .models import Event


def check_context_keys(limits: Sequence[DeclaredLimit], what: str, context: type[BaseModel]) -> None:
    """Raise ``DefinitionError`` unless the key of each limit reads fields of ``context``."""
    for each in limits:
        if each.limit.key is not None:
            check_expression(each.limit.key, f"{what}: {each.argument}", context)


def check_event_keys(limits: Sequence[DeclaredLimit], what: str) -> None:
    """Raise ``DefinitionError`` unless the key of each limit reads the entity or the payload of an event."""
    for each in limits:
        check_event_key(each.limit.key, f"{what}: {each.argument}")


def context_key(declared: DeclaredLimit, context: Any) -> LimitKey:
    """Return the key of a limit for a run with this Context."""
    if declared.limit.key is None:
        return LimitKey()
    value = evaluate(declared.limit.key, context)
    if isinstance(value, models.Model):
        value = value.pk
    return _key(declared.limit.key, canonical(value))


@from_writer()
def event_key(declared: DeclaredLimit, event: Event) -> LimitKey:
    """Return the key of a limit for a call with this event. Raises what the attributes of its entity raise."""
    return LimitKey() if declared.limit.key is None else _key(declared.limit.key, value_of(declared.limit.key, event))


def _key(template: str, text: str) -> LimitKey:
    """Return a key with its value for display, which lacks the type that the text of a single value begins with."""
    is_single = EXPRESSION.fullmatch(template.strip()) is not None
    return LimitKey(text, text.partition(":")[2] or text if is_single else text)
