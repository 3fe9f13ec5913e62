"""Where Django calls the recorder and the deletions, for every model that declares events.

Django sends ``post_save`` after the statement of a save in autocommit mode has committed. ``save_base`` of models that
declare events is wrapped in ``atomic``, so that event and entity commit together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.apps import apps
from django.db import DatabaseError, connections, models, router, transaction
from django.db.models.signals import class_prepared, post_delete, post_save, pre_delete, pre_save
from django.utils import timezone

from ...values.clock import aware
from ..capture import captured_on
from ..declarations import concrete_ancestors, declared_on, forget_declarations, listed, when_registered
from ..models import Event
from . import recorder
from .announced import announce_statements_of
from .captured.performing import use_captured_writes
from .captured.saving import before_save, settle_save
from .deletions import before_delete, on_delete
from .entity_state import mark_as_inserted, read_row_before_save, remember_loaded_values
from .values_before import note_insert, read_before_save


def connect_model(model: type[models.Model]) -> None:
    """Record the events of ``model`` from now on. Idempotent."""
    if model._meta.abstract or model._meta.swapped or not listed(model):
        return
    forget_declarations()
    # Django tells senders apart by their addresses, and a new class may get that of one that is gone. So the identifier
    # does not name the model: its receivers would be called beside those of the former one.
    uid = "django_ai.automation.hooks:model"
    pre_save.connect(validate_before_save, sender=model, dispatch_uid=uid)
    post_save.connect(on_save, sender=model, dispatch_uid=uid)
    pre_delete.connect(before_delete, sender=model, dispatch_uid=uid)
    post_delete.connect(on_delete, sender=model, dispatch_uid=uid)
    remember_loaded_values(model)
    if captured_on(model):
        announce_statements_of(model)
        use_captured_writes()
    if not getattr(model.save_base, "commits_events", False):
        model.save_base = _save_in_transaction(model.save_base)  # type: ignore[method-assign]


def _save_in_transaction(save_base: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save_base)
    def wrapper(self: models.Model, *args: Any, using: str | None = None, **kwargs: Any) -> Any:
        using = using or router.db_for_write(type(self), instance=self)
        with _collect_writes(type(self), using) as sent, transaction.atomic(using=using, savepoint=False):
            try:
                if captured_on(type(self)):
                    before_save(self, using, timezone.now())
                if not kwargs.get("raw"):
                    force_insert = bool(kwargs.get("force_insert"))
                    read_before_save(self, using, force_insert, kwargs.get("update_fields"))
                    read_row_before_save(self, using, force_insert)
                return save_base(self, *args, using=using, **kwargs)
            except Exception as error:
                # If a part of the save was written, the transaction must roll back: no entity without its events.
                if sent or isinstance(error, DatabaseError):
                    raise
                refused = error
        raise refused

    wrapper.alters_data = True  # type: ignore[attr-defined]
    wrapper.commits_events = True  # type: ignore[attr-defined]
    return wrapper


@contextmanager
def _collect_writes(model: type[models.Model], using: str) -> Iterator[list[str]]:
    """Collect the writes to the tables of ``model`` inside the block."""
    connection = connections[using]
    tables = [connection.ops.quote_name(each._meta.db_table) for each in concrete_ancestors(model)]
    sent: list[str] = []

    def collect(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        statement = str(sql)
        if statement.startswith(("INSERT", "UPDATE")) and any(table in statement for table in tables):
            sent.append(statement)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(collect):
        yield sent


def connect() -> None:
    """Connect every model that declares events, including models that are loaded later."""
    for model in apps.get_models():
        connect_model(model)
    when_registered(connect_family)
    class_prepared.connect(_on_class_prepared, dispatch_uid="django_ai.automation.hooks")
    pre_save.connect(replace_recorded_event, sender=Event, dispatch_uid="django_ai.automation.hooks")


def connect_family(model: type[models.Model]) -> None:
    """Connect ``model`` and the models that inherit from it."""
    for each in {model, *apps.get_models()}:
        if issubclass(each, model):
            connect_model(each)


def _on_class_prepared(sender: Any, **kwargs: Any) -> None:
    connect_model(sender)


def replace_recorded_event(sender: Any, instance: Event, raw: bool, using: str, **kwargs: Any) -> None:
    """Delete the event that loading an entity from a fixture recorded, if the fixture has the event itself."""
    if raw and instance.active_key is not None:
        Event.objects.using(using).filter(active_key=instance.active_key).exclude(pk=instance.pk).delete()


def validate_before_save(sender: type[models.Model], instance: models.Model, raw: bool, **kwargs: Any) -> None:
    """Validate what the events need before anything is written.

    Raises ``NaiveDatetimeError`` for a date without a time zone, and ``DefinitionError`` for a key that is too long.
    """
    if raw:
        return
    for declared in declared_on(sender):
        if instance.pk is not None:
            declared.entity_id_of(instance)  # raises if it is too long
        name = declared.definition.date_field
        value = instance.__dict__.get(name) if name else None
        if isinstance(value, datetime):
            aware(value, f"{sender._meta.label}.{name} of {instance.pk or 'a new row'}")


def on_save(
    sender: type[models.Model],
    instance: models.Model,
    created: bool,
    raw: bool,
    using: str,
    update_fields: Any = None,
    **kwargs: Any,
) -> None:
    recorder.refuse_other_database(sender, using)
    now = timezone.now()
    if captured_on(sender):
        settle_save(instance, using, now, raw=raw)
    if created and not raw:
        note_insert(instance, using)
    recorder.record([instance], now, created=created, raw=raw, update_fields=update_fields)
    if created:
        mark_as_inserted(instance)
