"""Each app has one migration, and table names have the prefix of their app."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.apps import apps

LABELS = ["automation_events", "automation_workflows", "automation_agents"]


@pytest.mark.parametrize("label", LABELS)
def test_tables_carry_the_prefix(label):
    for model in apps.get_app_config(label).get_models():
        assert model._meta.db_table.startswith(f"{label}_")


def test_the_queues_app_has_the_tables_of_the_engine() -> None:
    assert [each.__name__ for each in apps.get_app_config("automation_queues").get_models()] == [
        "Worker",
        "Arrival",
        "Maintenance",
        "Pause",
        "HeldRow",
        "Action",
        "BulkAction",
        "MutedProblem",
        "Limiter",
        "Slot",
    ]


@pytest.mark.parametrize("label", [*LABELS, "automation_queues"])
def test_an_app_has_one_migration(label):
    """Nothing is released yet: ``make migrations`` writes this migration again."""
    folder = Path(apps.get_app_config(label).path) / "migrations"
    assert [each.name for each in sorted(folder.glob("0*.py"))] == ["0001_initial.py"]
