"""Editing a stored Context from outside: values of single fields, validated by its Pydantic model."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from ..exceptions import ContextError, DecryptionError, DefinitionError, InvalidContextError, NotStorableError
from .contexts import UNKNOWN_FIELDS, dump_context
from .versions import Versioned, restore


def check_fields(fields: Any, what: str) -> None:
    """Raise ``DefinitionError`` unless ``fields`` is a dict with the names of fields."""
    if not isinstance(fields, Mapping) or not fields or not all(isinstance(name, str) for name in fields):
        raise DefinitionError(f'{what}: {fields!r:.80} must be a dict of fields and values, as in {{"email": "a@b.c"}}')


def edited(context: BaseModel, fields: Mapping[str, Any], what: str) -> BaseModel:
    """Return another Context, with the values of ``context`` and of ``fields``.

    Raises ``InvalidContextError`` with the error of each field that does not exist or does not accept its value.
    """
    model = type(context)
    _check_names(model, fields, what)
    values = {name: getattr(context, name) for name in model.model_fields}
    made = _validated(model, {**values, **fields}, fields, what)
    if UNKNOWN_FIELDS in context.__dict__:
        made.__dict__[UNKNOWN_FIELDS] = context.__dict__[UNKNOWN_FIELDS]
    return made


def edited_data(definition: Versioned, data: Any, version: str, fields: Mapping[str, Any], what: str) -> str:
    """Return the stored ``data`` of a ``version`` with other values of ``fields``, as the JSON text of a Context of
    ``definition``.

    Data that no longer fits the Context may be repaired in this way: then the rest of it is validated, too. Raises
    ``InvalidContextError``, and ``ContextError`` if ``migrate_context`` cannot migrate the data.
    """
    try:
        context = restore(definition, data, version, what).context
    except DecryptionError:
        raise
    except ContextError:
        if version != definition.version:
            raise
        _check_names(definition.context, fields, what)
        context = _validated(definition.context, {**data, **fields}, fields, what)
    else:
        context = edited(context, fields, what)
    try:
        return dump_context(context, what)
    except NotStorableError as error:
        raise InvalidContextError(str(error), {}) from error


def _check_names(model: type[BaseModel], fields: Mapping[str, Any], what: str) -> None:
    known = model.model_fields
    errors = {}
    for name in fields:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(known) or 'none'}."
            errors[str(name)] = f"The Context has no such field. {hint}"
    if errors:
        raise _error(what, errors)


def _validated(model: type[BaseModel], values: Mapping[str, Any], fields: Mapping[str, Any], what: str) -> BaseModel:
    try:
        return model.model_validate(dict(values), by_name=True, by_alias=True)
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for each in error.errors():
            at = [str(part) for part in each["loc"]]
            name = next(iter(at), "")
            inside = f"at {'.'.join(at[1:])}: " if len(at) > 1 else ""
            shown = f" (value: {each['input']!r:.100})" if name in fields else ""
            found.setdefault(name, []).append(f"{inside}{each['msg']}{shown}")
        raise _error(what, {name: "; ".join(texts) for name, texts in found.items()}) from None


def _error(what: str, errors: Mapping[str, str]) -> InvalidContextError:
    lines = "\n".join(f"  {name or 'the whole'}: {text}" for name, text in errors.items())
    return InvalidContextError(f"{what} does not fit the Context:\n{lines}", dict(errors))
