"""Indexes: each one that the tables have is one that a query of ours uses; Django adds none of its own to text keys."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db import connection

LABELS = ["automation_queues", "automation_events", "automation_workflows", "automation_agents"]
MODELS = [model for label in LABELS for model in apps.get_app_config(label).get_models()]


@pytest.mark.django_db
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_57_no_index_for_like_is_made(model):
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table)
    assert [name for name in found if name.endswith("_like")] == []


@pytest.mark.django_db
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_57_each_text_key_has_one_index(model):
    """A unique key is found by the index of its constraint; a second one beside it would only cost."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table)
    columns = [tuple(each["columns"]) for each in found.values() if each["index"] or each["unique"]]
    assert len(columns) == len(set(columns))
    assert not [field.name for field in model._meta.local_fields if field.unique and not field.primary_key]
