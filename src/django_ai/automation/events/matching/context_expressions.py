"""Expressions on the Context: ``{{ ctx.field }}`` in the values of a match.

They reach only the fields of the Context: no calls, no tags, no private names.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from ...exceptions import DefinitionError
from ..expressions import EXPRESSION, check_expressions, path_of

ROOTS = ("ctx", "context")


def check_expression(template: str, what: str, context: type[BaseModel] | None = None) -> None:
    """Raise ``DefinitionError`` unless every expression in ``template`` reads a field of the Context (``context``, if
    known)."""
    for name, *_ in check_expressions(template, what, *ROOTS):
        if context is not None and name not in context.model_fields:
            near = get_close_matches(name, context.model_fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(context.model_fields) or 'none'}."
            raise DefinitionError(f"{what}: {template!r}: its Context has no field {name!r}. {hint}")


def evaluate(value: Any, context: Any) -> Any:
    """Return ``value`` with its expressions replaced by values of ``context``.

    A string that is a single expression returns the native value, any other string a string, and any other value
    itself.
    """
    if not isinstance(value, str) or "{{" not in value:
        return value
    alone = EXPRESSION.fullmatch(value.strip())
    if alone:
        return _resolve(alone.group(1), context)
    return EXPRESSION.sub(lambda found: str(_resolve(found.group(1), context)), value)


def field_named(value: Any, context: type[BaseModel]) -> Any:
    """Return the field of ``context`` that ``value`` is the single expression for, or None."""
    alone = EXPRESSION.fullmatch(value.strip()) if isinstance(value, str) else None
    path = path_of(alone.group(1), *ROOTS) if alone else None
    return context.model_fields.get(path[0]) if path and len(path) == 1 else None


def _resolve(expression: str, context: Any) -> Any:
    path = path_of(expression, *ROOTS)
    if path is None:
        raise DefinitionError(f"{{{{ {expression} }}}} is not a field of the Context; write {{{{ ctx.field }}}}.")
    value = context
    for name in path:
        if isinstance(value, BaseModel) and name in type(value).model_fields:
            value = getattr(value, name)
        elif isinstance(value, Mapping) and name in value:
            value = value[name]
        else:
            fields = type(value).model_fields if isinstance(value, BaseModel) else value
            near = get_close_matches(name, fields, n=1) if isinstance(fields, Mapping) else []
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DefinitionError(f"{{{{ {expression} }}}}: {type(value).__name__} has no field {name!r}.{hint}")
    return value
