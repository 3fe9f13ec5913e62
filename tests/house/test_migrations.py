"""Models and migrations agree, and labels carry a prefix."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import call_command

import django_ai.automation.queues

LABELS = ["automation_events", "automation_workflows", "automation_agents"]

RELEASED = {
    "events/migrations/0001_initial.py": "78d099c2bb356e5c01dbd7729183898d20ec0d07c871388ca8a85a1660067365",
    "workflows/migrations/0001_initial.py": "49d626209048bceabe0f194724afaeb5c0f0f576738d6831776ff37c85c07b6b",
    "agents/migrations/0001_initial.py": "a9673038ae77db3f6a95e32a0dfb5aaffb3f13c1e4071159ee7d0e79fe2fee10",
}
"""The digests of what users have applied already. A release adds its migrations here, and changes none of these."""


@pytest.mark.django_db
@pytest.mark.parametrize("label", [*LABELS, "automation_queues"])
def test_no_migration_is_missing(label):
    call_command("makemigrations", label, check=True, dry_run=True, verbosity=0)


@pytest.mark.parametrize("label", LABELS)
def test_tables_carry_the_prefix(label):
    for model in apps.get_app_config(label).get_models():
        assert model._meta.db_table.startswith(f"{label}_")


def test_the_ground_floor_has_one_table_that_nothing_depends_on() -> None:
    assert [each.__name__ for each in apps.get_app_config("automation_queues").get_models()] == ["Worker"]


@pytest.mark.parametrize("path", RELEASED)
def test_a_released_migration_is_never_edited(path):
    root = Path(django_ai.automation.queues.__file__).parents[1]
    assert hashlib.sha256((root / path).read_bytes()).hexdigest() == RELEASED[path]
