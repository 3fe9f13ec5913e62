"""Inputs of a form for the fields of a Context, or for the arguments of a ``create_context``: one for each, as text.

What is typed is read as JSON where that is what the annotation takes, and as text where a string fits. An input that is
left empty gives nothing: the default applies. Pydantic validates the values.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from pydantic import AliasChoices, BaseModel
from pydantic import ValidationError as PydanticError
from pydantic.fields import FieldInfo

from ..values.text import one_line

FIELD = "field-"
"""Prefix of the inputs."""
MAX_SHOWN_DEFAULT = 100
UNREADABLE = (ValueError, RecursionError)
"""What reading JSON raises; the second one for thousands of nested brackets."""
STRUCTURES = (BaseModel, Mapping, list, tuple, set, frozenset)


@dataclass(frozen=True, slots=True)
class Input:
    """A value that a form asks for: the name under which the code takes it, and what is known of it."""

    name: str
    annotation: Any
    description: str = ""
    is_required: bool = False
    default: str = ""

    def field(self, *, is_start: bool) -> forms.CharField:
        """Return the field of a form. ``is_start``: its help names the default, which applies if nothing is typed."""
        parts = [_name_of(self.annotation), self.description]
        text = ": ".join(part for part in parts if part)
        if is_start and (self.is_required or self.default):
            more = gettext("Required.") if self.is_required else gettext("Default: %s.") % self.default
            text = f"{text}. {more}" if text else more
        rows = forms.Textarea(attrs={"rows": 3, "cols": 60}) if self.is_structure else forms.TextInput()
        shape = _shape(self.annotation)
        if shape:
            as_json = gettext("As JSON: %s") % shape
            text = f"{text} {as_json}"
        return forms.CharField(label=self.name, required=False, help_text=text, strip=False, widget=rows)

    @property
    def is_structure(self) -> bool:
        """Whether its value is an object or a list, which is typed as JSON."""
        return any(map(_is_structure, _members(self.annotation)))

    def parsed(self, text: str) -> Any:
        """Return the value that was typed: JSON, or the text itself where a string fits or it is no JSON.

        Raises ``ValidationError`` for text that was meant to be JSON.
        """
        if {str, Decimal} & set(_members(self.annotation)):  # JSON would round the digits of a Decimal
            return text
        try:
            return json.loads(text)
        except UNREADABLE as error:
            if self.is_structure and text.lstrip()[:1] in ("{", "["):
                raise ValidationError(gettext("This is not JSON: %s.") % error) from error
            return text


def inputs_of_context(model: type[BaseModel], *, by_alias: bool) -> dict[str, Input]:
    """Return an input for each field of a Context, by its name; ``by_alias``: under which a call of the model takes
    it."""
    found = (_of_field(_given_as(model, name, info) if by_alias else name, info) for name, info in _fields(model))
    return {each.name: each for each in found}


def inputs_of_function(function: Callable[..., Any]) -> dict[str, Input]:
    """Return an input for each argument of a ``create_context`` except the event."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # it names what is imported for type checkers only
        signature = inspect.signature(function)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    empty = inspect.Parameter.empty
    return {
        each.name: Input(
            each.name,
            Any if each.annotation is empty else each.annotation,
            is_required=each.default is empty,
            default="" if each.default is empty else _shown(each.default),
        )
        for each in signature.parameters.values()
        if each.kind in named and each.name != "event"
    }


def add_inputs(form: forms.Form, inputs: Iterable[Input], *, is_start: bool) -> None:
    """Add the fields, and one for all other keys as JSON."""
    for each in inputs:
        form.fields[f"{FIELD}{each.name}"] = each.field(is_start=is_start)
    form.fields["payload"] = forms.CharField(
        label=_("Other keys, as JSON"), required=False, widget=forms.Textarea(attrs={"rows": 3, "cols": 60})
    )


def clean_other(text: str) -> dict[str, Any]:
    """Return the other keys that were typed. Raises ``ValidationError`` unless they are a JSON object."""
    if not text.strip():
        return {}
    try:
        given = json.loads(text)
    except UNREADABLE as error:
        raise ValidationError(gettext("This is not JSON: %s.") % error) from error
    if not isinstance(given, dict):
        raise ValidationError(gettext("The payload must be an object in braces."))
    return given


def clean_inputs(form: forms.Form, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """Return the values of the inputs that are not empty. Adds an error for a key that is given twice."""
    values, found = form.cleaned_data, dict[str, Any]()
    for name, each in inputs.items():
        text = values.get(f"{FIELD}{name}") or ""
        if text:
            try:
                found[name] = each.parsed(text)
            except ValidationError as error:
                form.add_error(f"{FIELD}{name}", error)
    twice = sorted({*found} & {*(values.get("payload") or {})})
    if twice:
        form.add_error("payload", gettext("Given twice: %s.") % ", ".join(twice))
    return found


def add_pydantic_errors(form: forms.Form, error: PydanticError) -> None:
    """Show each error of a Pydantic model at the input of its field, without the values."""
    for each in error.errors():
        name, *inner = map(str, each["loc"] or ("",))
        inside = f"{'.'.join(inner)}: " if inner else ""
        at = f"{FIELD}{name}"
        if at in form.fields:
            form.add_error(at, f"{inside}{each['msg']}")
        else:
            form.add_error(None, f"{'.'.join([name, *inner])}: {each['msg']}" if name else str(each["msg"]))


def _fields(model: type[BaseModel]) -> Iterable[tuple[str, FieldInfo]]:
    return model.model_fields.items()


def _of_field(name: str, info: FieldInfo) -> Input:
    default = "" if info.is_required() or info.default_factory is not None else _shown(info.default)
    return Input(name, info.annotation, info.description or "", info.is_required(), default)


def _given_as(model: type[BaseModel], name: str, info: FieldInfo) -> str:
    config = model.model_config
    alias: Any = info.validation_alias
    if config.get("populate_by_name") or config.get("validate_by_name"):
        return name
    if isinstance(alias, AliasChoices):
        alias = next((each for each in alias.choices if isinstance(each, str)), None)
    return alias if isinstance(alias, str) else name


def _shown(default: Any) -> str:
    if isinstance(default, BaseModel):
        text = default.model_dump_json()
    else:
        try:
            text = json.dumps(default, ensure_ascii=False)
        except (TypeError, ValueError):
            text = str(default)
    line = one_line(text)
    return line if len(line) <= MAX_SHOWN_DEFAULT else f"{line[: MAX_SHOWN_DEFAULT - 1]}…"


def _members(annotation: Any) -> list[Any]:
    """Return the types of which a value may be."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    return [annotation]


def _is_structure(kind: Any) -> bool:
    found = get_origin(kind) or kind
    return isinstance(found, type) and (issubclass(found, STRUCTURES) or is_dataclass(found))


def _name_of(annotation: Any) -> str:
    if annotation is Any:
        return ""
    if isinstance(annotation, str):
        return annotation
    kind = "" if get_args(annotation) else getattr(annotation, "__name__", "")
    return kind or str(annotation)


def _shape(annotation: Any) -> str:
    """Return the fields of the first nested model that the annotation names; empty: it names none."""
    for member in _members(annotation):
        inner = [member, *get_args(member)]
        for each in inner:
            if isinstance(each, type) and issubclass(each, BaseModel):
                fields = ", ".join(f'"{name}": {_name_of(info.annotation)}' for name, info in each.model_fields.items())
                return f"{{{fields}}}" if each is member else f"[{{{fields}}}]"
    return ""
