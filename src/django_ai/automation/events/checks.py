"""System checks of events and their callbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import FieldDoesNotExist
from django.db import models, router
from django.db.models.expressions import OrderBy
from django.db.models.indexes import IndexExpression
from django.utils import timezone

from ..db.writer import alias_of
from ..values.clock import offset_key, shift
from .callbacks import all_callbacks
from .declarations import Declared, declared_events, declared_on, declaring_models, is_family, sources_of
from .definitions import EventDefinition, class_bodies
from .matching.lookups import problem_with
from .models import Event
from .names import expressions_of


def did_you_mean(name: str, known: Any) -> str:
    """Return a hint that names the nearest of ``known``, or all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(map(repr, names[:20]))}." if names else "No model declares any event."


def check_definitions(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = [*_check_lost_lists()]
    for model in declaring_models():
        found += _check_key(model)
        found += _check_list(model)
        for declared in declared_on(model):
            if declared.owner is model:
                found += _check_date_field(model, declared)
                found += _check_field_names(model, declared)
                found += _check_changing_name(model, declared.definition)
        if router.db_for_write(model) != alias_of(Event):
            found.append(
                Error(
                    f"{model._meta.label} declares events and is written to the database "
                    f"{router.db_for_write(model)!r}, but the automation tables are in {alias_of(Event)!r}.",
                    hint="Route both to one database: an event commits with its entity or not at all.",
                    obj=model,
                    id="automation.E101",
                )
            )
    return found


def _check_lost_lists() -> Iterator[CheckMessage]:
    """Report models whose ``events`` list was replaced by a relation of another model."""
    for model in apps.get_models():
        if (model.__module__, model.__qualname__) not in class_bodies or isinstance(
            vars(model).get("events"), list | tuple
        ):
            continue
        for relation in model._meta.related_objects:
            if relation.get_accessor_name() == "events":
                yield Error(
                    f"{model._meta.label}.events listed events, and {relation.field} replaced the list by its "
                    'related_name="events": none of them is recorded.',
                    hint=f"Give {relation.field} another related_name.",
                    obj=model,
                    id="automation.E110",
                )


def _check_key(model: type[models.Model]) -> Iterator[CheckMessage]:
    """Report composite primary keys: an event refers to its entity by one column."""
    if isinstance(model._meta.pk, models.CompositePrimaryKey):
        yield Error(
            f"{model._meta.label} declares events and has a CompositePrimaryKey; an event names its entity by the "
            "value of one column.",
            hint="Give it a primary key of its own, and a UniqueConstraint over the columns of the composite one.",
            obj=model,
            id="automation.E111",
        )


def _check_list(model: type[models.Model]) -> Iterator[CheckMessage]:
    events = model.events  # type: ignore[attr-defined]
    for each in events:
        if not isinstance(each, EventDefinition):
            yield Error(
                f"{model._meta.label}.events lists {each!r}, which is not an EventDefinition.",
                hint='List events as EventDefinition("name", ...).',
                obj=model,
                id="automation.E102",
            )
    for name, count in Counter(each.name for each in events if isinstance(each, EventDefinition)).items():
        if count > 1:
            yield Error(
                f"{model._meta.label}.events lists {name!r} {count} times.",
                hint="An entity has one event of a name; give the definitions different names.",
                obj=model,
                id="automation.E103",
            )


def _check_date_field(model: type[models.Model], declared: Declared) -> Iterator[CheckMessage]:
    name = declared.definition.date_field
    if name is None:
        return
    dates = [field.name for field in model._meta.get_fields() if isinstance(field, models.DateField)]
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        yield Error(
            f"{model._meta.label}: the event {declared.definition.name!r} has date_field={name!r}, "
            "and the model has no such field.",
            hint=did_you_mean(name, dates) if dates else "The model has no date field.",
            obj=model,
            id="automation.E104",
        )
        return
    if not isinstance(field, models.DateField):
        yield Error(
            f"{model._meta.label}: the event {declared.definition.name!r} has date_field={name!r}, "
            f"which is a {type(field).__name__} and no date.",
            hint=f"Name one of its date fields: {', '.join(map(repr, dates)) or 'it has none'}.",
            obj=model,
            id="automation.E105",
        )
    elif field.model._meta.managed and not leads_an_index(field):
        yield Warning(
            f"{model._meta.label}: the event {declared.definition.name!r} has date_field={name!r}, and no index begins "
            "with this column.",
            hint=f"Workers look for dates every five minutes, and read the whole table without one: give "
            f"{field.model._meta.label}.{name} db_index=True, or an index in Meta.indexes.",
            obj=model,
            id="automation.W112",
        )


UNORDERED_INDEX_SUFFIXES = ("hash", "gin", "bloom")
"""The suffixes of Django's index classes that do not support ranges of values."""


def leads_an_index(field: Any) -> bool:
    """Return whether an index supports ranges of ``field``: its own, or one whose first column it is."""
    if field.primary_key or field.unique or field.db_index:
        return True
    meta = field.model._meta
    firsts = [each[0] for each in meta.unique_together]
    for found in (*meta.indexes, *meta.constraints):
        if getattr(found, "suffix", "") in UNORDERED_INDEX_SUFFIXES or not isinstance(
            found, models.Index | models.UniqueConstraint
        ):
            continue
        # Of the partial indexes only the one without NULLs is certain to cover a range of dates.
        if found.condition is not None and found.condition != models.Q(**{f"{field.name}__isnull": False}):
            continue
        if found.fields:
            firsts.append(found.fields[0].removeprefix("-"))
        elif found.expressions:
            firsts.append(_column_of(found.expressions[0]))
    return field.name in firsts


def _column_of(expression: Any) -> str:
    while isinstance(expression, OrderBy | IndexExpression):
        (expression,) = expression.get_source_expressions()
    return str(expression.name) if isinstance(expression, models.F) else ""  # type: ignore[attr-defined]


def _check_field_names(model: type[models.Model], declared: Declared) -> Iterator[CheckMessage]:
    """Check the fields in ``watch_fields=``, ``snapshot_fields=`` and the expressions of a template."""
    definition = declared.definition
    columns = {field.name for field in model._meta.concrete_fields}
    attributes = {field.attname for field in model._meta.concrete_fields}
    for name in definition.watch_fields:
        if name not in columns and name not in attributes:
            yield Error(
                f"{model._meta.label}: the event {definition.name!r} watches {name!r}, which is not a column of it.",
                hint=did_you_mean(name, columns) + " A to-many relation cannot be watched: its rows are saved "
                "separately, and may declare events.",
                obj=model,
                id="automation.E108",
            )
    for name in definition.snapshot_fields:
        if name != "pk" and name not in columns and name not in attributes:
            yield Error(
                f"{model._meta.label}: snapshot_fields= of the event {definition.name!r} names {name!r}, which is not "
                "a column of it.",
                hint=did_you_mean(name, columns),
                obj=model,
                id="automation.E115",
            )
    for name in expressions_of(definition.name):
        if name != "pk" and not hasattr(model, name) and name not in columns:
            yield Error(
                f"{model._meta.label}: the event {definition.name!r} is named after {name!r}, which the model does not "
                "have.",
                hint=did_you_mean(name, columns),
                obj=model,
                id="automation.E109",
            )


def _check_changing_name(model: type[models.Model], definition: EventDefinition) -> Iterator[CheckMessage]:
    """Warn of an event that occurs once and whose name has a field that may change: later values are ignored."""
    if definition.is_scheduled or definition.triggers or definition.rearm:
        return
    attributes = set(expressions_of(definition.name))
    changing = [field.name for field in model._meta.concrete_fields if field.name in attributes and _may_change(field)]
    if changing:
        yield Warning(
            f"{model._meta.label}: the event {definition.name!r} occurs once for an entity, named after what "
            f"{changing[0]!r} is then; when that changes later, it does not occur again.",
            hint=f"To occur at each change, add trigger=EventTrigger.UPDATE and watch_fields={changing!r}; where the "
            "value never changes, say trigger=EventTrigger.CREATE, or editable=False on the field.",
            obj=model,
            id="automation.W113",
        )


def _may_change(field: Any) -> bool:
    return not (field.primary_key or field.unique or field.is_relation) and field.editable


def check_callbacks(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for callback in all_callbacks():
        if not is_declared(callback.event_name):
            found.append(
                Error(
                    f"{callback.name} subscribes to the event {callback.event_name!r}, which no model declares.",
                    hint=did_you_mean(callback.event_name, declared_events()),
                    obj=callback.function,
                    id="automation.E106",
                )
            )
        elif callback.offset is not None:
            found += check_offset_makes_sense(callback.name, callback.event_name, callback.offset)
    return found


def is_declared(pattern: str) -> bool:
    """Return whether any event can match ``pattern``; ``"*"`` is valid in an empty project, too."""
    return pattern == "*" or bool(sources_of(pattern))


def shares_entity(starting: Iterable[str], pattern: str) -> bool:
    """Return whether every entity whose event is one of ``starting`` declares an event that ``pattern`` matches."""
    starters = {source.owner for each in starting for source in sources_of(each)}
    owners = {source.owner for source in sources_of(pattern)}
    return bool(starters) and all(any(is_family(starter, owner) for owner in owners) for starter in starters)


def check_match(what: str, pattern: str, lookups: Iterable[str], obj: Any, code: str) -> Iterator[CheckMessage]:
    """Report lookups that are invalid on every model that declares the event."""
    sources = sources_of(pattern)
    for lookup in lookups:
        problems = [problem_with(source.owner, lookup) for source in sources]
        if problems and all(problems):
            models = ", ".join(sorted({source.owner._meta.label for source in sources}))
            yield Error(
                f"{what}: match compares {lookup!r}, which {models} does not have.", hint=problems[0], obj=obj, id=code
            )


def check_offset_makes_sense(what: str, event_name: str, offset: Any) -> Iterator[CheckMessage]:
    """Warn of a negative offset from an immediate event: its time is not known in advance."""
    now = timezone.now()
    sources = sources_of(event_name)
    if sources and not any(each.definition.is_scheduled for each in sources) and shift(now, offset) < now:
        yield Warning(
            f"{what} wants to run before the event {event_name!r} (offset {offset_key(offset)}), which is immediate.",
            hint="Its time is not known in advance, so this runs at once. Use a scheduled event (date_field=).",
            id="automation.W107",
        )
