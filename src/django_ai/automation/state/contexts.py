"""Contexts: create, load, dump and merge the Pydantic model that holds the state of a workflow run or an agent."""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from django.db import Error as AnyDatabaseError
from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, ValidationError
from pydantic_core import PydanticSerializationError

from ..exceptions import ContextError, DefinitionError, NotStorableError
from ..values.callables import check_synchronous
from ..values.json_text import MAX_NESTING, encode
from ..values.text import trace_of
from .encryption import check_readable


def context_class(cls: type, what: str) -> type[BaseModel]:
    """Return the ``Context`` that ``cls`` declares. Raises ``DefinitionError`` unless it is a Pydantic model."""
    context = getattr(cls, "Context", None)
    check_synchronous(getattr(cls, "create_context", None), f"{what}: create_context")
    if inspect.isclass(context) and issubclass(context, BaseModel):
        return context
    raise DefinitionError(
        f"{what}: Context must be a Pydantic model, as in `class Context(BaseModel): ...`; it is {context!r}."
    )


def make_context(cls: type, model: type[BaseModel], event: Any, arguments: dict[str, Any], what: str) -> BaseModel:
    """Call the class's ``create_context``, or build the Context from ``arguments`` and the ``context_fields`` of the
    event: the ``entity_id``, or the payload of an event without an entity. ``what`` names the workflow or agent.

    Raises what ``create_context`` raises, and ``DefinitionError`` if it does not return a Context, or if ``arguments``
    name a field that the Context does not have.
    """
    create = getattr(cls, "create_context", None)
    made: Any
    if create is None:
        made = _made_of_fields(model, event, arguments, what)
    elif event is None:
        made = create(**arguments)
    else:
        made = _call_with_event(create, event, arguments)
    if not isinstance(made, model):
        raise DefinitionError(
            f"{cls.__qualname__}.create_context returned {made!r}; it must return a {cls.__qualname__}.Context."
        )
    return made


def _made_of_fields(model: type[BaseModel], event: Any, arguments: dict[str, Any], what: str) -> BaseModel:
    """Return the Context of a class without ``create_context``. A ``ValidationError`` gets a note with the cause."""
    if problem := unknown_fields(model, arguments):
        raise DefinitionError(f"{what}: {problem}")
    given: dict[str, Any] = {}
    if event is not None:
        given = {name: value for name, value in event.context_fields.items() if name in model.model_fields}
    try:
        return model(**given | arguments)
    except ValidationError as error:
        if event is None:
            advice = f"Its fields: {', '.join(model.model_fields)}."
        else:
            names = ", ".join(event.context_fields) or "nothing"
            advice = (
                f"Without create_context(cls, event) its fields come from the event, which gives: {names}. Write one, "
                "or give the other fields a default."
            )
        error.add_note(f"{what}: the values do not fit its Context: {reasons(error)}. {advice}")
        raise


def unknown_fields(model: type[BaseModel], names: Iterable[str]) -> str:
    """Return what to tell about ``names`` that are no fields of a Context, which Pydantic would ignore. Empty: nothing,
    also where the Context says in ``model_config["extra"]``, or by a validator, what is to become of them."""
    known = None if "extra" in model.model_config else _known_names(model)
    unknown = [] if known is None else sorted(set(names) - known)
    if not unknown:
        return ""
    near = get_close_matches(unknown[0], model.model_fields, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(model.model_fields) or 'none'}."
    return f"{model.__qualname__} has no field {', '.join(map(repr, unknown))}. {hint}"


def missing_fields(model: type[BaseModel], given: Iterable[str]) -> str:
    """Return what to tell about required fields of a Context that are not in ``given``. Empty: nothing, also where a
    validator may supply them."""
    if _reads_names_itself(model):
        return ""
    names = set(given)
    required = {name: {name, each.alias} for name, each in model.model_fields.items() if each.is_required()}
    missing = [name for name, either in required.items() if not either & names]
    return f"{model.__qualname__} requires {', '.join(map(repr, missing))}." if missing else ""


def replaced(old: BaseModel, new: BaseModel, how: str) -> BaseModel:
    """Return ``new``, with which user code has replaced the Context ``old``. Raises ``DefinitionError`` unless it is of
    the same class. ``new`` inherits the fields that ``old`` preserves for a newer release."""
    if new is not old:
        if not isinstance(new, type(old)):
            raise DefinitionError(f"{how} {new!r:.200}; it must be a {type(old).__qualname__}.")
        if UNKNOWN_FIELDS in old.__dict__:
            new.__dict__.setdefault(UNKNOWN_FIELDS, old.__dict__[UNKNOWN_FIELDS])
    return new


def _call_with_event(create: Callable[..., Any], event: Any, arguments: dict[str, Any]) -> Any:
    parameters = inspect.signature(create).parameters.values()
    if any(each.name == "event" or each.kind is each.VAR_KEYWORD for each in parameters):
        return create(event=event, **arguments)
    return create(event, **arguments) if parameters else create(**arguments)


def load_context(model: type[BaseModel], data: Any, what: str) -> BaseModel:
    """Return the Context that was stored as ``data``. Raises ``ContextError`` if it no longer validates or a validator
    raises, and ``DecryptionError`` if no key decrypts it.

    Fields that this code does not know, because a newer release wrote them, are preserved: the next ``dump_context``
    writes them unchanged.
    """
    check_readable(data, what)
    text = json.dumps(data)
    try:
        context = model.model_validate_json(text, by_name=True, by_alias=True)
    except ValidationError as error:
        raise ContextError(
            f"{what}: the stored data no longer fits its Context: {reasons(error)}. Give new fields a default, or add "
            "a migrate_context(data, from_version) to the class; then it resumes automatically."
        ) from error
    except AnyDatabaseError:
        raise  # a validator queries the database: not an error of the stored data
    except Exception as error:
        raise ContextError(
            f"{what}: a validator of its Context raised. Fix it; then it resumes automatically.\n{trace_of(error)}"
        ) from error
    known = _known_names(model)
    if known is not None and (unknown := data.keys() - known):
        context.__dict__[UNKNOWN_FIELDS] = {name: data[name] for name in unknown}
    return context


UNKNOWN_FIELDS = "_automation_unknown_fields"


@lru_cache(maxsize=1024)
def _known_names(model: type[BaseModel]) -> frozenset[str] | None:
    """Return the names under which a Context's fields may be stored. None if the model itself handles other names, so
    that a preserved value might become the value of a field."""
    if _reads_names_itself(model) or model.model_config.get("extra") == "allow":
        return None
    found: set[str] = set()
    for name, field in model.model_fields.items():
        given = field.validation_alias
        aliases = given.choices if isinstance(given, AliasChoices) else [given, field.serialization_alias, field.alias]
        paths = [each.path[0] if isinstance(each, AliasPath) else each for each in aliases]
        found |= {name, *(each for each in paths if isinstance(each, str))}
    return frozenset(found)


def _reads_names_itself(model: type[BaseModel]) -> bool:
    """Return whether the model itself reads the values that it is given, under names that are not those of fields."""
    validators = model.__pydantic_decorators__.model_validators.values()
    return any(each.info.mode != "after" for each in validators) or issubclass(model, RootModel)


def dump_context(context: BaseModel, what: str) -> str:
    """Return ``context`` as JSON text.

    Raises ``NotStorableError`` for values that not every database stores in the same way, and for values that the
    Context would not accept when it is loaded again.
    """
    models: Counter[type] = Counter()
    for name, value in context.__dict__.items():
        if type(value) not in _PLAIN and name != UNKNOWN_FIELDS and (problem := _lossy_value(value, name, 0, models)):
            raise NotStorableError(f"{what} cannot be stored as JSON: {problem}.")
    try:
        values = context.model_dump(mode="json", round_trip=True, warnings="error")
    except PydanticSerializationError as error:
        # A field was set to a value of another type. Accept it if it validates; otherwise fail now, not at the next
        # load.
        values = _coerced(context, what, error)
    if models and (problem := _lost_class(context, values, models)):
        raise NotStorableError(f"{what} cannot be stored: {problem}.")
    if (preserved := context.__dict__.get(UNKNOWN_FIELDS)) is not None:
        values = {**preserved, **values}
    return encode(values, what)


_PLAIN = (str, int, bool, type(None))


def _lossy_value(value: Any, path: str, depth: int, models: Counter[type]) -> str:
    """Return what in ``value`` Pydantic would silently dump wrongly, or endlessly: NaN and infinities become null, and
    a value that contains itself never ends. Count in ``models`` the classes of nested models that inherit from another
    model."""
    if depth > MAX_NESTING:
        return f"at {path[:60]!r}... it is nested too deeply, or contains itself"
    if isinstance(value, float | Decimal):
        is_finite = math.isfinite(value)
        return "" if is_finite else f"at {path!r} is {value!r}, a number that JSON does not support (use None)"
    if isinstance(value, BaseModel):
        if any(issubclass(base, BaseModel) and base is not BaseModel for base in type(value).__mro__[1:]):
            models[type(value)] += 1
        value = value.__dict__
    if isinstance(value, Mapping):
        items: Any = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return ""
    for at, item in items:
        if type(item) not in _PLAIN and (problem := _lossy_value(item, at, depth + 1, models)):
            return problem
    return ""


def _lost_class(context: BaseModel, values: Any, before: Counter[type]) -> str:
    """Return which instance of a subclass would be loaded as its base class, without the subclass's fields."""
    try:
        loaded = type(context).model_validate_json(json.dumps(values), by_name=True, by_alias=True)
    except ValidationError as error:
        return f"it could not be loaded again: {reasons(error)}"
    after: Counter[type] = Counter()
    _count_models(loaded, after)
    for lost in before - after:
        for found in after - before:
            if found is not type(context) and issubclass(lost, found):
                return (
                    f"a {lost.__qualname__} would be loaded as a {found.__qualname__}, without its own fields. Declare "
                    f"the field as a union ({found.__qualname__} | {lost.__qualname__}), best with a discriminator"
                )
    return ""


def _count_models(value: Any, found: Counter[type]) -> None:
    if isinstance(value, BaseModel):
        found[type(value)] += 1
        value = value.__dict__
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        return
    for item in value:
        if type(item) not in _PLAIN:
            _count_models(item, found)


def _coerced(context: BaseModel, what: str, reason: Exception) -> Any:
    try:
        values = {name: getattr(context, name) for name in type(context).model_fields}
        return (
            type(context).model_validate(values, by_name=True, by_alias=True).model_dump(mode="json", round_trip=True)
        )
    except (ValidationError, PydanticSerializationError) as error:
        detail = reasons(error) if isinstance(error, ValidationError) else str(reason)
        raise NotStorableError(f"{what} cannot be stored: {detail}.") from None


def merge(context: BaseModel, fields: Mapping[str, Any], what: str) -> None:
    """Set ``fields`` on ``context`` after validating all of them. Raises ``ContextError``; then none is set."""
    model = type(context)
    values = {name: getattr(context, name) for name in model.model_fields}
    try:
        validated = model.model_validate({**values, **fields}, by_name=True, by_alias=True)
    except ValidationError as error:
        raise ContextError(f"{what} does not fit the Context: {reasons(error)}.") from error
    for name in fields:
        setattr(context, name, getattr(validated, name))


def reasons(error: ValidationError) -> str:
    """Return why a Context refuses its values, as one line."""
    return "; ".join(
        f"{'.'.join(str(part) for part in each['loc']) or 'the whole'}: {each['msg']} (input: {each['input']!r:.100})"
        for each in error.errors()[:5]
    )
