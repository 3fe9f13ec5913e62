"""Versions and ``migrate_context`` without a database: errors at import, and the migration of stored data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, RootModel, model_validator

from django_ai.automation import agent, complete, handler, step, workflow
from django_ai.automation.exceptions import ContextError, DefinitionError
from django_ai.automation.state.contexts import dump_context, load_context
from django_ai.automation.state.versions import is_newer, migration_of, restore


@pytest.mark.parametrize(
    ("one", "other"), [("2", "1"), ("10", "9"), ("1", "beta"), ("2024-06", "2024-05"), ("b", "a"), ("10", "9.5")]
)
def test_which_version_is_newer(one, other):
    assert is_newer(one, other)
    assert not is_newer(other, one)
    assert not is_newer(one, one)


class Context(BaseModel):
    text: str
    at: datetime | None = None


@dataclass
class Definition:
    migrate: Any = None
    version: str = "2"
    context: type[BaseModel] = Context


NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)


def plain(data, from_version):
    return data


class Async:
    @staticmethod
    async def migrate_context(data, from_version):
        return data


class Method:
    def migrate_context(self, data, from_version):
        return data


class TooFew:
    @staticmethod
    def migrate_context(data):
        return data


class TooMany:
    @classmethod
    def migrate_context(cls, data, from_version, other):
        return data


class Value:
    migrate_context = 5


@pytest.mark.parametrize("cls", [Async, Method, TooFew, TooMany, Value])
def test_a_hook_that_cannot_be_called_is_refused(cls):
    with pytest.raises(DefinitionError, match="migrate_context"):
        migration_of(cls, "@workflow('x')")


def test_hooks_that_can_be_called():
    class Static:
        migrate_context = staticmethod(plain)

    class OfClass:
        @classmethod
        def migrate_context(cls, data, from_version="1", *rest):
            return {**data, "by": cls.__name__}

    class Inherits(OfClass):
        pass

    assert migration_of(object, "x") is None
    assert migration_of(Static, "x")({"a": 1}, "1") == {"a": 1}
    assert migration_of(Inherits, "x")({}, "1") == {"by": "Inherits"}


def test_decorators_look_at_the_hook():
    body = {"Context": Context, "begin": step(start=True)(lambda self: complete()), "migrate_context": plain}
    with pytest.raises(DefinitionError, match=r"@workflow\('w'\).*@staticmethod or @classmethod"):
        workflow("w")(type("Wrong", (), body))
    body = {"Context": Context, "heard": handler("booking_noted")(lambda self: None), "migrate_context": plain}
    with pytest.raises(DefinitionError, match=r"@agent\('a'\).*@staticmethod or @classmethod"):
        agent("a")(type("Wrong", (), body))
    with pytest.raises(DefinitionError, match="version"):
        agent("a", version="")(type("Wrong", (), body))


def test_what_fits_is_not_migrated():
    never = Definition(migrate=lambda data, version: pytest.fail("asked in vain"))
    found = restore(never, {"text": "a"}, "2", "it")
    assert (found.context.text, found.is_migrated) == ("a", False)


@pytest.mark.parametrize("version", ["1", "2"])
def test_what_is_of_another_version_or_does_not_fit_is(version):
    asked = []

    def migrate(data, from_version):
        asked.append((dict(data), from_version))
        data.clear()
        return {"text": "new"}

    stored = {"texts": ["a"]}
    found = restore(Definition(migrate), stored, version, "it")
    assert (found.context.text, found.is_migrated) == ("new", True)
    assert asked == [({"texts": ["a"]}, version)]
    assert stored == {"texts": ["a"]}  # the hook receives a copy


def test_without_a_hook_another_version_is_taken_as_it_is():
    found = restore(Definition(), {"text": "a"}, "1", "it")
    assert (found.context.text, found.is_migrated) == ("a", True)


def test_it_may_return_a_context_or_values_that_json_does_not_have():
    for returned in (Context(text="a", at=NOON), {"text": "a", "at": NOON}, {"text": "a", "at": NOON.isoformat()}):
        assert restore(Definition(lambda data, version, it=returned: it), {}, "1", "it").context.at == NOON


@pytest.mark.parametrize(
    ("returned", "says"),
    [(None, "returned None; it must return the new dict"), ({}, "text: Field required"), ({"at": NOON}, "text: Field")],
)
def test_what_it_returns_wrongly(returned, says):
    with pytest.raises(ContextError, match=rf"it #1.*migrate_context.*{says}"):
        restore(Definition(lambda data, version: returned), {}, "1", "it #1")


def test_what_it_raises():
    with pytest.raises(
        ContextError, match=r"(?s)it #1: migrate_context\(data, '1'\) raised.*Traceback.*KeyError: 'gone'"
    ):
        restore(Definition(lambda data, version: data["gone"]), {}, "1", "it #1")


# -- fields of a Context that a worker does not know -------------------------------------------------------------------


def again(model, data):
    return json.loads(dump_context(load_context(model, data, "it"), "it"))


def test_fields_of_a_newer_release_are_handed_on():
    assert again(Context, {"text": "a", "new": {"deep": [1]}}) == {"text": "a", "at": None, "new": {"deep": [1]}}


def test_a_field_that_is_known_counts():
    context = load_context(Context, {"text": "a", "new": 1}, "it")
    context.text = "b"
    assert json.loads(dump_context(context, "it")) == {"text": "b", "at": None, "new": 1}
    assert not hasattr(context, "new")
    assert context == Context(text="b")
    assert context.model_dump() == {"text": "b", "at": None}
    assert repr(context) == "Context(text='b', at=None)"


def test_aliases_are_known():
    class Aliased(BaseModel):
        text: str = Field(alias="TEXT")
        other: str = Field(default="", validation_alias="OTHER")

    assert again(Aliased, {"TEXT": "a", "OTHER": "b"}) == {"text": "a", "other": "b"}


def test_a_field_that_is_read_of_a_part_is_known():
    class Parts(BaseModel):
        first: str = Field(validation_alias=AliasChoices("FIRST", AliasPath("names", 0)))
        second: str = Field(validation_alias=AliasPath("names", 1))

    assert again(Parts, {"names": ["a", "b"]}) == {"first": "a", "second": "b"}


def test_a_model_that_reads_the_whole_keeps_only_what_it_says():
    """Otherwise the old field, kept as unknown, would overwrite the new one at each load."""

    class Renamed(BaseModel):
        text: str

        @model_validator(mode="before")
        @classmethod
        def rename(cls, data):
            return {**data, "text": data["words"]} if "words" in data else data

    context = load_context(Renamed, {"words": "old"}, "it")
    context.text = "new"
    assert json.loads(dump_context(context, "it")) == {"text": "new"}


def test_a_model_that_is_one_value():
    assert again(RootModel[list[int]], [1, 2]) == [1, 2]
    assert again(RootModel[dict[str, int]], {"a": 1}) == {"a": 1}


def test_a_model_says_itself_what_it_does_with_others():
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")

    assert again(Open, {"a": 1}) == {"a": 1}
    with pytest.raises(ContextError, match="a: Extra inputs are not permitted"):
        again(Closed, {"a": 1})
