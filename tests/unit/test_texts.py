"""The error texts that users read."""

from __future__ import annotations

import traceback

import pytest
from django.db import OperationalError, ProgrammingError
from pydantic import BaseModel, ValidationError

from django_ai.automation.db.errors import hint_for
from django_ai.automation.values.text import last_line


class Order(BaseModel):
    order_id: int


def test_the_last_line_of_a_validation_error_names_the_field_and_what_is_wrong():
    with pytest.raises(ValidationError) as caught:
        Order.model_validate({"entity_id": 5})
    text = "".join(traceback.format_exception(caught.value))
    assert last_line(text).startswith("order_id: Field required [type=missing")


@pytest.mark.parametrize(
    ("error", "line"),
    [("", ""), ("one\n", "one"), ("Traceback:\n  File\nKeyError: 'x'", "KeyError: 'x'"), ("a\n  b", "  b")],
)
def test_the_last_line_of_other_errors(error, line):
    assert last_line(error) == line


def missing(text: str, state: str = "", number: int = 0) -> ProgrammingError | OperationalError:
    error = OperationalError(text) if number == 0 and not state else ProgrammingError(text)
    error.__cause__ = Exception(number) if number else Exception(text)
    error.__cause__.sqlstate = state or None  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        missing("no such table: automation_queues_maintenance"),
        missing('relation "automation_queues_maintenance" does not exist', "42P01"),
        missing("Table 'x.automation_queues_maintenance' doesn't exist", number=1146),
    ],
)
def test_tables_that_are_missing_want_migrate(error):
    assert "manage.py migrate" in hint_for(error)


@pytest.mark.parametrize("error", [missing("no such table: shop_order"), missing("database is locked"), ValueError()])
def test_other_errors_have_no_such_fix(error):
    assert hint_for(error) == ""
