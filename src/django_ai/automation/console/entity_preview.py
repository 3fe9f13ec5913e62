"""What saving a form of the project's admin would do, with its inlines: the answer of ``AutomationAdminMixin``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Model
from django.forms.formsets import all_valid
from django.http import HttpRequest

from ..events.declarations import declared_on
from ..events.recording.preview import as_if_stored
from .preview import Preview, preview


def preview_form(
    owner: Any, request: HttpRequest, entity: Model | None, now: datetime
) -> tuple[Preview | None, list[str]]:
    """Return what saving the posted form would do, or None and its errors.

    The form and the inlines are made and validated as the admin does. Nothing is saved. ``entity``: None: it is added.
    """
    is_change = entity is not None
    form = owner.get_form(request, entity, change=is_change)(request.POST, request.FILES, instance=entity)
    is_valid = form.is_valid()
    formsets, _inlines = owner._create_formsets(request, form.instance, change=is_change)
    if not (all_valid(formsets) and is_valid):
        return None, [*_errors(form), *(error for formset in formsets for error in _errors_of_rows(formset))]
    saved, deleted = _rows(formsets, as_if_stored(form.instance))
    return preview(form.instance, now, saved, deleted), []


def _errors(form: Any) -> Iterator[str]:
    for name, errors in form.errors.items():
        yield f"{name}: {' '.join(map(str, errors))}"


def _errors_of_rows(formset: Any) -> Iterator[str]:
    name = formset.model._meta.verbose_name
    yield from (f"{name}: {error}" for error in formset.non_form_errors())
    for number, form in enumerate(formset.forms, 1):
        yield from (f"{name} {number}: {text}" for text in _errors(form))


def _rows(formsets: Sequence[Any], parent: Model) -> tuple[list[Model], list[Model]]:
    """Return the rows with events that inlines would insert or change, and those that they would delete."""
    saved, deleted = [], []
    for formset in formsets:
        for form in formset.forms:
            row = getattr(form, "instance", None)
            if row is None or not declared_on(type(row)):
                continue
            if formset.can_delete and formset._should_delete_form(form):
                if not row._state.adding:
                    deleted.append(row)
            elif form.has_changed():
                _attach(formset, row, parent)
                saved.append(row)
    return saved, deleted


def _attach(formset: Any, row: Model, parent: Model) -> None:
    """Let a row refer to the entity as the form has it, as saving the inline would."""
    if getattr(formset, "fk", None) is not None:
        setattr(row, formset.fk.name, parent)
    elif getattr(formset, "ct_fk_field", None) is not None:  # a generic relation
        setattr(row, formset.ct_fk_field.get_attname(), parent.pk)
