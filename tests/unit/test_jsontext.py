"""The same JSON is valid on all databases, and an error contains the path of the invalid value."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest

from django_ai.automation.exceptions import NotStorableError
from django_ai.automation.values.json_text import encode


@pytest.mark.parametrize(
    "value",
    [{}, [], {"a": [1, 2.5, None, True, "ü", "\u2028"]}, "text", {"emoji": "🛎"}, {"backslash": "\\u0000"}],
)
def test_what_json_has_comes_back(value):
    assert json.loads(encode(value, "It")) == value


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        ({"a": {"b": [1, float("nan")]}}, "a.b[1]", "nan"),
        ({"a": float("inf")}, "a", "inf"),
        ({"a": -float("inf")}, "a", "inf"),
        ({"list": [{"text": "x\x00y"}]}, "list[0].text", "NUL"),
        ({"a": "\ud800"}, "a", "surrogate"),
        ({"a": {1, 2}}, "a", "of the type set, which is not JSON serializable (store a string, number, list or dict)"),
        ({"a": datetime(2030, 1, 1, tzinfo=UTC)}, "a", "of the type datetime"),
        ({"a": date(2030, 1, 1)}, "a", "(store its isoformat())"),
        ({"a": b"bytes"}, "a", "bytes"),
        ({"a": {(1, 2): "x"}}, "a", "(1, 2)"),
    ],
)
def test_what_json_has_not_is_refused_with_its_path(value, path, problem):
    with pytest.raises(NotStorableError) as raised:
        encode(value, "The payload")
    message = str(raised.value)
    assert message.startswith("The payload")
    assert repr(path) in message
    assert problem in message


@pytest.mark.parametrize("key", ["nul\x00key", "\udfff"])
def test_keys_are_text_too(key):
    with pytest.raises(NotStorableError):
        encode({key: 1}, "It")


def test_size_is_counted_in_bytes(settings):
    settings.AUTOMATION = {**settings.AUTOMATION, "MAX_JSON_BYTES": 100}
    assert len(encode("x" * 98, "It")) == 100
    with pytest.raises(NotStorableError, match="MAX_JSON_BYTES"):
        encode("x" * 99, "It")
    with pytest.raises(NotStorableError, match="too large"):
        encode("ü" * 60, "It")


def test_the_message_about_size_names_the_thing_the_size_and_the_fix():
    with pytest.raises(NotStorableError) as raised:
        encode("x" * 1_000_001, "The Context of reindex")
    assert "The Context of reindex" in str(raised.value)
    assert "1,000,003" in str(raised.value)
    assert "1,000,000" in str(raised.value)


def test_what_contains_itself_is_refused():
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(NotStorableError):
        encode(circle, "It")


def test_what_is_nested_too_deeply_is_refused():
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(NotStorableError, match="nested too deeply"):
        encode(deep, "It")
