"""``register_events``: declare events on a model whose class one cannot edit.

A registration is an ``events`` list beside the class: everything that reads the list (``declarations.listed``) sees it.
It may be made at any time, also long after the class was prepared, and before the automation apps are ready.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from types import CellType
from typing import Any, NoReturn

from django.db import models

from ..exceptions import DefinitionError
from .declarations import add_registered, listed
from .definitions import EventDefinition
from .free_events import FreeEvent
from .transitions import Transition

__all__ = ["register_events"]


def register_events(model: type[models.Model], /, *definitions: EventDefinition) -> None:
    """Declare events on a model of another package, as its own ``events`` list would.

    Call it in an ``automations`` module or in ``AppConfig.ready()``, so that every process has the events. Saves and
    deletions of the model then record them with the same guarantees: in the transaction that writes the entity, or not
    at all. Child models and proxies of the model inherit them. To register the same definition again does nothing.

    Args:
        model: The model class, for instance ``get_user_model()``. An abstract model stands for all models that inherit
            from it.
        *definitions: One or more ``EventDefinition`` objects.

    Raises:
        DefinitionError: At import, if ``model`` is not a model that rows can be saved of, if an argument is not an
            ``EventDefinition``, or if the model, a child or a parent of it has another definition of the same name.

    Example:
        React to a user who has confirmed the address::

            USER_CONFIRMED = EventDefinition("user_confirmed", condition=lambda user: user.is_active)

            register_events(get_user_model(), USER_CONFIRMED)

            @on_event(USER_CONFIRMED)
            def welcome(event):
                send_mail("Welcome", f"Hello {event.entity.username}", None, [event.entity.email])
    """
    _check_model(model)
    if not definitions:
        raise DefinitionError(
            f'register_events({model._meta.label}): name its events, as in EventDefinition("user_confirmed").'
        )
    for definition in definitions:
        if not isinstance(definition, EventDefinition) or isinstance(definition, FreeEvent):
            raise DefinitionError(
                f"register_events({model._meta.label}): {definition!r} is not an EventDefinition. Write "
                'EventDefinition("name", ...).'
            )
    new: list[EventDefinition] = []
    for definition in definitions:
        if any(_is_repeated(each, definition, model) for each in [*listed(model), *new]):
            continue
        for child in _children(model):
            if any(each is not definition and each.name == definition.name for each in listed(child)):
                _refuse_conflict(definition, model, child)
        new.append(definition)
    if new:
        add_registered(model, new)


def _check_model(model: Any) -> None:
    if not isinstance(model, type) or not issubclass(model, models.Model) or not hasattr(model, "_meta"):
        raise DefinitionError(f"register_events({model!r}): give a model class, as in get_user_model().")
    meta = model._meta
    if meta.swapped:
        raise DefinitionError(
            f"register_events({meta.label}): this project uses {meta.swapped} in place of it. Give that model, as in "
            "get_user_model()."
        )
    if meta.auto_created:
        raise DefinitionError(
            f"register_events({meta.label}): Django writes the rows of this table itself, in bulk, and sends no signal "
            "for them. Declare the relation with through= and a model of its own, and save its instances."
        )


def _is_repeated(known: EventDefinition, definition: EventDefinition, model: type[models.Model]) -> bool:
    """Return whether ``definition`` is one that ``model`` has already. Raises ``DefinitionError`` for another one of
    the same name."""
    if known.name != definition.name:
        return False
    if known is not definition and not _is_same(known, definition):
        _refuse_conflict(definition, model, model)
    return True


def _refuse_conflict(definition: EventDefinition, model: type[models.Model], other: type[models.Model]) -> NoReturn:
    raise DefinitionError(
        f"register_events({model._meta.label}): {other._meta.label} has another event {definition.name!r}. Give one of "
        "them another name."
    )


def _children(model: type[models.Model]) -> list[type[models.Model]]:
    """Return all models that inherit from ``model``."""
    found = model.__subclasses__()
    return [*found, *(each for child in found for each in _children(child))]


def _is_same(one: EventDefinition, other: EventDefinition) -> bool:
    """Return whether two definitions declare the same: the same code may be executed twice."""
    mine, theirs = vars(one), vars(other)
    return mine.keys() == theirs.keys() and all(_is_equal(value, theirs[name]) for name, value in mine.items())


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Transition) and isinstance(other, Transition):
        return _is_equal(one.was, other.was) and _is_equal(one.becomes, other.becomes)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(value, other[name]) for name, value in one.items())
    if callable(one) and callable(other):
        return one is other or bool(_code_of(one) == _code_of(other))
    return bool(one == other)


def _code_of(function: Callable[..., Any]) -> Any:
    """Return what decides the result of ``function``: its code, its defaults, and the values that it encloses."""
    if isinstance(function, functools.partial):
        return _code_of(function.func), function.args, tuple(function.keywords.items())
    if not inspect.isfunction(function):
        return function
    return (
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        list(map(_content_of, function.__closure__ or ())),
    )


def _content_of(cell: CellType) -> Any:
    with suppress(ValueError):  # a name that is not bound yet
        return cell.cell_contents
    return None
