"""System checks of events and their callbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import connections, models, router
from django.db.migrations.exceptions import BadMigrationError, CircularDependencyError, NodeNotFoundError
from django.db.migrations.loader import MigrationLoader
from django.db.models.expressions import OrderBy
from django.db.models.indexes import IndexExpression
from django.utils import timezone
from pydantic import BaseModel

from ..db.writer import alias_of
from ..state.contexts import missing_fields
from ..values.clock import offset_key, shift
from ..values.zones import find_zone
from .callbacks import all_callbacks
from .capture import captured_models, tables_of
from .capture_migration import missing_changes
from .declarations import Declared, declared_on, declaring_models, is_family, listed, registered, sources_of
from .definitions import EventDefinition, class_bodies
from .entity_ids import stored_entity_id
from .event_keys import entity_attributes, payload_paths
from .free_events import FreeEvent, all_free_events, free_events_matching
from .matching.lookups import problem_with
from .models import CapturedWrite, Event
from .names import expressions_of, pattern_of
from .sources import declared_name, declared_names, event_sources, labels_of, owners_of
from .transitions import alternatives
from .triggers.installation import Installation, installation_of, needed_captures, stray_captures
from .zones import is_zone_field, leads_to_one_row

NO_DEFINITION = "automation.E102"


def did_you_mean(name: str, known: Any) -> str:
    """Return a hint that names the nearest of ``known``, or all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(map(repr, names[:20]))}." if names else "No event is declared."


def check_definitions(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = [*_check_lost_lists(), *_check_single_definitions(), *_check_free_events()]
    for model in declaring_models():
        found += _check_key(model)
        found += _check_list(model)
        for declared in declared_on(model):
            if declared.owner is model:
                found += _check_date_field(model, declared)
                found += _check_time_zone(model, declared.definition)
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


def check_context(
    what: str, event_name: str, context: type[BaseModel], obj: Any, check_id: str
) -> Iterator[CheckMessage]:
    """Report a Context without ``create_context`` that requires fields which its event does not have."""
    for source in event_sources(pattern_of(event_name)):
        if not isinstance(source, FreeEvent):
            given = ["entity_id"]
        elif source.schema is None:
            continue  # any payload
        else:
            given = list(source.schema.model_fields)
        if problem := missing_fields(context, given):
            gives = f"the event {declared_name(source)!r} gives only {', '.join(given)}"
            yield Error(
                f"{what}: {problem.removesuffix('.')}, and {gives}.",
                hint="Write a class method create_context(cls, event), or give the fields a default.",
                obj=obj,
                id=check_id,
            )
            return


def _check_free_events() -> Iterator[CheckMessage]:
    """Report events without a model that have the name of a model's event: a match could mean either."""
    for event in all_free_events():
        models_of = {source.owner._meta.label for source in sources_of(event.name)}
        if models_of:
            yield Error(
                f"{event!r} of {event.module} has the name of an event that {', '.join(sorted(models_of))} declares.",
                hint="Give one of them another name: an event belongs to a model, or code emits it.",
                obj=event,
                id="automation.E120",
            )


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


def _check_single_definitions() -> Iterator[CheckMessage]:
    """Report models whose ``events`` is a definition and no list: none is recorded."""
    for model in apps.get_models():
        if isinstance(events := vars(model).get("events"), EventDefinition):
            yield Error(
                f"{model._meta.label}.events is {events!r} and not a list: it is not recorded.",
                hint=f"Write events = [EventDefinition({events.name!r}, ...)].",
                obj=model,
                id=NO_DEFINITION,
            )


def _check_list(model: type[models.Model]) -> Iterator[CheckMessage]:
    events = getattr(model, "events", ())
    for each in events if isinstance(events, list | tuple) else ():
        if not isinstance(each, EventDefinition) or isinstance(each, FreeEvent):
            yield Error(
                f"{model._meta.label}.events lists {each!r}, which is not an EventDefinition.",
                hint='List events as EventDefinition("name", ...). A FreeEvent belongs to no model.',
                obj=model,
                id=NO_DEFINITION,
            )
    for name, count in Counter(each.name for each in listed(model)).items():
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
            f"{field.model._meta.label}.{name} db_index=True, or an index in Meta.indexes."
            + (FOREIGN_INDEX_HINT if any(declared.definition in each for each in registered.values()) else ""),
            obj=model,
            id="automation.W112",
        )


def _check_time_zone(model: type[models.Model], definition: EventDefinition) -> Iterator[CheckMessage]:
    """Check the path in ``timezone=``: relations to one row, and a field that may have the name of a time zone."""
    path = definition.timezone
    if not isinstance(path, str):
        return
    what = f"{model._meta.label}: the event {definition.name!r} has timezone={path!r}"
    current: Any = model
    names = path.split("__")
    for number, name in enumerate(names, start=1):
        is_last = number == len(names)
        known = {each.name: each for each in current._meta.get_fields()}
        field = known.get(name)
        fits = is_zone_field if is_last else leads_to_one_row
        if field is None:
            yield Error(
                f"{what}, and {current._meta.label} has no field {name!r}.",
                hint=_path_hint(current, name, path, [each for each, found in known.items() if fits(found)]),
                obj=model,
                id="automation.E121",
            )
            return
        if not fits(field):
            kind = "which does not have the name of a time zone" if is_last else "which does not lead to one row"
            yield Error(
                f"{what}, and {current._meta.label}.{name} is a {type(field).__name__}, {kind}.",
                hint="Name foreign keys, and then a CharField. For anything else give a function: "
                "timezone=lambda entity: ...",
                obj=model,
                id="automation.E122",
            )
            return
        current = field.related_model


def _path_hint(model: type[models.Model], name: str, path: str, known: list[str]) -> str:
    if path == name and find_zone(path) is not None:
        return f"For the time zone of this name give an object: timezone=ZoneInfo({path!r})."
    if hasattr(model, name):
        return "A path names fields. For anything else give a function: timezone=lambda entity: ..."
    return did_you_mean(name, known) if known else f"Give {model._meta.label} such a field, or give a function."


FOREIGN_INDEX_HINT = " If the model is of another package, create it in a migration of yours, and silence this."

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
    for name in definition.transition.fields if definition.transition is not None else ():
        if name in columns or name in attributes:
            yield from _check_wanted_values(model, definition, name)
            continue
        yield Error(
            f"{model._meta.label}: the event {definition.name!r} compares {name!r} in was= or becomes=, which is not a "
            "column of it.",
            hint=did_you_mean(name, columns) + " A to-many relation cannot be compared: its rows are saved separately, "
            "and may declare events.",
            obj=model,
            id="automation.E118",
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


def _check_wanted_values(model: type[models.Model], definition: EventDefinition, name: str) -> Iterator[CheckMessage]:
    """Warn of values in ``was=`` and ``becomes=`` that the field cannot have: no write ever matches them."""
    field: Any = model._meta.get_field(name)
    transition = definition.transition
    wanted = [each[name] for each in (transition.was, transition.becomes) if name in each] if transition else []
    for value in (value for each in wanted for value in alternatives(each)):
        if problem := _problem_with_value(field, value):
            yield Warning(
                f"{model._meta.label}: the event {definition.name!r} compares {name!r} in was= or becomes= with "
                f"{value!r}, {problem[0]}.",
                hint=problem[1],
                obj=model,
                id="automation.W119",
            )


def _problem_with_value(field: Any, value: Any) -> tuple[str, str] | None:
    """Return why ``field`` can never be ``value``, and the fix."""
    if value is None:
        return (
            None if field.null else ("and the field is never NULL", "Remove the None, or set null=True on the field.")
        )
    if isinstance(value, models.Model):
        return None
    plain = field
    while plain.is_relation:
        plain = plain.target_field
    try:
        typed = plain.to_python(value)
    except (ValidationError, TypeError, ValueError):
        return f"which is no value of a {type(plain).__name__}", "Give a value that the field can have."
    choices = [each for each, _ in field.flatchoices]
    if choices and typed not in choices and not (field.blank and typed in field.empty_values):
        return "which is none of its choices", did_you_mean(str(typed), map(str, choices))
    return None


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
                    f"{callback.name} subscribes to the event {callback.event_name!r}, which no code declares.",
                    hint=did_you_mean(callback.event_name, declared_names()),
                    obj=callback.function,
                    id="automation.E106",
                )
            )
        elif callback.offset is not None:
            found += check_offset_makes_sense(callback.name, callback.event_name, callback.offset)
        if callback.window is not None:
            found += check_key_fields(callback.name, callback.event_name, callback.window.key, callback.function)
        for each in callback.limits:
            found += check_key_fields(callback.name, callback.event_name, each.limit.key, callback.function)
    return found


def check_key_fields(what: str, pattern: str, template: str | None, obj: Any) -> Iterator[CheckMessage]:
    """Report a key that reads what an entity, or the payload of an event without one, does not have."""
    if template is not None:
        for problem, hint in _key_problems(pattern, template):
            message = f"{what}: the key {template!r} reads {problem}."
            yield Error(message, hint=hint, obj=obj, id="automation.E116")


def _key_problems(pattern: str, template: str) -> Iterator[tuple[str, str]]:
    attributes = entity_attributes(template)
    for source in sources_of(pattern):
        fields = source.owner._meta.get_fields()
        columns = {field.name for field in fields} | {field.attname for field in fields if hasattr(field, "attname")}
        for name in attributes:
            if name != "pk" and name not in columns and not hasattr(source.owner, name):
                yield f"{name!r}, which {source.owner._meta.label} does not have", did_you_mean(name, columns)
    for event in free_events_matching(pattern):
        if attributes:
            yield f"{attributes[0]!r} of an instance, and {event!r} has none", "Write {{ payload.field }}."
        for path in payload_paths(template):
            if hint := problem_with(event, path):
                yield f"{path!r}, which the payload of {event!r} does not have", hint


def is_declared(pattern: str) -> bool:
    """Return whether any event can match ``pattern``; ``"*"`` is valid in an empty project, too."""
    return pattern == "*" or bool(event_sources(pattern))


def shares_entity(starting: Iterable[str], pattern: str) -> bool:
    """Return whether every entity whose event is one of ``starting`` declares an event that ``pattern`` matches."""
    starters = {source.owner for each in starting for source in sources_of(each)}
    owners = {source.owner for source in sources_of(pattern)}
    return bool(starters) and all(any(is_family(starter, owner) for owner in owners) for starter in starters)


def check_match(what: str, pattern: str, lookups: Iterable[str], obj: Any, code: str) -> Iterator[CheckMessage]:
    """Report lookups that are invalid on everything that declares the event."""
    sources = event_sources(pattern)
    for lookup in lookups:
        problems = [problem_with(owner, lookup) for owner in owners_of(sources)]
        if problems and all(problems):
            yield Error(
                f"{what}: match compares {lookup!r}, which {labels_of(sources)} does not have.",
                hint=problems[0],
                obj=obj,
                id=code,
            )


def check_offset_makes_sense(what: str, event_name: str, offset: Any) -> Iterator[CheckMessage]:
    """Warn of a negative offset from an immediate event: its time is not known in advance."""
    now = timezone.now()
    is_known_in_advance = [
        isinstance(each, FreeEvent) or each.definition.is_scheduled for each in event_sources(event_name)
    ]
    if is_known_in_advance and not any(is_known_in_advance) and shift(now, offset) < now:
        yield Warning(
            f"{what} wants to run before the event {event_name!r} (offset {offset_key(offset)}), which is immediate.",
            hint="Its time is not known in advance, so this runs at once. Use a scheduled event (date_field=).",
            id="automation.W107",
        )


def check_captures(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Report models whose writes triggers cannot name an entity for."""
    found: list[CheckMessage] = []
    for model in captured_models():
        for table in tables_of(model):
            parents = [parent for parent in table._meta.parents if not parent._meta.proxy]
            if len(parents) > 1 or (parents and table._meta.pk is not table._meta.parents[parents[0]]):
                found.append(
                    Error(
                        f"{model._meta.label} has events with capture=True, and the rows of {table._meta.label} are "
                        "not named by the primary key of one parent.",
                        hint="Let it inherit from one model with a table, without a primary key of its own; or remove "
                        "capture=True.",
                        obj=model,
                        id="automation.E140",
                    )
                )
        if stored_entity_id(model) is None:
            found.append(
                Error(
                    f"{model._meta.label} has events with capture=True and a primary key of the type "
                    f"{type(model._meta.pk).__name__}; triggers name an entity by an integer, a UUID or a string.",
                    hint="Give it such a primary key, or remove capture=True.",
                    obj=model,
                    id="automation.E141",
                )
            )
    if found or alias_of(CapturedWrite) in (kwargs.get("databases") or ()):
        return found  # the database itself says what is missing: see ``check_triggers``
    return [*found, *_check_capture_migrations()]


def _check_capture_migrations() -> Iterator[CheckMessage]:
    """Report captured tables whose triggers no migration of the project installs: before it is deployed."""
    if not captured_models():
        return
    try:
        missing = missing_changes(MigrationLoader(None, ignore_no_migrations=True)).capture
    except (BadMigrationError, CircularDependencyError, NodeNotFoundError):
        return  # every command of Django that needs migrations says so
    for label in missing:
        message = f"{label} has events with capture=True, and no migration installs triggers on its table: only save()"
        yield Warning(f"{message} is heard.", hint=WRITE_MIGRATION, obj=apps.get_model(label), id="automation.W145")


WRITE_MIGRATION = "Let manage.py automation_capture --migration APP write one into an app of yours, and run migrate."
TRIGGERS_HINT = f"Run manage.py migrate. No migration does it yet? {WRITE_MIGRATION}"


def check_triggers(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """``check --database``, and each ``migrate``: the triggers of captured tables are installed and current.

    Warnings, because ``migrate`` refuses to run after an error, and it is what repairs them.
    """
    alias = alias_of(CapturedWrite)
    if alias not in (databases or ()):
        return []
    connection = connections[alias]
    found: list[CheckMessage] = []
    for capture in needed_captures():
        label = capture.name_of_model
        state = installation_of(capture, connection)
        if state is Installation.MISSING:
            message = f"{label} has events with capture=True, and its table has no triggers: only save() is heard."
            found.append(Warning(message, hint=TRIGGERS_HINT, obj=capture.model, id="automation.W142"))
        elif state is Installation.OUTDATED:
            message = f"The triggers on the table of {label} are not those of this code and this table."
            hint = "Run manage.py migrate, which replaces them."
            found.append(Warning(message, hint=hint, obj=capture.model, id="automation.W143"))
    for stray in stray_captures(connection):
        message = (
            f"The table {stray.table!r} has triggers that capture its writes, and no event has capture=True for it."
        )
        found.append(Warning(message, hint=TRIGGERS_HINT, id="automation.W144"))
    return found
